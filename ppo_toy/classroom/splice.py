"""A submission's answers, and nothing else of it, put into a copy of the reference.

A submission is read as data: no notebook library sees it, and whatever it holds beside answer cells
is ignored, or named in the report where it differs from the reference.
"""

import copy
import hashlib
import io
import json
import re
import tokenize
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbval.plugin import comment_markers

from ppo_toy.classroom import checks, inputs
from ppo_toy.classroom.exercise import Exercise, find
from ppo_toy.classroom.release import nbgrader, read_solutions, stub

FILE_BYTES = 10 << 20
ANSWER_BYTES = 100_000
# Names in an answer that a person should look at: ways to solutions, and out of the function.
OPENERS = """ppo_toy classroom sys os subprocess socket ctypes inspect gc importlib __import__ open
    eval exec compile getattr globals vars get_ipython pathlib shutil signal threading builtins
    __builtins__ __dict__ __globals__ __subclasses__""".split()


@dataclass(frozen=True)
class Question:
    """One exercise of a reference notebook: its answer cell's number, its check's, its points."""

    exercise: Exercise
    answer: int
    check: int
    points: int


@dataclass(frozen=True)
class Reference:
    """A notebook of solutions: its name without ending, its cells, its questions by name."""

    name: str
    notebook: NotebookNode
    questions: dict[str, Question]
    digest: str

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Reads a reference.

        Raises:
            ValueError: an answer has no check, or there is no exercise of its name.
        """
        notebook = read_solutions(path)
        place = {nbgrader(cell).get("grade_id"): k for k, cell in enumerate(notebook.cells)}
        questions = {}
        for name, k in place.items():
            if nbgrader(notebook.cells[k]).get("solution"):
                if f"{name}-check" not in place:
                    raise ValueError(f"{path.name}: answer {name!r} has no cell {name}-check")
                check = place[f"{name}-check"]
                points = nbgrader(notebook.cells[check]).get("points")
                if not isinstance(points, int):
                    raise ValueError(f"{path.name}: the cell {name}-check has no points")
                questions[name] = Question(find(name), k, check, points)
        digest = hashlib.sha256(path.read_bytes())
        modules = Path(checks.__file__).parent.glob(f"lesson_{path.stem.split('_')[0]}[._]*")
        for module in [Path(inputs.__file__), *sorted(modules)]:
            digest.update(module.read_bytes())
        return cls(path.stem, notebook, questions, digest.hexdigest())

    @classmethod
    def of_nothing(cls) -> "Reference":
        """For files that do not tell their lesson: no questions."""
        return cls("unknown", nbformat.v4.new_notebook(), {}, "")

    def solution(self, name: str) -> str:
        """The reference's own answer."""
        return self.notebook.cells[self.questions[name].answer].source


@dataclass
class Submission:
    """What was taken from a file: answers by the name of their exercise, and what was odd."""

    answers: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Returns the cells of a notebook that may hold anything.

    Raises:
        ValueError: it is no notebook; the message is fit for a report.
    """
    if path.is_symlink() or not path.is_file():
        raise ValueError("it is not a plain file")
    size = path.stat().st_size
    if size > FILE_BYTES:
        raise ValueError(f"it has {size:,} bytes; at most {FILE_BYTES:,} are read")
    try:
        content = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError:
        raise ValueError("it is not in UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise ValueError("it is not a notebook of format 4: it has no list of cells")
    return [cell for cell in cells if isinstance(cell, dict)]


def grade_id(cell: dict[str, Any]) -> str | None:
    """The `grade_id` of a cell that may hold anything."""
    metadata = cell.get("metadata")
    of_nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = of_nbgrader.get("grade_id") if isinstance(of_nbgrader, dict) else None
    return name if isinstance(name, str) else None


def take(cells: Sequence[dict[str, Any]], reference: Reference) -> Submission:
    """Takes the answers to a reference's questions, by `grade_id`, else by cell id."""
    taken = Submission()
    for name, question in reference.questions.items():
        answer, check = (reference.notebook.cells[k] for k in (question.answer, question.check))
        sources = _sources(cells, name, answer.id)
        if not sources:
            taken.remarks.append(f"{name}: the answer cell is missing")
        elif len(set(sources)) > 1:
            taken.remarks.append(f"{name}: there are {len(sources)} different answer cells")
        elif fault := _unusable(sources[0]):
            taken.remarks.append(f"{name}: the answer {fault}")
        else:
            taken.answers[name] = _without_markers(sources[0])
            if taken.answers[name] != sources[0]:
                taken.remarks.append(f"{name}: nbval markers in the answer were removed")
        if _sources(cells, f"{name}-check", check.id) != [check.source]:
            taken.remarks.append(f"{name}: the check cell was altered; the reference's is used")
    taken.remarks += _other_changes(cells, reference)
    return taken


