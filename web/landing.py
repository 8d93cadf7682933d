"""What the first page takes from elsewhere: README's tables of lessons, and the editions."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EDITIONS = ROOT / "notebooks"


def tables(readme: str) -> list[list[dict[str, str]]]:
    """README's tables of lessons, in order: a row is a dict from the heads of its columns."""
    found = []
    for block in re.findall(r"^\|.*\n\|[-| :]+\n(?:\|.*\n)+", readme, re.M):
        head, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")]
                          for line in block.splitlines())  # fmt: skip
        if "minutes" in head:
            found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def cards(rows: list[dict[str, str]]) -> str:
    """One card for each lesson: its name, its question, what is built, how long it takes."""
    lines = ["::::{container} cards"]
    for row in rows:
        name = next(iter(row.values()))
        minutes = row["minutes"].replace("+", "min, exercises") + " min"
        parts = [f"[{name[1:]}", row["the question"], row.get("you build", ""), minutes]
        lines += [":::{container} card", "\n\n".join(part for part in parts if part), ":::"]
    return "\n".join([*lines, "::::"])


def editions(unfinished: bool = False) -> dict[str, str]:
    """The other languages, each a folder of notebooks/, and their own names; or those to come."""
    found = {
        path.parent.name: tomllib.loads(path.read_text(encoding="utf-8"))
        for path in sorted(EDITIONS.glob("*/edition.toml"))
    }
    return {
        code: about["name"]
        for code, about in found.items()
        if about.get("unfinished", False) == unfinished
    }


def contents(source: Path, language: str, name: str) -> str:
    """One edition in the contents: its lessons, its last exercise, what else it has."""
    folder = source / "notebooks" / language
    pages = [path for glob in ("[0-9]*", "exercises/12_*", "*.md") for path in folder.glob(glob)]
    names = sorted(path.relative_to(source).with_suffix("").as_posix() for path in pages)
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {name}", "", *names, "```"])


def fill(app, docname: str, source: list[str]) -> None:
    """Puts cards and contents where the first page has their names in comments."""
    if docname != app.config.root_doc:
        return
    short, deep = tables((ROOT / "README.md").read_text(encoding="utf-8"))[:2]
    source_folder = Path(app.srcdir)
    parts = {
        "beta": "beta" if (source_folder / "beta.md").exists() else "",
        "the short way": cards(short),
        "going deeper": cards(deep),
        "editions": "\n\n".join(
            contents(source_folder, *edition) for edition in editions().items()
        ),
    }
    for name, text in parts.items():
        source[0] = source[0].replace(f"<!-- {name} -->", text)


def other_languages(app, pagename: str, template: str, context: dict, doctree) -> None:
    """Says in which language a page is, and where it stands in the others."""
    here = language_of(pagename)
    names = {"en": "English"} | editions()
    plain = re.sub(rf"^notebooks/{here}/", "notebooks/", pagename)
    pages = {"en": plain} | {
        code: plain.replace("notebooks/", f"notebooks/{code}/", 1) for code in editions()
    }
    context["languages"] = [
        (code, names[code], page)
        for code, page in pages.items()
        if code != here and page in app.env.found_docs
    ]
    context["language"] = here


def language_of(docname: str) -> str:
    """The language of a page: that of its folder, if this is an edition's."""
    folder = docname.removeprefix("notebooks/").partition("/")[0]
    return folder if folder in editions() else "en"


def setup(app) -> dict:
    """Connects everything to Sphinx."""
    app.connect("source-read", fill)
    app.connect("html-page-context", other_languages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
