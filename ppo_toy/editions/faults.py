"""All that is wrong with an edition's page, in sentences."""

import re
from collections.abc import Iterator

from ppo_toy.editions.compare import differences
from ppo_toy.editions.edition import Edition, switch, with_switch
from ppo_toy.editions.language import breaches
from ppo_toy.editions.pages import DONE, Text, build, read, texts


def faults(edition: Edition, page: str) -> list[str]:
    """One sentence for each fault of a page, with the cell where it is."""
    if not (edition.folder / page).exists():
        return ["missing: there is no such page yet"]
    known = texts(edition, page)
    of_cells = [f"{cell.cell}: {said}" for cell in known for said in of_text(edition, cell)]
    return [*_of_copy(edition, page, known), *of_cells, *_of_links(edition, page)]


def of_text(edition: Edition, cell: Text) -> Iterator[str]:
    """What is wrong with one translated cell."""
    if cell.state != DONE:
        yield cell.state
    if cell.text:
        yield from differences(cell.english, cell.text)
        yield from breaches(edition, cell.english, cell.text, cell.allows)


def _of_copy(edition: Edition, page: str, known: list[Text]) -> Iterator[str]:
    """Whether the page is what the tool makes of the English one and these translations."""
    due, found = build(edition, page, known), read(edition.folder / page)
    if {**due, "cells": 0} != {**found, "cells": 0}:
        yield "the notebook's own metadata are not the English ones"
    cells, there = ({x["id"]: x for x in notebook["cells"]} for notebook in (due, found))
    yield from (f"{name}: superfluous" for name in there if name not in cells)
    yield from (f"{name}: missing" for name in cells if name not in there)
    both = [name for name in there if name in cells]
    if both != [name for name in cells if name in there]:
        yield "the cells are in another order"
    for name in both:
        what = [key for key in cells[name] if there[name].get(key) != cells[name][key]]
        what += [key for key in there[name] if key not in cells[name]]
        if what:
            yield f"{name}: not what the tool makes of the English cell: {', '.join(what)}"


def _of_links(edition: Edition, page: str) -> Iterator[str]:
    """Whether the English page leads to the edition's."""
    first = read(edition.notebooks / page)["cells"][0]["source"]
    if first != with_switch(edition.notebooks, first, switch(edition.notebooks, page, None)):
        yield "the English page does not lead here"


def drawing_faults(edition: Edition) -> list[str]:
    """Drawings of the edition that are not the English ones with other words."""
    told = []
    for path in sorted(edition.folder.rglob("*.svg")):
        name = path.relative_to(edition.folder)
        english = edition.notebooks / name
        text = path.read_text(encoding="utf-8")
        if not english.exists():
            told.append(f"{name}: superfluous: there is no English drawing of this name")
        elif _wordless(text) != _wordless(english.read_text(encoding="utf-8")):
            told.append(f"{name}: differs from the English drawing in more than words")
        elif not re.search(edition.table["script"], text):
            told.append(f"{name}: not translated")
    return told


def _wordless(svg: str) -> str:
    """A drawing without its words, and without what only names their fonts."""
    svg = re.sub(r'(?:font-family|aria-label|lang|xml:lang)="[^"]*"', "", svg)
    svg = re.sub(r"font-family:[^;}]*", "", svg)
    return re.sub(r">[^<]*<", "><", svg)