def _other_changes(cells: Sequence[dict[str, Any]], reference: Reference) -> list[str]:
    """What was done to the code cells that are neither answers nor checks."""
    ids = {cell.id for cell in reference.notebook.cells if nbgrader(cell)}
    given = [
        c.source for c in reference.notebook.cells if c.cell_type == "code" and not nbgrader(c)
    ]
    mine = [
        _source(cell)
        for cell in cells
        if cell.get("cell_type") == "code" and not grade_id(cell) and cell.get("id") not in ids
    ]
    gone = sum(source not in mine for source in given)
    new = sum(bool(source.strip()) and source not in given for source in mine)
    remarks = [f"code cells of the reference that were altered or removed, and are used: {gone}"]
    remarks += [f"code cells that are not the reference's, and are not run: {new}"]
    return [remark for remark, n in zip(remarks, (gone, new), strict=True) if n]


def spliced(reference: Reference, name: str, answer: str, expected: str) -> NotebookNode:
    """Returns a notebook with one answer, its check, and all that comes before.

    The earlier exercises have the reference's answers and no checks, so that a crash in one of them
    costs nothing here.

    Args:
        reference: the solutions.
        name: of the exercise.
        answer: the source of the answer cell.
        expected: what the check has to print.
    """
    question = reference.questions[name]
    notebook = copy.deepcopy(reference.notebook)
    kept = []
    for k, cell in enumerate(notebook.cells[: question.check + 1]):
        if cell.cell_type != "code" or (nbgrader(cell).get("grade") and k != question.check):
            continue
        cell.outputs, cell.execution_count = [], None
        if k == question.answer:
            cell.source = answer
        if k == question.check:
            cell.execution_count = 1
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=expected)]
        kept.append(cell)
    notebook.cells = kept
    return notebook


def is_untouched(answer: str, reference: Reference, name: str) -> bool:
    """Whether an answer is still the stub."""
    return answer.split() == stub(reference.solution(name)).split()


def for_a_person(answer: str, reference: Reference, name: str) -> list[str]:
    """Names in an answer that a person should look at: the package's own version, or a way out."""
    given = _names(stub(reference.solution(name)))
    suspects = {*reference.questions[name].exercise.own, *OPENERS}
    return sorted((_names(answer) - given) & suspects)


def _names(source: str) -> set[str]:
    source = unicodedata.normalize("NFKC", source)  # as Python reads names
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError, ValueError):
        return set(re.findall(r"\w+", source))  # magics, or no Python: comments count too
    return {token.string for token in tokens if token.type == tokenize.NAME}


def _sources(cells: Sequence[dict[str, Any]], name: str, cell_id: str) -> list[str]:
    found = [cell for cell in cells if grade_id(cell) == name]
    found = found or [cell for cell in cells if cell.get("id") == cell_id and not grade_id(cell)]
    return [_source(cell) if cell.get("cell_type") == "code" else "" for cell in found]


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        return "".join(source)
    return source if isinstance(source, str) else ""


def _unusable(source: str) -> str | None:
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        return "holds characters that are none"
    if size > ANSWER_BYTES:
        return f"has {size:,} bytes; at most {ANSWER_BYTES:,} are read"
    return None if source.strip() else "is empty, or no code cell"


def _without_markers(source: str) -> str:
    """Comments that nbval would obey are emptied; see `nbval.plugin.find_comment_markers`."""
    lines = [
        "#" if line.strip().lstrip("#").strip() in comment_markers else line
        for line in source.split("\n")
    ]
    return "\n".join(lines)
