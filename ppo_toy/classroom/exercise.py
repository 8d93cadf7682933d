"""An exercise's solution as the checks know it: random inputs, a right route, known mistakes."""

import importlib
import importlib.util
import itertools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppo_toy.classroom.check import DECIMALS, Case, CheckFailed, outcome, transcript

MAX_DRAWS = 10_000
# Distance from the next rounding boundary, in units of the last decimal shown. A right answer
# computed in single precision has errors of about 1e-6 = 0.01 units.
CLEARANCE = 0.02


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: its id, `NN-word`: the lesson's number and a word.
        draw: returns the arguments of one random case by name, from a CPU generator. All numbers
            are of order 1 and in double precision, and everything can be pickled.
        route: the right answer by another way than the reference solution's.
        differentiate: names of the arguments for which the gradient counts too; a tensor, or a
            module, which stands for its parameters.
        mistakes: wrong answers, each under the message that a learner who makes it will read.
        own: names of the package's functions that do what the exercise asks for. An answer that
            uses one of them is named in the report.
        n_cases: how many random cases an answer is tried on.
    """

    name: str
    draw: Callable[[torch.Generator], dict[str, Any]]
    route: Callable[..., Any]
    differentiate: tuple[str, ...] = ()
    mistakes: dict[str, Callable[..., Any]] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    n_cases: int = 4

    def cases(self, seed: int) -> list[Case]:
        """Returns random cases, none of which has a number near a rounding boundary.

        Raises:
            ValueError: none could be found; too many numbers are returned.
        """
        mixed = seed + zlib.crc32(self.name.encode())  # exercises get different numbers
        generator = torch.Generator().manual_seed(mixed)
        kept = []
        for _ in range(MAX_DRAWS):
            case = Case(self.draw(generator), self.differentiate)
            if all(_clear(numbers) for _, numbers in outcome(self.route, case)):
                kept.append(case)
            if len(kept) == self.n_cases:
                return kept
        raise ValueError(
            f"{self.name}: {MAX_DRAWS} draws gave {len(kept)} of {self.n_cases} cases without a "
            "number near a rounding boundary; let the answer return fewer than 100 numbers"
        )

    def fault(self, answer: Callable[..., Any], cases: Sequence[Case]) -> str | None:
        """Returns what is wrong with an answer, or None."""
        try:
            return self.diagnosis(transcript(answer, cases), cases)
        except NotImplementedError:
            return "this is not written yet"
        except CheckFailed as failure:
            return str(failure)

    def diagnosis(self, lines: Sequence[str], cases: Sequence[Case]) -> str | None:
        """Returns what is wrong with an answer that gave these lines on these cases, or None."""
        lines, right = list(lines), transcript(self.route, cases)
        if lines == right:
            return None
        for message, mistake in self.mistakes.items():
            if lines == transcript(mistake, cases):
                return message
        labels, due = [_label(line) for line in lines], [_label(line) for line in right]
        if labels != due:
            return f"the shape is not right: {_wrong_shape(labels, due)}"
        got, wanted = _first_difference(lines, right)
        where, numbers = _label(wanted), _numbers(got)
        if ", returned " in where:
            return f"the value is not right: {where} is {_numbers(wanted)}; got {numbers}"
        if set(numbers.split()) == {f"{0:.{DECIMALS}f}"}:
            argument = where.partition("gradient of ")[2].split()[0]
            return f"the values are right, but no gradient reaches {argument}"
        return f"the gradient is not right: {where} is {_numbers(wanted)}; got {numbers}"


def find(name: str) -> Exercise:
    """Returns an exercise.

    Raises:
        ValueError: there is none of this name.
    """
    lesson = lesson_of(name)
    if name not in lesson:
        known = ", ".join(sorted(lesson)) or "none in this lesson"
        raise ValueError(f"there is no exercise {name!r}; known: {known}")
    return lesson[name]


def lesson_of(name: str) -> dict[str, Exercise]:
    """The exercises of the lesson whose number stands before the first dash of a name."""
    number = name.split("-")[0]
    module = f"ppo_toy.classroom.checks.lesson_{number}"
    if not number.isalnum() or not importlib.util.find_spec(module):
        return {}
    exercises = importlib.import_module(module).EXERCISES
    return {exercise.name: exercise for exercise in exercises}


def _clear(numbers: Tensor) -> bool:
    units = numbers[numbers.isfinite()] * 10**DECIMALS
    return bool(((units - units.floor() - 0.5).abs() > CLEARANCE).all())


def _label(line: str) -> str:
    return line.partition(":")[0]


def _numbers(line: str) -> str:
    return line.partition(": ")[2]


def _wrong_shape(labels: Sequence[str], due: Sequence[str]) -> str:
    """What should have been returned, and what was, in the first case where they differ."""
    came = _shapes(labels)
    for case, wanted in _shapes(due).items():
        got = came.get(case, [])
        if got != wanted:
            return f"it should return {_in_words(wanted)}; it returned {_in_words(got)}"
    got, wanted = _first_difference(labels, due)
    return f"expected {wanted}, got {got}"


def _shapes(labels: Sequence[str]) -> dict[str, list[str]]:
    """Of what was returned, by case; a single number's is []."""
    shapes: dict[str, list[str]] = {}
    for label in labels:
        case, returned, shape = label.partition(", returned ")
        if returned:
            shapes.setdefault(case, []).append("".join(shape.partition("[")[1:]))
    return shapes


def _in_words(shapes: Sequence[str]) -> str:
    """How many things, and which: "3 numbers", "2 things (number, array [3])"."""
    n, things = len(shapes), ["number" if x == "[]" else f"array {x}" for x in shapes]
    if n < 2:
        return f"1 {things[0]}" if things else "nothing"
    if set(things) == {"number"}:
        return f"{n} numbers"
    return f"{n} things ({', '.join(things)})"


def _first_difference(lines: Sequence[str], right: Sequence[str]) -> tuple[str, str]:
    """The first lines of two different lists that are not the same."""
    pairs = itertools.zip_longest(lines, right)
    got, wanted = next(pair for pair in pairs if pair[0] != pair[1])
    return "nothing" if got is None else got, "nothing more" if wanted is None else wanted
