"""A submission's answers, and what they need, put into a copy of the reference.

With an answer go those of the learner's own cells whose names it uses. Whatever else a submission
holds is ignored, or named in the report where it differs from the reference.
"""

import copy
import hashlib
import io
import re
import tokenize
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ppo_toy.classroom import checks, inputs, probe
from ppo_toy.classroom.cells import code, find_cells, grade_id, unusable, without_markers
from ppo_toy.classroom.exercise import Exercise, find
from ppo_toy.classroom.helpers import needed
from ppo_toy.classroom.open_ended import OpenExercise
from ppo_toy.classroom.release import nbgrader, read_solutions, stub

# Names in an answer that a person may look at: ways to solutions, and out of the function.
OPENERS = """ppo_toy classroom sys os subprocess socket ctypes inspect gc importlib __import__ open
    eval exec compile getattr globals vars get_ipython pathlib shutil signal threading builtins
    pkgutil runpy linecache __builtins__ __dict__ __globals__ __subclasses__
    __getattribute__""".split()


@dataclass(frozen=True)
class Question:
    """One exercise of a reference notebook: its answer cell's number, its check's, its points."""

    exercise: Exercise | OpenExercise
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
        for module in [Path(inputs.__file__), Path(probe.__file__), *sorted(modules)]:
            digest.update(module.read_bytes())
        return cls(path.stem, notebook, questions, digest.hexdigest())

    @classmethod
    def of_nothing(cls) -> "Reference":
        """For files that do not tell their lesson: no questions."""
        return cls("unknown", nbformat.v4.new_notebook(), {}, "")

    @property
    def points(self) -> dict[str, int]:
        """What each exercise is worth."""
        return {name: question.points for name, question in self.questions.items()}

    def solution(self, name: str) -> str:
        """The reference's own answer."""
        return self.notebook.cells[self.questions[name].answer].source


@dataclass
class Submission:
    """What was taken from a file.

    Attributes:
        answers: by the name of their exercise.
        helpers: the learner's own cells that an answer uses, by the same name.
        remarks: what was odd.
    """

    answers: dict[str, str] = field(default_factory=dict)
    helpers: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def take(cells: Sequence[dict[str, Any]], reference: Reference) -> Submission:
    """Takes the answers to a reference's questions, by `grade_id`, else by cell id."""
    taken, places = Submission(), {}
    for name, question in reference.questions.items():
        answer, check = (reference.notebook.cells[k] for k in (question.answer, question.check))
        found = find_cells(cells, name, answer.id)
        sources = [code(cells[k]) for k in found]
        if not sources:
            taken.remarks.append(f"{name}: the answer cell is missing")
        elif len(set(sources)) > 1:
            taken.remarks.append(f"{name}: there are {len(sources)} different answer cells")
        elif fault := unusable(sources[0]):
            taken.remarks.append(f"{name}: the answer {fault}")
        else:
            taken.answers[name], places[name] = without_markers(sources[0]), found[0]
            if taken.answers[name] != sources[0]:
                taken.remarks.append(f"{name}: nbval markers in the answer were removed")
        tried = [code(cells[k]) for k in find_cells(cells, f"{name}-check", check.id)]
        if tried != [check.source]:
            taken.remarks.append(f"{name}: the check cell was altered; the reference's is used")
    _take_others(taken, places, cells, reference)
    return taken


def _take_others(
    taken: Submission, places: dict[str, int], cells: Sequence[dict[str, Any]], reference: Reference
) -> None:
    """Takes the learner's own cells that an answer uses, and remarks on what else was changed."""
    graded = {c.id: nbgrader(c)["grade_id"] for c in reference.notebook.cells if nbgrader(c)}
    given = [
        c.source for c in reference.notebook.cells if c.cell_type == "code" and c.id not in graded
    ]
    others = {
        k: code(cell)
        for k, cell in enumerate(cells)
        if (grade_id(cell) or graded.get(str(cell.get("id")))) not in graded.values()
    }
    added = {k: source for k, source in others.items() if source.strip() and source not in given}
    own = {k: source for k, source in added.items() if not unusable(source)}
    own |= {places[name]: answer for name, answer in taken.answers.items()}
    for name, answer in taken.answers.items():
        helpers = needed(answer, {k: x for k, x in own.items() if k < places[name]})
        taken.helpers[name] = [without_markers(helper) for helper in helpers.values()]
        added = {k: x for k, x in added.items() if k not in helpers}
        if along := ", ".join(str(k + 1) for k in helpers if k not in places.values()):
            taken.remarks.append(f"{name}: cells that it uses were taken along: {along}")
    known = {id for name in reference.questions for id in (name, f"{name}-check")}
    if strangers := {str(name) for cell in cells if (name := grade_id(cell))} - known:
        taken.remarks.append(f"of another edition of the exercises: {', '.join(sorted(strangers))}")
    gone = sum(source not in others.values() for source in given)
    if gone:
        taken.remarks.append(
            f"code cells of the reference that were altered or removed, and are used: {gone}"
        )
    if left := ", ".join(str(k + 1) for k in added):
        taken.remarks.append(
            f"cells that no answer uses, no plain Python, or too long, not run: {left}"
        )


def spliced(
    reference: Reference, name: str, answer: str, expected: str | None, helpers: Sequence[str] = ()
) -> NotebookNode:
    """Returns a notebook with one answer and its check, and what the reference gives before.

    The reference's answers to other exercises stay out, so that no answer can read them.

    Args:
        reference: the solutions.
        name: of the exercise.
        answer: the source of the answer cell.
        expected: what the check has to print; None where it is judged afterwards.
        helpers: sources of cells that run before the answer.
    """
    question = reference.questions[name]
    notebook = copy.deepcopy(reference.notebook)
    kept = []
    for k, cell in enumerate(notebook.cells[: question.check + 1]):
        mine = k in (question.answer, question.check)
        if cell.cell_type != "code" or (nbgrader(cell) and not mine):
            continue
        cell.outputs, cell.execution_count = [], None
        if k == question.answer:
            kept += [_helper(source, f"{name}-helper-{n}") for n, source in enumerate(helpers)]
            cell.source = answer
        if k == question.check and expected is None:
            cell.metadata["tags"] = ["nbval-ignore-output"]
        elif k == question.check:
            cell.execution_count = 1
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=expected)]
        kept.append(cell)
    notebook.cells = kept
    return notebook


def _helper(source: str, name: str) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={"nbgrader": {"grade_id": name}})


def is_untouched(answer: str, reference: Reference, name: str) -> bool:
    """Whether an answer is still the stub."""
    return answer.split() == stub(reference.solution(name)).split()


def for_a_person(answer: str, reference: Reference, name: str) -> list[str]:
    """Names in an answer that a person may look at: the package's own version, or a way out.

    A hint, and easily avoided: it proves nothing, and neither does its absence.
    """
    given = _names(stub(reference.solution(name)))
    suspects = {*reference.questions[name].exercise.own, *OPENERS}
    return sorted((_names(answer) - given) & suspects)


def _names(source: str) -> set[str]:
    source = unicodedata.normalize("NFKC", source)  # as Python reads names
    source = re.sub(r"\.\s*(eval|exec|compile|open)\b", "", source)  # methods of that name
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError, ValueError):
        return set(re.findall(r"\w+", source))  # magics, or no Python: comments count too
    return {token.string for token in tokens if token.type == tokenize.NAME}
