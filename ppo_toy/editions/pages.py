"""An edition's notebook, made of the English one: all but its texts.

These are the Markdown cells, and what is said of figures, the `alt` in the metadata of code cells.
Each translated cell says in its metadata which English text it renders: `renders` holds a hash of
each of its paragraphs. So it is known without any history whether it is stale, and where.
"""

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppo_toy.editions.edition import Edition, switch, with_switch, without_switch

MISSING, STALE, DONE = "missing", "stale", "done"


@dataclass
class Text:
    """A cell's text in two languages; links as in English, no links to other languages.

    Attributes:
        cell: id of the cell.
        english: its text.
        text: the translation; empty if there is none.
        renders: hashes of the paragraphs that the translation renders.
        allows: what the rules would forbid, and this cell may do.
    """

    cell: str
    english: str
    text: str = ""
    renders: str = ""
    allows: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """One of MISSING, STALE and DONE."""
        if not self.text:
            return MISSING
        return DONE if self.renders == paragraph_hashes(self.english) else STALE

    @property
    def changed(self) -> list[str]:
        """The English paragraphs that the translation does not know."""
        known = self.renders.split()
        return [x for x in _paragraphs(self.english) if _hash(x) not in known]

    @property
    def gone(self) -> int:
        """How many English paragraphs it renders that are there no more."""
        return len(set(self.renders.split()) - set(paragraph_hashes(self.english).split()))


def _paragraphs(text: str) -> list[str]:
    return [x.strip() for x in text.split("\n\n") if x.strip()]


def _hash(paragraph: str) -> str:
    return hashlib.sha256(paragraph.encode()).hexdigest()[:8]


def paragraph_hashes(text: str) -> str:
    """The hashes of a text's paragraphs, in order, divided by blanks."""
    return " ".join(map(_hash, _paragraphs(text)))


def read(path: Path) -> dict[str, Any]:
    """A notebook as it stands in its file, with the sources of all cells as one string."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def write(notebook: dict[str, Any], path: Path) -> None:
    """Writes a notebook in the form in which Jupyter writes it, if the file says anything else."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True)
    written = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != written:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written, encoding="utf-8")


def texts(edition: Edition, page: str) -> list[Text]:
    """The texts of a page, each with the translation that there is.

    A translation belongs to the cell whose text it renders, wherever that stands now; else to the
    cell with its id.
    """
    english = {x["id"]: _text_of(edition, x) for x in read(edition.notebooks / page)["cells"]}
    cells = [Text(name, text) for name, text in english.items() if text]
    there = _translated(edition, page)
    by_hash = {x.renders: x for x in there.values()}
    for cell in cells:
        found = by_hash.get(paragraph_hashes(cell.english))
        if found:
            there = {k: x for k, x in there.items() if x is not found}
            cell.text, cell.renders, cell.allows = found.text, found.renders, found.allows
    for cell in cells:
        if not cell.text and cell.cell in there:
            found = there[cell.cell]
            cell.text, cell.renders, cell.allows = found.text, found.renders, found.allows
    return cells


def _text_of(edition: Edition, cell: dict[str, Any]) -> str:
    """What of a cell is translated; "" if nothing is."""
    if cell["cell_type"] == "code":
        return cell["metadata"].get("alt", "")
    return without_switch(edition.notebooks, cell["source"])


def _translated(edition: Edition, page: str) -> dict[str, Text]:
    """The translations in a page's file, by id."""
    path, found = edition.folder / page, {}
    for cell in read(path)["cells"] if path.exists() else ():
        metadata = cell["metadata"]
        if "renders" in metadata:
            text = edition.inward(_text_of(edition, cell), page)
            allows = metadata.get("allows", [])
            found[cell["id"]] = Text(cell["id"], "", text, metadata["renders"], allows)
    return found


def build(edition: Edition, page: str, translations: list[Text]) -> dict[str, Any]:
    """The edition's notebook: the English one with these translations in it.

    A cell without a translation keeps the English text and renders nothing.
    """
    notebook = read(edition.notebooks / page)
    by_id = {x.cell: x for x in translations}
    for cell in notebook["cells"]:
        found = by_id.get(cell["id"])
        if cell["cell_type"] == "code":
            cell["source"] = code(edition, cell["source"])
            if found and found.text:
                cell["metadata"]["alt"] = found.text
        else:
            cell["source"] = edition.outward(found.text or found.english, page)
        if found and found.text:
            cell["metadata"]["renders"] = found.renders
            cell["metadata"] |= {"allows": found.allows} if found.allows else {}
    first = notebook["cells"][0]
    line = switch(edition.notebooks, page, edition.language)
    first["source"] = with_switch(edition.notebooks, first["source"], line)
    return notebook


def code(edition: Edition, source: str) -> str:
    """A code cell's source in the edition: as it is, but for what its table adds to some lines.

    What is added to a line stands at the end of the cell, so that a grader can take it off again.
    """
    lines = source.splitlines()
    return source + "".join(x["adds"] for x in edition.table["code"] if x["to"] in lines)


def refresh(edition: Edition, page: str) -> None:
    """Makes an edition's page anew of the English one and the translations that it holds."""
    write(build(edition, page, texts(edition, page)), edition.folder / page)


def link_back(notebooks: Path, page: str) -> None:
    """Puts the links to other languages on the English page, and on its solutions."""
    line = switch(notebooks, page, None)
    for path in (notebooks / page, notebooks / page.replace("exercises/", "solutions/")):
        notebook = read(path)
        first = notebook["cells"][0]
        first["source"] = with_switch(notebooks, first["source"], line)
        write(notebook, path)
