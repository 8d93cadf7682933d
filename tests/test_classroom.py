import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ppo_toy
from ppo_toy.classroom import exercise as exercise_module
from ppo_toy.classroom.check import HIDDEN, SEED, Case, CheckFailed, check, outcome, transcript
from ppo_toy.classroom.exercise import Exercise, find

CLASSROOM = Path(ppo_toy.__file__).parent / "classroom"


def draw(generator):
    a, b = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    return {"a": a, "b": b}


PRODUCT = Exercise(
    name="01-product",
    draw=draw,
    route=lambda a, b: a * b,
    differentiate=("a", "b"),
    mistakes={"b is squared": lambda a, b: a * b * b},
)


def fault(answer, of=PRODUCT):
    return of.fault(answer, of.cases(0))


@pytest.fixture
def product(monkeypatch):
    monkeypatch.setattr(exercise_module, "lesson_of", lambda name: {"01-product": PRODUCT})


@pytest.mark.usefixtures("product")
def test_a_right_answer_gets_one_line(capsys):
    check("01-product", lambda x, y: x * y)
    line = "ok  01-product: values and gradients are right on 4 random cases\n"
    assert capsys.readouterr().out == line


@pytest.mark.usefixtures("product")
def test_a_wrong_answer_raises_one_line_that_names_the_mistake():
    with pytest.raises(CheckFailed, match="^01-product: b is squared$") as caught:
        check("01-product", lambda a, b: a * b**2)
    assert caught.value._render_traceback_() == ["not yet  01-product: b is squared"]


@pytest.mark.usefixtures("product")
def test_an_error_in_an_answer_is_left_to_the_learner():
    with pytest.raises(ZeroDivisionError):
        check("01-product", lambda a, b: a / 0 if 1 / 0 else b)


@pytest.mark.usefixtures("product")
def test_the_seed_comes_from_the_environment(monkeypatch):
    seen = []

    def answer(a, b):
        seen.append(a[0].item())
        return a * b

    for seed in ("0", "0", "1"):
        monkeypatch.setenv(SEED, seed)
        check("01-product", answer)
    assert seen[:4] == seen[4:8]
    assert seen[4:8] != seen[8:]


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("seed", ["x", "-1", "1.5", ""])
def test_a_seed_that_is_no_number_is_named(monkeypatch, seed):
    monkeypatch.setenv(SEED, seed)
    with pytest.raises(ValueError, match=f"{SEED} is '{seed}'; it must be a whole number"):
        check("01-product", lambda a, b: a * b)


def test_an_unknown_exercise_is_named():
    for name in ("01-nothing", "99-nothing", "nothing", "", "../x", "01.x-y"):
        with pytest.raises(ValueError, match="there is no exercise"):
            find(name)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda a, b: None, "it returned None; is the `return` missing?"),
        (lambda a, b: "text", "it returned a str; numbers are wanted"),
        (lambda a, b: {"a": a}, "it returned a dict; numbers are wanted"),
        (lambda a, b: (a * b).sum(), "the shape is not right"),
        (lambda a, b: (a * b, a), "the shape is not right"),
        (lambda a, b: (), "the shape is not right"),
        (lambda a, b: a + b, "the value is not right"),
        (lambda a, b: float("nan") * a, "the value is not right"),
        (lambda a, b: (a * b).detach(), "but no gradient reaches a"),
        (lambda a, b: a * b.detach(), "but no gradient reaches b"),
        (lambda a, b: a * b + (b - b.detach()), "the gradient is not right"),
    ],
)
def test_what_is_not_in_the_table_is_described(answer, message):
    assert message in fault(answer)


def test_an_unwritten_answer_says_so():
    def answer(a, b):
        raise NotImplementedError

    assert fault(answer) == "this is not written yet"


def test_an_answer_that_writes_to_its_arguments_spoils_nothing():
    case = Case({"x": torch.ones(3)})
    assert transcript(lambda x: x.add_(1), [case]) == transcript(lambda x: x.add_(1), [case])
    assert case.arguments["x"].tolist() == [1, 1, 1]


def test_numbers_arrays_booleans_and_lists_of_them_are_shown():
    lines = transcript(lambda: [1, 0.5, True, torch.eye(1), (-0.00001,)], [Case({})])
    shown = [line.split(": ")[1] for line in lines]
    assert shown == ["1.0000", "0.5000", "1.0000", "1.0000", "0.0000"]


def test_a_module_stands_for_its_parameters():
    layer = nn.Linear(2, 1).double()
    case = Case({"layer": layer, "x": torch.ones(3, 2).double()}, ("layer",))
    found = outcome(lambda layer, x: layer(x), case)
    assert [what for what, _ in found] == ["returned", "gradient of layer", "gradient of layer"]
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_cases_keep_clear_of_rounding_boundaries():
    near = Exercise("01-near", lambda g: {"x": 0.12345}, lambda x: x)
    with pytest.raises(ValueError, match="01-near: .* let the answer return fewer"):
        near.cases(0)


def test_in_the_cage_nothing_is_judged_and_noise_is_no_output(tmp_path, monkeypatch, capsys):
    cases = PRODUCT.cases(5)
    torch.save({"01-product": cases}, tmp_path / "cases.pt")
    monkeypatch.setenv(HIDDEN, str(tmp_path / "cases.pt"))

    def wrong(a, b):
        print("noise")
        print("noise", file=sys.stderr)
        return a + b

    check("01-product", wrong)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == transcript(lambda a, b: a + b, cases)
    assert captured.err == ""


def test_the_check_can_be_imported_without_any_solution():
    code = (
        "import sys, ppo_toy.classroom.check\n"
        "print(sorted(name for name in sys.modules if name.startswith('ppo_toy')))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert eval(answer.stdout) == ["ppo_toy", "ppo_toy.classroom", "ppo_toy.classroom.check"]


def test_no_module_of_the_classroom_is_longer_than_250_lines():
    for path in CLASSROOM.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 250, path.name
        assert ast.get_docstring(ast.parse(text)), path.name


def test_nothing_below_imports_the_classroom():
    for path in CLASSROOM.parent.glob("*.py"):
        assert "classroom" not in path.read_text(encoding="utf-8"), path.name


def test_a_learner_sees_pass_and_fail_for_each_check_with_nbval_alone():
    root = Path(__file__).parents[1]
    path = root / "notebooks" / "exercises" / "01_objective.ipynb"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "--nbval-lax", path]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "4 failed, 6 passed" in answer.stdout
    assert "not yet  01-brake: this is not written yet" in answer.stdout
