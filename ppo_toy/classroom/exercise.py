"""An exercise's solution as the checks know it: random inputs, a right route, known mistakes."""

import itertools
import math
import re
import textwrap
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppo_toy.classroom.check import DECIMALS, WIDTH, Case, CheckFailed, outcome, transcript
from ppo_toy.classroom.check import find as find  # who asks here is served
from ppo_toy.classroom.check import lesson_of as lesson_of

MAX_DRAWS = 10_000
# Distance from the next rounding boundary, in units of the last decimal shown. A right answer
# computed in single precision has errors of about 1e-6 = 0.01 units.
CLEARANCE = 0.02


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: its id, `NN-word`: the lesson's number and a word.
        draw: returns the arguments of case k by name, from a CPU generator and k = 0, 1, ... The
            sizes differ from case to case, and some k stand for hard numbers; k = 0 is the
            simplest case. Everything is in double precision and can be pickled.
        route: the right answer by another way than the reference solution's.
        differentiate: names of the tensors for which the gradient counts too.
        constants: names of the tensors that no gradient may reach.
        mistakes: wrong answers, each under the message that a learner who makes it will read. They
            are called with detached constants; what reaches these is found out without them.
        own: names of the package's functions that do what the exercise asks for. An answer that
            uses one of them is named in the report.
        n_cases: how many random cases an answer is tried on.
    """

    name: str
    draw: Callable[[torch.Generator, int], dict[str, Any]]
    route: Callable[..., Any]
    differentiate: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    mistakes: dict[str, Callable[..., Any]] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    n_cases: int = 4

    @property
    def looked_at(self) -> tuple[str, ...]:
        """Names of the tensors whose gradient is looked at."""
        return self.differentiate + self.constants

    def cases(self, seed: int) -> list[Case]:
        """Returns random cases, none of which has a number near a rounding boundary.

        Raises:
            ValueError: none could be found; too many numbers are returned.
        """
        mixed = seed + zlib.crc32(self.name.encode())  # exercises get different numbers
        generator = torch.Generator().manual_seed(mixed)
        kept: list[Case] = []
        for _ in range(MAX_DRAWS):
            case = Case(self.draw(generator, len(kept)), self.looked_at)
            found = outcome(self.route, case)
            if all(_clear(numbers) for _, numbers in found):
                due = (x.shape for what, x in found if what.startswith("returned"))
                kept.append(replace(case, shapes=tuple(tuple(shape) for shape in due)))
            if len(kept) == self.n_cases:
                return kept
        raise ValueError(
            f"{self.name}: {MAX_DRAWS} draws gave {len(kept)} of {self.n_cases} cases without a "
            "number near a rounding boundary; let the answer return fewer than 100 numbers"
        )

    def fault(self, answer: Callable[..., Any], cases: Sequence[Case]) -> str | None:
        """Returns what is wrong with an answer, or None; see `diagnosis`."""
        __tracebackhide__ = True
        try:
            return self.diagnosis(transcript(answer, cases), cases)
        except NotImplementedError:
            return "this is not written yet"
        except CheckFailed as failure:
            return str(failure)

    def diagnosis(self, lines: Sequence[str], cases: Sequence[Case]) -> str | None:
        """Returns what is wrong with an answer that gave these lines on these cases, or None.

        The first line names the fault. Then come the first number that differs, and its case.
        """
        lines, right = list(lines), transcript(self.route, cases)
        if lines == right:
            return None
        return "\n".join([self._headline(lines, right, cases), *_where(lines, right, cases)])

    def _headline(self, lines: list[str], right: list[str], cases: Sequence[Case]) -> str:
        told = {}
        for message, mistake in self.mistakes.items():
            told[message] = transcript(self.held(mistake, cases[0]), cases)
            if lines == told[message]:
                return message
        leaks = [name for name in self.constants if _flows(lines, name)]
        for message, them in told.items():
            if _sound(lines, lines) == _sound(them, lines) != _sound(right, lines):
                return f"{message}; and detach {' and '.join(leaks)}" if leaks else message
        labels, due = [_label(line) for line in lines], [_label(line) for line in right]
        if labels != due:
            return f"the shape is not right: {_wrong_shape(labels, due)}"
        if _values(lines) != _values(right):
            return f"the value is not right{_slip(_values(lines), _values(right))}"
        if leaks:
            return f"a gradient reaches {' and '.join(leaks)}: detach what is constant"
        lost = [x for x in self.differentiate if _flows(right, x) and not _flows(lines, x)]
        if lost:
            return f"the values are right, but no gradient reaches {' and '.join(lost)}"
        return f"the gradient is not right{_slip(lines, right)}"

    def held(self, mistake: Callable[..., Any], case: Case) -> Callable[..., Any]:
        """Returns a mistake that is given the constants of such a case detached."""
        fixed = [name in self.constants for name in case.arguments]

        def answer(*given: Any) -> Any:
            return mistake(*(x.detach() if f else x for x, f in zip(given, fixed, strict=True)))

        return answer


def _clear(numbers: Tensor) -> bool:
    units = numbers[numbers.isfinite()] * 10**DECIMALS
    return bool(((units - units.floor() - 0.5).abs() > CLEARANCE).all())


def _label(line: str) -> str:
    return line.partition(":")[0]


def _numbers(line: str) -> list[str]:
    return line.partition(": ")[2].split()


def _values(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if ", returned" in _label(line)]


def _sound(lines: Sequence[str], answered: Sequence[str]) -> list[str]:
    """The values where an answer has numbers: one that forgot a guard has other faults, too."""
    both = zip(_values(lines), _values(answered), strict=False)
    return [line for line, own in both if not {"nan", "inf", "-inf"} & set(_numbers(own))]


def _flows(lines: Sequence[str], name: str) -> bool:
    """Whether the gradient of an argument is anywhere other than 0."""
    of_name = [line for line in lines if f"gradient of {name} [" in line]
    return any(set(_numbers(line)) - {f"{0:.{DECIMALS}f}"} for line in of_name)


_SLIPS = {  # what became of every number that is not right
    "its sign is": lambda x: -x,
    "it can be negative; take no abs": abs,
    "it can be negative; do not cut it off at 0": lambda x: max(x, 0),
}


def _slip(lines: Sequence[str], right: Sequence[str]) -> str:
    """What the numbers that are not right have in common."""
    both = zip(lines, right, strict=True)
    pairs = [(x, y) for got, due in both for x, y in zip(*map(_numbers, (got, due)), strict=True)]
    pairs = [(float(x), float(y)) for x, y in pairs if x != y]
    if any(math.isnan(x) for x, _ in pairs):
        return ": nan comes of 0 · log 0, 0 · ∞, ∞ − ∞ and 0 / 0"
    if any(math.isinf(x) for x, _ in pairs):
        return ": ∞ comes of log 0 and of exp(800)"
    near, like = 2 * 10**-DECIMALS, []
    for text, slip in _SLIPS.items():
        if all(abs(x - slip(y)) < near <= abs(y - slip(y)) for x, y in pairs):
            like.append(text)
    return f": {', or '.join(like)}" if like else ""


def _where(lines: Sequence[str], right: Sequence[str], cases: Sequence[Case]) -> list[str]:
    """The first number that differs, where there is one, and the arguments of its case."""
    got, wanted = _first_difference(lines, right)
    label, told = _label(wanted), []
    if label == _label(got):
        pairs = enumerate(zip(_numbers(got), _numbers(wanted), strict=True))
        i, (yours, due) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        what, shape = label[:-1].split(" [")
        at = [int(x) for x in np.unravel_index(i, [int(n) for n in shape.split(", ") if n])]
        place = f"{what} at {at}" if at else what
        told = [f"{place}: expected {due}, yours {yours}"]
    k = int(re.findall(r"case (\d+)", f"{wanted} {got}")[0])
    told.append(f"case {k} was called with")
    return told + [_shown(name, x) for name, x in cases[k - 1].arguments.items()]


def _shown(name: str, argument: Any) -> str:
    indent = {"initial_indent": "  ", "subsequent_indent": "    "}
    text = f"{name} = {_text(argument)}"
    return textwrap.fill(text, WIDTH, **indent, break_long_words=False, break_on_hyphens=False)


def _text(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return _text(argument.tolist())
    if isinstance(argument, list):
        return f"[{', '.join(_text(x) for x in argument)}]"
    return f"{argument:.8g}" if isinstance(argument, float) else str(argument)


def _wrong_shape(labels: Sequence[str], due: Sequence[str]) -> str:
    """What should have been returned, and what was, in the first case where they differ."""
    came = _shapes(labels)
    for case, wanted in _shapes(due).items():
        got = came.get(case, [])
        if got != wanted:
            return f"expected {_in_words(wanted)}, yours {_in_words(got)}"
    got, wanted = _first_difference(labels, due)
    return f"expected {wanted}, yours {got}"


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
