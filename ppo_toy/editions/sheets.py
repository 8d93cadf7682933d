"""A page as a text that a translator works on, and the way back into the notebook.

    %%% 04-06 missing          a Markdown cell: id and state; below it the English text
    %%% changed                of a stale one: the English paragraphs that are new
    %%% zh                     below it the translation: the only part that is to be edited
    %%% allows KL-term, ...    what this cell may do though a rule forbids it (optional)
    %%% 04-07 code             a code cell with what it prints, to be read only
    %%% 04-07 missing          what is said of its figure, like a Markdown cell

To say that a stale translation is right as it stands, write `done` in the place of `stale`.
"""

import re
from pathlib import Path

from ppo_toy.editions.edition import Edition
from ppo_toy.editions.pages import DONE, STALE, Text, build, paragraph_hashes, read, texts, write

MARK = "%%% "


def path_of(edition: Edition, page: str) -> Path:
    """Where a page's sheet lies."""
    return edition.folder / "work" / page.replace(".ipynb", ".txt")


def export(edition: Edition, page: str) -> Path:
    """Writes a page's sheet.

    Raises:
        ValueError: the sheet holds translations that are not yet in the notebook.
    """
    path, known = path_of(edition, page), texts(edition, page)
    if path.exists():
        stand = {x.cell: x.text for x in known}
        new = [x.cell for x in parse(edition, path) if x.text != stand.get(x.cell, "")]
        if new:
            raise ValueError(
                f"{path} holds texts that are not in the notebook yet ({', '.join(new)}); "
                "--write it first, or remove it"
            )
    by_id, parts = {x.cell: x for x in known}, []
    for cell in read(edition.notebooks / page)["cells"]:
        if cell["cell_type"] == "code" and parts[1:]:  # the set-up is the same everywhere
            printed = "".join("".join(out.get("text", "")) for out in cell["outputs"])
            shown = [f"{MARK}{cell['id']} code", cell["source"], *(["->", printed] * bool(printed))]
            parts.append("\n".join(shown))
        if cell["id"] in by_id:
            parts.append(_block(edition, by_id[cell["id"]]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _block(edition: Edition, cell: Text) -> str:
    lines = [f"{MARK}{cell.cell} {cell.state}", cell.english]
    if cell.state == STALE:
        gone = [f"({cell.gone} paragraphs of before are gone)"] if cell.gone else []
        lines += [f"{MARK}changed", "\n\n".join([*cell.changed, *gone])]
    if cell.allows:
        lines.append(f"{MARK}allows {', '.join(cell.allows)}")
    return "\n".join([*lines, f"{MARK}{edition.language}", cell.text])


def parse(edition: Edition, path: Path) -> list[Text]:
    """The texts of a sheet; a state that was set to `done` counts as such.

    Raises:
        ValueError: a cell has no place for its translation.
    """
    blocks = re.split(rf"^{MARK}", path.read_text(encoding="utf-8"), flags=re.M)[1:]
    found: list[Text] = []
    waiting = ""
    for block in blocks:
        head, _, body = block.partition("\n")
        name, _, rest = head.strip().partition(" ")
        if name == edition.language:
            found[-1].text, waiting = body.strip("\n"), ""
        elif name == "allows":
            found[-1].allows = [x.strip() for x in rest.split(",")]
        elif name != "changed":
            if waiting:
                raise ValueError(f"{path}: {waiting} has no line {MARK}{edition.language}")
            if rest != "code":
                english = body.strip("\n")
                found.append(Text(name, english))
                # Only what is said to be done is taken for done where no word was changed.
                found[-1].renders = paragraph_hashes(english) if rest == DONE else ""
                waiting = name
    if waiting:
        raise ValueError(f"{path}: {waiting} has no line {MARK}{edition.language}")
    return found


def take(edition: Edition, path: Path) -> str:
    """Writes the translations of a sheet into the notebook; returns the page.

    A translation renders the English text that stands above it in the sheet, whatever the English
    notebook says by now. One that was stale and is unchanged stays stale.

    Raises:
        ValueError: it is no sheet of this edition, or has a cell that the page has not.
    """
    work = (edition.folder / "work").resolve()
    if not path.resolve().is_relative_to(work):
        raise ValueError(f"{path} does not lie in {work}")
    page = path.resolve().relative_to(work).with_suffix(".ipynb").as_posix()
    if page not in edition.pages:
        raise ValueError(f"{path} is of no page of the {edition.language} edition")
    cells = {x.cell: x for x in texts(edition, page)}
    for new in parse(edition, path):
        if new.cell not in cells:
            raise ValueError(f"{path}: {page} has no text in a cell {new.cell}")
        cell = cells[new.cell]
        if new.text != cell.text or new.renders:
            cell.renders = paragraph_hashes(new.english)
        cell.text, cell.allows = new.text, new.allows
    write(build(edition, page, [*cells.values()]), edition.folder / page)
    return page
