"""The lessons as pages: how their cells fold, and what stands at the top and the end of each.

The notebooks stay as they are; what is read of them is changed on the way into Sphinx.
"""

import importlib.metadata
import json
import re
import shutil
import sys
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

WEB = Path(__file__).resolve().parent
sys.path.insert(1, str(WEB.parent / "tests"))

from form import Cell  # noqa: E402  the kinds of cells, known by their content
from landing import editions, language_of  # noqa: E402


@cache
def words(language: str) -> dict:
    """What the site says in a language; English where it has no words of its own."""
    path = WEB / "words" / f"{language}.toml"
    path = path if path.exists() else WEB / "words" / "en.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def colab(repository: str, page: str) -> str | None:
    """The address that opens a notebook in Colab, or None where the repository is not public."""
    place = urlsplit(repository)
    if place.hostname != "github.com":
        return None
    return f"https://colab.research.google.com/github{place.path.rstrip('/')}/blob/main/{page}"


def as_page(app, docname: str, source: list[str]) -> None:
    """Changes a notebook's text, and links out of notebooks/, into what the site shows."""
    if not docname.startswith("notebooks/"):
        return
    up = "../" * docname.count("/")
    text = source[0].replace(f"]({up}README.md", f"]({up}index.md")
    text = text.replace(f"]({up}web/", f"]({up}")
    for code in editions(unfinished=True):  # which have no pages
        text = re.sub(rf"\[([^\[\]\n]+)\]\((?:\.\./)*{code}/[^)]*\)", r"\1", text)
    if str(app.env.doc2path(docname)).endswith(".ipynb"):
        book = json.loads(text)
        said = words(language_of(docname))
        _fold(book["cells"], said)
        _head(book["cells"], docname, said["lesson"], app.config.repository)
        _exercises(book["cells"], Path(app.srcdir), docname, said["lesson"])
        text = json.dumps(book)
    source[0] = text


def _fold(cells: list[dict], said: dict) -> None:
    """Says in the readers' words what a closed cell holds; gives each figure its alternative."""
    code = [Cell(k, raw) for k, raw in enumerate(cells) if raw["cell_type"] == "code"]
    for cell in code:
        kind = "setup" if cell is code[0] else "guard" if cell.guards else "drawing"
        kind = kind if cell.folded else "predicted"
        meta = cells[cell.number]["metadata"]
        alt = meta.get("alt", "")
        shown = {"code_prompt_show": said["fold"][kind], "code_prompt_hide": said["fold"]["hide"]}
        meta["mystnb"] = shown | {"image": {"alt": alt}}


def _head(cells: list[dict], docname: str, said: dict, repository: str) -> None:
    """Puts under the title how the notebook is opened."""
    page = f"{docname}.ipynb"
    title, _, rest = "".join(cells[0]["source"]).partition("\n")
    ways = [f"{{download}}`{said['download']} </{page}>`"]
    if address := colab(repository, page):
        ways.append(f"[{said['colab']}]({address})")
    ways = " · ".join(ways)
    command = f"```bash\n.venv/bin/jupyter lab {page}\n```"
    head = f":::{{container}} open-lesson\n{said['lab']}\n\n{command}\n\n{ways}\n:::"
    cells[0]["source"] = f"{title}\n\n{head}\n{rest}"


def _exercises(cells: list[dict], source: Path, docname: str, said: dict) -> None:
    """Hangs a lesson's exercises below it in the contents."""
    folder, _, name = docname.rpartition("/")
    if (source / folder / "exercises" / f"{name}.ipynb").exists():
        entry = f"{said['exercises']} <exercises/{name}>"
        end = f"\n\n```{{toctree}}\n:hidden:\n\n{entry}\n```\n"
        cells[-1]["source"] = "".join(cells[-1]["source"]) + end


def say(app, pagename: str, template: str, context: dict, doctree) -> None:
    """Gives the page's scripts their words."""
    for name, word in words(language_of(pagename))["button"].items():
        context["metatags"] = (
            context.get("metatags", "") + f'<meta name="course:{name}" content="{word}" />'
        )


def copy_mathjax(app, error) -> None:
    """Puts the one file of MathJax that is used, and its fonts, beside the pages."""
    for file in importlib.metadata.files("sphinx-mathjax-offline") or ():
        _, _, inner = file.as_posix().partition("/static/mathjax/")
        if error is None and (inner == "tex-chtml.js" or "woff-v2/" in inner):
            target = Path(app.outdir, "_static", "mathjax", inner)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)


def setup(app) -> dict:
    """Connects everything to Sphinx."""
    app.add_config_value("repository", "", "env", str)
    app.connect("source-read", as_page)
    app.connect("html-page-context", say)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
