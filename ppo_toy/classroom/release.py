"""Solutions into student editions: stubs for answers, and no outputs."""

import copy
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")


def release(solutions: Path, exercises: Path) -> list[Path]:
    """Writes the student edition of every notebook in `solutions`; returns what was written.

    Raises:
        ValueError: a notebook's markers do not match, or there is no notebook.
    """
    sources = sorted(solutions.glob("*.ipynb"))
    if not sources:
        raise ValueError(f"there is no notebook in {solutions}")
    editions = []
    for source in sources:
        notebook = read_solutions(source)
        try:
            edition = student_edition(notebook)
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from None
        editions.append((exercises / source.name, edition))
    exercises.mkdir(parents=True, exist_ok=True)
    for path, edition in editions:
        nbformat.write(edition, path)
    return [path for path, _ in editions]


def read_solutions(path: Path) -> NotebookNode:
    """Reads a notebook of solutions.

    Raises:
        ValueError: it is no notebook of format 4.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"{path.name} is no notebook of format 4: {why}") from None
    return notebook


def student_edition(notebook: NotebookNode) -> NotebookNode:
    """Returns a copy with a stub for each solution and without outputs.

    An output that stayed would show "ok" above a check that nobody has run yet.

    Raises:
        ValueError: markers do not match, stand outside an answer cell or are missing from one.
    """
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        is_answer = nbgrader(cell).get("solution", False)
        if is_answer != (BEGIN in cell.source):
            raise ValueError(
                f"cell {cell.id!r}: an answer cell, and no other, holds a line {BEGIN!r}"
            )
        if is_answer:
            cell.source = stub(cell.source)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def stub(source: str) -> str:
    """Returns a cell's source with each solution region replaced by an error that says so.

    Raises:
        ValueError: a region begins twice, ends before it begins, or never ends.
    """
    kept, inside = [], False
    for line in source.splitlines():
        marker = line.strip()
        if marker in (BEGIN, END):
            if inside == (marker == BEGIN):
                raise ValueError(f"a line {marker!r} stands where it does not belong")
            inside = marker == BEGIN
            if inside:
                indent = re.match(r"\s*", line).group()
                kept += [indent + line for line in STUB]
        elif not inside:
            kept.append(line)
    if inside:
        raise ValueError(f"a region begins with {BEGIN!r} and never ends")
    return "\n".join(kept)


def nbgrader(cell: NotebookNode) -> dict:
    """The cell's nbgrader metadata; empty for a cell that is neither answer nor check."""
    return cell.metadata.get("nbgrader", {})
