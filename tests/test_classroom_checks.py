"""What holds for the exercises of every lesson."""

import io
import pkgutil

import pytest
import torch
from test_classroom_answers import RIGHT, WRONG

from ppo_toy.classroom import checks
from ppo_toy.classroom.check import transcript
from ppo_toy.classroom.exercise import Exercise, find, lesson_of
from ppo_toy.classroom.inputs import normal, random_mask, sizes, uniform

LESSONS = [module.name.removeprefix("lesson_") for module in pkgutil.iter_modules(checks.__path__)]
ALL = [exercise for lesson in LESSONS for exercise in lesson_of(f"{lesson}-").values()]
EXERCISES = [exercise for exercise in ALL if exercise.route]  # the open ones have no right answer

# A letter for each axis of each exercise's tensors, in the order of its arguments. The same letter
# is the same size, so a square matrix has one twice: a table of the words that follow words.
AXES = {
    "01-brake": "BTV BTV",
    "01-objective": "V V V",
    "01-which-beta": "V V V",
    "02-batch-kl": "BTV BTV BT",
    "02-who-drew": "V V",
    "02-which-fault": "V V",
    "03-batch-gradient": "V V B B",
    "03-form-a": "BT BT B",
    "03-omission": "V V V V V",
    "03b-clamped": "NV NV",
    "03b-which": "V VV V VV NV",
    "03b-dropped": "V VV VV",
    "04-left-to-earn": "V V V",
    "04-diagnose": "G G G",
    "04-controller": "BT BT",
    "05-to-go": "B BT BT",
    "05-gae": "T T",
    "05-dropped": "V V V V",
    "06-left": "BT BT",
    "06-whose-kl": "NE",
    "06-anchors": "V V V B B",
    "06b-follow-up": "BT B BT BT B",
    "06b-learn-from": "BT BT BT BT",
    "06b-fault": "BT BT B BT BT BT",
    "07-lost": "BTV BTV BTV BT",
    "07-attention": "BND BND BN",
    "07-loss": "BNV BN BT",
    "08-loss": "N N N N",
    "08-scale": "GN K",
    "08-unit": "N N",
    "09-surrogate": "BT BT B BT",
    "09-which-step": "G GS GS GS",
    "09-two-rulers": "PN PN PN",
    "10-too-far": "N N K",
    "10-pot": "N N",
    "10-stop": "RS RS",
    "11-mend": "BT BT B BT",
    "11-temperature": "V NV",
    "11-habits": "NS NS NS",
}

every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
open_or_not = pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.name)


@open_or_not
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
    told = {tuple(transcript(exercise.route, cases)): None}
    for message, mistake in exercise.mistakes.items():
        held = exercise.held(mistake, cases[0])
        lines = tuple(transcript(held, cases))
        assert lines not in told, f"{message!r} looks like {told[lines]!r}"
        told[lines] = message
    assert exercise.fault(held, cases).splitlines()[0] == message


@every_exercise
def test_axes_that_stand_for_different_things_have_different_sizes(exercise):
    """Or an answer that divides by, or adds up along, the wrong one could pass."""
    for case in exercise.cases(0):
        tensors = [x for x in case.arguments.values() if isinstance(x, torch.Tensor)]
        sizes = {}
        for axes, tensor in zip(AXES[exercise.name].split(), tensors, strict=True):
            for axis, size in zip(axes, tensor.shape, strict=True):
                assert sizes.setdefault(axis, size) == size
        assert len(set(sizes.values())) == len(sizes)


@every_exercise
def test_every_axis_has_another_size_in_another_case(exercise):
    """Or an answer that knows a size by heart could pass."""
    seen = {}
    for case in exercise.cases(0):
        tensors = [x for x in case.arguments.values() if isinstance(x, torch.Tensor)]
        for axes, tensor in zip(AXES[exercise.name].split(), tensors, strict=True):
            for axis, size in zip(axes, tensor.shape, strict=True):
                seen.setdefault(axis, set()).add(size)
    assert not {axis for axis, sizes in seen.items() if len(sizes) == 1}


@every_exercise
def test_it_knows_five_mistakes_and_says_each_in_one_line(exercise):
    assert len(exercise.mistakes) >= 5
    assert all("\n" not in message and len(message) < 90 for message in exercise.mistakes)


@open_or_not
def test_two_right_answers_and_five_wrong_ones_are_tried_on_it(exercise):
    assert [name for name, _ in RIGHT].count(exercise.name) >= 2
    assert [name for name, *_ in WRONG].count(exercise.name) >= 5


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


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (lambda x: x.sum(), "expected 2 things (number, array [3]), yours 1 number"),
        (lambda x: x, "expected 2 things (number, array [3]), yours 1 array [3]"),
        (lambda x: (), "expected 2 things (number, array [3]), yours nothing"),
        (lambda x: list(x), "expected 2 things (number, array [3]), yours 3 numbers"),
        (lambda x: (x.sum(), x[:2]), "yours 2 things (number, array [2])"),
        (lambda x: (x.sum(), x, x.sum()), "yours 3 things (number, array [3], number)"),
    ],
)
@pytest.mark.parametrize("differentiate", [(), ("x",)])
def test_too_few_and_too_many_things_are_counted(answer, verdict, differentiate):
    exercise = Exercise(
        name="00-sum",
        draw=lambda generator, k: {"x": normal(3, generator=generator)},
        route=lambda x: (x.sum(), x),
        differentiate=differentiate,
    )
    fault = exercise.fault(answer, exercise.cases(seed=0))
    assert fault.startswith("the shape is not right: expected")
    assert fault.splitlines()[0].endswith(verdict)


def test_one_number_is_told_from_several():
    exercise = Exercise(
        name="00-two",
        draw=lambda generator, k: {"x": uniform(1, 2, generator)},
        route=lambda x: (x, 2 * x),
    )
    fault = exercise.fault(lambda x: x, exercise.cases(seed=0))
    headline, case, shown = fault.splitlines()
    assert headline == "the shape is not right: expected 2 numbers, yours 1 number"
    assert case == "case 1 was called with"
    assert shown.startswith("  x = 1.")


def test_a_random_mask_has_one_row_of_each_length():
    masks = [random_mask(3, 4, torch.Generator().manual_seed(k)) for k in range(9)]
    for mask in masks:
        assert mask.shape == (3, 4)
        assert sorted(mask.sum(dim=1).tolist()) == [2, 3, 4]
        assert not (mask[:, 1:] & ~mask[:, :-1]).any()  # padding stands behind
    assert len({tuple(mask.sum(dim=1).tolist()) for mask in masks}) > 1


def test_a_uniform_number_lies_between_its_bounds():
    generator = torch.Generator().manual_seed(0)
    assert all(0.3 <= uniform(0.3, 0.4, generator) <= 0.4 for _ in range(100))


def test_sizes_differ_from_each_other_and_from_those_of_the_next_case():
    for n in range(1, 5):
        for k in range(4):
            here, there = sizes(k, n, low=3), sizes(k + 1, n, low=3)
            assert len(set(here)) == n
            assert min(here) >= 3
            assert all(a != b for a, b in zip(here, there, strict=True))
