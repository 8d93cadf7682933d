"""The checks against answers as learners write them; `answers` has a module for each lesson."""

import pkgutil
from functools import cache, partial
from importlib import import_module

import answers
import pytest
import torch

from ppo_toy.classroom.check import find, transcript

LESSONS = [
    import_module(f"answers.{found.name}") for found in pkgutil.iter_modules(answers.__path__)
]
RIGHT = [
    (name, answer) for lesson in LESSONS for name, them in lesson.RIGHT.items() for answer in them
]
WRONG = [
    (name, *wrong) for lesson in LESSONS for name, them in lesson.WRONG.items() for wrong in them
]


@cache
def cases_of(name):
    return find(name).cases(seed=1)


def fault(name, answer):
    return find(name).fault(answer, cases_of(name))


def accepted(name, answer):
    return transcript(answer, cases_of(name)) == transcript(find(name).route, cases_of(name))


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_in_other_styles_are_accepted(name, answer):
    assert fault(name, answer) is None


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_rejected_and_told_why(name, answer, message):
    assert message in fault(name, answer)


# Small inputs on which wrong answers used to pass, with what is right on paper: by exercise.
ON_PAPER = {
    "01-which-beta": (
        [[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 4, 1 / 2], [0.0, 1, 2]],
        (),
        [1.4427],  # 1 / log 2
    ),
    "06b-learn-from": (
        [
            [[1.0, 0, 1, 0, 1]],
            [[2.0, 9, 3, 9, 4]],
            [[0.0, 0, 0, 0, 5]],
            [[True, False] * 2 + [True]],
        ],
        (1, 0.5),
        [-1, 0, -2, 0, 2, 1, 0, 1, 0, 6],
    ),
    "06b-fault": (
        [
            [[1.0, 1, 0, 1]] * 4,
            [[2.0, 3, 4, 5]] * 4,
            [6.0] * 4,
            [[False] * 4] * 4,
            [[False, True, False, False]] * 4,
            [[3.0, 2, 0, 2], [1, -2, 0, 2], [3.25, 2.5, 0, 2], [3.5, 3, 0, 2]],
        ],
        (1, 0.5),
        [0, 1, 3, 4],
    ),
    # A: three of four right at margins of 4; B: half of them, at margins of 1/2
    "08-scale": (
        [[[4.0, 4, 4, -4], [0.5, -0.5, 0.5, -0.5]], [2, 0.25, 1, 0.5]],
        (),
        [0.25, 0.25, 0],
    ),
    "02-who-drew": ([[1.0, 0], [2.0, 0]], (0.5,), [-0.0671, 0.0826]),
    "10-stop": ([[[0, 1, 0.5, 3]], [[0.0, 2, 4, 1]]], (2,), [2.6, 2.2]),
}


@pytest.mark.parametrize("name", ON_PAPER)
def test_the_right_route_is_right_on_paper(name):
    tensors, numbers, right = ON_PAPER[name]
    found = things(find(name).route(*map(torch.tensor, tensors), *numbers))
    found = torch.cat([torch.as_tensor(x).double().flatten() for x in found])
    torch.testing.assert_close(found, torch.tensor(right).double(), atol=5e-5, rtol=0)  # as printed


EXERCISES = {name: find(name) for name, _ in RIGHT if find(name).route}  # not the open ones
every_exercise = pytest.mark.parametrize("name", EXERCISES)

# What can be returned and is never below 0, and 1 where it is never above: by exercise, the things.
NEVER_NEGATIVE = {
    "01-brake": [0],
    "01-which-beta": [0],
    "02-batch-kl": [0, 1],
    "02-who-drew": [1],
    "02-which-fault": [0],
    "03-omission": [0, 1],
    "03b-which": [0],
    "03b-dropped": [0, 1],
    "04-left-to-earn": [1],
    "04-diagnose": [0, 1],
    "04-controller": [0],
    "06-left": [0],
    "06-whose-kl": [0],
    "06b-follow-up": [0],
    "06b-fault": [0],
    "07-lost": [0, 1],
    "07-attention": [0],
    "07-loss": [0],
    "08-loss": [0],
    "08-scale": [0, 1],
    "08-unit": [1, 2],
    "09-which-step": [0],
    "09-two-rulers": [1],
    "11-temperature": [0, 1],
    "11-habits": [0],
    "10-too-far": [1],
}


def things(returned):
    return list(returned) if isinstance(returned, tuple | list) else [returned]


def with_thing(exercise, k, change):
    """The right answer but for its k-th thing, which goes through `change` with the arguments."""

    def answer(*arguments):
        parts = [torch.as_tensor(x) for x in things(exercise.route(*arguments))]
        parts[k] = change(parts[k].double(), arguments)
        return parts

    return answer


def number_of_things(exercise):
    return len(things(exercise.route(*cases_of(exercise.name)[0].arguments.values())))


@every_exercise
def test_no_sign_is_lost_and_nothing_cut_off_unnoticed(name):
    exercise = EXERCISES[name]
    for k in range(number_of_things(exercise)):
        changes = [lambda x, _: -x, lambda x, _: 1.01 * x, lambda x, _: x + 0.01]
        if k not in NEVER_NEGATIVE.get(name, []):
            changes += [lambda x, _: x.abs(), lambda x, _: x.clamp(min=0)]
        for change in changes:
            assert not accepted(name, with_thing(exercise, k, change))


@every_exercise
def test_no_size_can_be_known_by_heart(name):
    exercise = EXERCISES[name]
    first = [
        x for x in cases_of(exercise.name)[0].arguments.values() if isinstance(x, torch.Tensor)
    ]
    for k in range(number_of_things(exercise)):
        for j, axis in {(j, axis) for j, x in enumerate(first) for axis in range(x.dim())}:

            def change(x, arguments, j=j, axis=axis):
                tensors = [y for y in arguments if isinstance(y, torch.Tensor)]
                return x * (tensors[j].shape[axis] / first[j].shape[axis])

            assert not accepted(name, with_thing(exercise, k, change))


@every_exercise
def test_an_argument_that_is_changed_in_place_is_named(name):
    exercise = EXERCISES[name]
    arguments = cases_of(exercise.name)[0].arguments
    for k, (argument, x) in enumerate(arguments.items()):
        if isinstance(x, torch.Tensor):

            def answer(*given, k=k):
                returned = exercise.route(*given)
                entry = given[k].detach()[:1]
                entry.copy_(~entry if entry.dtype == torch.bool else entry + 1)
                return returned

            assert fault(name, answer) == (
                f"it changes its argument {argument} in place: make a new tensor instead"
            )


def in_lists(x):
    return [*x] if x.dim() else x


@every_exercise
def test_lists_and_arrays_of_the_right_numbers_count_as_what_they_are(name):
    exercise = EXERCISES[name]

    def returned_as(form, *arguments):
        parts = [form(torch.as_tensor(x)) for x in things(exercise.route(*arguments))]
        return parts if len(parts) > 1 else parts[0]

    assert accepted(name, partial(returned_as, in_lists))
    if not exercise.looked_at:
        assert accepted(name, partial(returned_as, torch.Tensor.tolist))
        assert accepted(name, partial(returned_as, torch.Tensor.numpy))
