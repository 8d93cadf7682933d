"""Builds the web edition from the executed notebooks, and never runs one.

python web/build.py            makes build/web/html
python web/build.py --serve    makes it and serves it, until Ctrl-C
"""

import argparse
import functools
import gc
import http.server
import os
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

WEB = Path(__file__).resolve().parent
ROOT = WEB.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.py", "*.toml", "solutions", "work")
NO_PAGES = shutil.ignore_patterns("controls", "static", "templates", "words", "*.py", "__pycache__")


def gather(source: Path) -> None:
    """Lays out what the site is made of: the pages in web/ at the top, notebooks/ below them."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(WEB, source, ignore=NO_PAGES)
    shutil.copytree(ROOT / "notebooks", source / "notebooks", ignore=LEFT_OUT)


def build(out: Path, *options: str) -> Path:
    """Builds the site under `out`, warnings being errors, and returns the folder of its pages.

    Raises:
        SystemExit: Sphinx has warned; its sentences stand above.
    """
    gather(out / "source")
    places = [str(out / "source"), str(out / "html")]
    strict = ["-W", "--keep-going", "-q", "-c", str(WEB), "-d", str(out / "doctrees")]
    # One process more than cores, as the one that hands out pages sleeps while they are written.
    jobs = ["-j", str((os.cpu_count() or 1) + 1)]
    gc.disable()  # all that is made stays to the end, and looking through it takes a third longer
    if build_main([*strict, *jobs, *options, *places]):
        raise SystemExit("the site has not been built")
    gc.enable()
    return out / "html"


def server(pages: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Returns a server of a folder on this machine alone; port 0 takes any free one."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=pages)
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "web")
    parser.add_argument("--serve", action="store_true", help="and serve it, until Ctrl-C")
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()
    pages = build(asked.out)
    print("built:", pages / "index.html")
    if asked.serve:
        with server(pages, asked.port) as served:
            print(f"open http://127.0.0.1:{served.server_port}/ (Ctrl-C ends it)")
            sys.stdout.flush()
            try:
                served.serve_forever()
            except KeyboardInterrupt:
                print()


if __name__ == "__main__":
    main()
