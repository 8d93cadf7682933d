"""One language's folder, `notebooks/<language>/`: its table, its pages, and where links lead.

An edition is a folder with a file `edition.toml`. No module here knows any one language.
"""

import functools
import posixpath
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = "English"
TABLE, GLOSSARY = "edition.toml", "glossary.md"
TARGET = re.compile(r"(\]\()([^)\s]+)(?=\))")


@dataclass(frozen=True)
class Edition:
    """The edition in the folder `notebooks/<language>/`.

    Attributes:
        notebooks: the folder of the English notebooks.
        language: name of the folder in it.
    """

    notebooks: Path
    language: str

    @property
    def folder(self) -> Path:
        """Where its pages lie, under the same names as the English ones."""
        return self.notebooks / self.language

    @functools.cached_property
    def table(self) -> dict[str, Any]:
        """What is particular to the language: `edition.toml`."""
        return tomllib.loads((self.folder / TABLE).read_text(encoding="utf-8"))

    @functools.cached_property
    def pages(self) -> list[str]:
        """All notebooks that it has or is to have, as paths below `notebooks`."""
        found = (path for glob in self.table["pages"] for path in self.notebooks.glob(glob))
        return sorted(path.relative_to(self.notebooks).as_posix() for path in found)

    @property
    def written(self) -> list[str]:
        """Those of its pages that are there."""
        return [page for page in self.pages if (self.folder / page).exists()]

    def selected(self, names: list[str]) -> list[str]:
        """Its pages whose path or number is among the names ("03" is lesson and exercises).

        Raises:
            ValueError: a name is of no page.
        """
        found = {x: [p for p in self.pages if x in (p, _number(p))] for x in names}
        for name, pages in found.items():
            if not pages:
                raise ValueError(f"there is no page {name!r} in the {self.language} edition")
        return [page for page in self.pages if any(page in pages for pages in found.values())]

    def outward(self, text: str, page: str) -> str:
        """A text with the links of the English page, as it has to stand in the edition's page."""
        return TARGET.sub(lambda m: m[1] + self._moved(m[2], page), text)

    def inward(self, text: str, page: str) -> str:
        """The inverse of `outward`: the same text with the links of the English page."""
        return TARGET.sub(lambda m: m[1] + self._moved_back(m[2], page), text)

    def _moved(self, target: str, page: str) -> str:
        path, mark, anchor = target.partition("#")
        if "://" in target or not path:
            return target
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        inside = not place.startswith("../")  # of the folder of the notebooks
        here = place in self.pages or (inside and (self.folder / place).exists())
        return (path if here else f"../{path}") + mark + anchor

    def _moved_back(self, target: str, page: str) -> str:
        if "://" in target or target.startswith("#"):
            return target
        start = posixpath.join(self.language, posixpath.dirname(page))
        place = posixpath.normpath(posixpath.join(start, target))
        place = place.removeprefix(f"{self.language}/")
        return posixpath.relpath(place, posixpath.dirname(page) or ".")


def _number(page: str) -> str:
    return posixpath.basename(page).removesuffix(".ipynb").split("_")[0]


def find_editions(notebooks: Path) -> dict[str, Edition]:
    """All editions, by language: the folders with a table."""
    found = sorted(path.parent.name for path in notebooks.glob(f"*/{TABLE}"))
    return {language: Edition(notebooks, language) for language in found}


def switch(notebooks: Path, page: str, language: str | None) -> str:
    """The links from a page to itself in other languages, and to its own language's glossary.

    Args:
        notebooks: the folder of the English notebooks.
        page: path of the page below it.
        language: of the page on which the paragraph stands; None for the English one.
    """
    up = "../" * (page.count("/") + (language is not None))
    links = [] if language is None else [f"[{SOURCE}]({up}{page})"]
    for other, edition in find_editions(notebooks).items():
        if other != language and (edition.folder / page).exists():
            links.append(f"[{edition.table['name']}]({up}{other}/{page})")
        if other == language:
            links.append(f"[{edition.table['glossary']}]({'../' * page.count('/')}{GLOSSARY})")
    return " · ".join(links)


def with_switch(notebooks: Path, source: str, line: str) -> str:
    """An opening cell with this paragraph of links behind its title, in place of an older one."""
    title, *rest = without_switch(notebooks, source).split("\n\n")
    return "\n\n".join([title, *([line] if line else []), *rest])


def without_switch(notebooks: Path, source: str) -> str:
    """A cell without the paragraph of links to other languages."""
    tables = [x.table for x in find_editions(notebooks).values()]
    names = [SOURCE, *(x[key] for x in tables for key in ("name", "glossary"))]
    link = rf"\[(?:{'|'.join(map(re.escape, names))})\]\([^)]+\)"
    only_links = re.compile(rf"{link}(?: · {link})*")
    return "\n\n".join(x for x in source.split("\n\n") if not only_links.fullmatch(x))
