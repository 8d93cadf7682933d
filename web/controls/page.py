"""The Sphinx extension that gives `beta.md` its controls: values, scripts and styles."""

from pathlib import Path
from typing import Any

from controls import values

PAGE = "beta"
FOLDER = "controls"  # below _static


def make(app: Any, error: Exception | None) -> None:
    """Writes what the controls need into the built pages."""
    if error is None and app.builder.format == "html":
        values.write(Path(app.outdir) / "_static" / FOLDER)


def load(app: Any, page: str, *_: Any) -> None:
    """Lets the one page that has controls load them."""
    if page == PAGE:
        app.add_css_file(f"{FOLDER}/{values.STYLES}")
        for script in values.SCRIPTS:
            app.add_js_file(f"{FOLDER}/{script}", loading_method="defer")


def from_the_top(app: Any, page: str, source: list[str]) -> None:
    """Turns links from `web/` to the lessons into links from the site's top, where the page is."""
    if page == PAGE:
        source[0] = source[0].replace("](../notebooks/", "](notebooks/")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", from_the_top)
    app.connect("html-page-context", load)
    app.connect("build-finished", make)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
