"""An exercise with no stored answer: what an answer gives is judged by the truth.

In the cage the check prints numbers; outside they are read and judged. Whatever else was printed
counts for nothing.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppo_toy.classroom.check import Case, CheckFailed, transcript

LINE = re.compile(r"case 1, (\w+) \[([\d, ]*)\]: (.*)")


@dataclass(frozen=True)
class OpenExercise:
    """One open exercise.

    Attributes:
        name: its id, as of an `Exercise`.
        ask: one of `probe`'s functions: from the answer and a seed to named numbers.
        judge: from the seed and these numbers, by name, to one sentence: what is not yet so; or
            None.
        right: what the check says if there is none.
        own: as of an `Exercise`.
    """

    name: str
    ask: Callable[..., list[tuple[str, Tensor]]]
    judge: Callable[..., str | None]
    right: str
    own: tuple[str, ...] = ()
    route: ClassVar[None] = None  # there is no answer to compare with

    def cases(self, seed: int) -> list[Case]:
        """Returns the one case: a seed."""
        return [Case({"seed": seed ^ zlib.crc32(self.name.encode())}, ask=self.ask)]

    def fault(self, answer: Any, cases: Sequence[Case]) -> str | None:
        """Returns what is not yet so, or None."""
        __tracebackhide__ = True
        try:
            return self.diagnosis(transcript(answer, cases), cases)
        except NotImplementedError:
            return "this is not written yet"
        except CheckFailed as failure:
            return str(failure)

    def diagnosis(self, lines: Sequence[str], cases: Sequence[Case]) -> str | None:
        """Judges what was printed; numbers that are missing, or are none, are an error."""
        numbers = {}
        for name, shape, shown in (m.groups() for m in map(LINE.fullmatch, lines) if m):
            values = torch.tensor([float(x) for x in shown.split()], dtype=torch.float64)
            numbers[name] = values.view([int(n) for n in shape.split(",") if n])
        return self.judge(cases[0].arguments["seed"], **numbers)
