"""The checks against answers as learners write them; `answers` has a module for each lesson."""

import pkgutil
from importlib import import_module

import answers
import pytest

from ppo_toy.classroom.exercise import find

LESSONS = [
    import_module(f"answers.{found.name}") for found in pkgutil.iter_modules(answers.__path__)
]
RIGHT = [
    (name, answer) for lesson in LESSONS for name, them in lesson.RIGHT.items() for answer in them
]
WRONG = [
    (name, *wrong) for lesson in LESSONS for name, them in lesson.WRONG.items() for wrong in them
]


def fault(name, answer):
    exercise = find(name)
    return exercise.fault(answer, exercise.cases(seed=1))


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_in_other_styles_are_accepted(name, answer):
    assert fault(name, answer) is None


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_rejected_and_told_why(name, answer, message):
    assert message in fault(name, answer)
