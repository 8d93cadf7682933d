"""An exercise with no stored answer: the numbers that an answer gives are judged by the truth."""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppo_toy.classroom.check import Case
from ppo_toy.classroom.exercise import Exercise

LINE = re.compile(r"case 1, (\w+) \[([\d, ]*)\]: (.*)")


@dataclass(frozen=True)
class OpenExercise:
    """One open exercise; `name` and `own` as of an `Exercise`.

    Attributes:
        ask: one of `probe`'s functions: from the answer and a seed to named numbers.
        judge: from the seed and these numbers to what is not yet so, one sentence, or None.
        right: what the check says if there is none.
    """

    name: str
    ask: Callable[..., dict[str, Tensor]]
    judge: Callable[..., str | None]
    right: str
    own: tuple[str, ...] = ()
    route: ClassVar[None] = None  # there is no answer to compare with

    def cases(self, seed: int) -> list[Case]:
        """Returns the one case: a seed."""
        return [Case({"seed": seed ^ zlib.crc32(self.name.encode())}, ask=self.ask)]

    fault = Exercise.fault

    def diagnosis(self, lines: Sequence[str], cases: Sequence[Case]) -> str | None:
        """Judges the numbers that were printed, and no other word; any error says they are none.

        What is printed twice is an error too: one of the two is not the check's.
        """
        numbers = {}
        for name, shape, shown in (m.groups() for m in map(LINE.fullmatch, lines) if m):
            values = torch.tensor([float(x) for x in shown.split()], dtype=torch.float64)
            if name in numbers:
                raise ValueError(f"{name} was printed twice")
            numbers[name] = values.view([int(n) for n in shape.split(",") if n])
        return self.judge(cases[0].arguments["seed"], **numbers)
