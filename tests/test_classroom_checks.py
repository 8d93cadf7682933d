"""What holds for the exercises of every lesson."""

import io
import pkgutil

import pytest
import torch

from ppo_toy.classroom import checks
from ppo_toy.classroom.check import transcript
from ppo_toy.classroom.exercise import find, lesson_of

LESSONS = [module.name.removeprefix("lesson_") for module in pkgutil.iter_modules(checks.__path__)]
EXERCISES = [exercise for lesson in LESSONS for exercise in lesson_of(f"{lesson}-").values()]

every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)


@every_exercise
def test_its_name_begins_with_its_lesson_and_finds_it(exercise):
    assert exercise.name.split("-")[0] in LESSONS
    assert find(exercise.name) is exercise


@every_exercise
def test_the_same_seed_gives_the_same_cases_and_another_seed_others(exercise):
    first, again, other = (transcript(exercise.route, exercise.cases(s)) for s in (0, 0, 1))
    assert first == again
    assert first != other


@every_exercise
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_its_mistakes_are_mistakes_that_the_cases_tell_apart(exercise, seed):
    cases = exercise.cases(seed)
    for message, mistake in exercise.mistakes.items():
        assert exercise.fault(mistake, cases) == message


@every_exercise
def test_it_knows_five_mistakes_and_says_each_in_one_line(exercise):
    assert len(exercise.mistakes) >= 5
    assert all("\n" not in message and len(message) < 90 for message in exercise.mistakes)


@every_exercise
def test_its_cases_survive_the_way_into_the_cage(exercise):
    file = io.BytesIO()
    cases = exercise.cases(0)
    torch.save(cases, file)
    file.seek(0)
    lines = transcript(exercise.route, torch.load(file, weights_only=False))
    assert lines == transcript(exercise.route, cases)


@every_exercise
def test_single_precision_is_precise_enough(exercise):
    cases = exercise.cases(0)

    def rounded(*arguments):
        returned = exercise.route(*arguments)
        parts = returned if isinstance(returned, tuple | list) else [returned]
        return [torch.as_tensor(part).float() for part in parts]

    assert exercise.fault(rounded, cases) is None
