import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ppo_toy
from ppo_toy.classroom import check as check_module
from ppo_toy.classroom.check import Case, CheckFailed, check, transcript
from ppo_toy.classroom.exercise import Exercise, find
from ppo_toy.classroom.inputs import normal
from ppo_toy.classroom.variables import HIDDEN, SEED

CLASSROOM = Path(ppo_toy.__file__).parent / "classroom"


def draw(generator, k):
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
    monkeypatch.setattr(check_module, "lesson_of", lambda name: {"01-product": PRODUCT})


@pytest.mark.usefixtures("product")
def test_a_right_answer_gets_one_line(capsys):
    check("01-product", lambda x, y: x * y)
    line = "ok  01-product: values and gradients are right on 4 random cases\n"
    assert capsys.readouterr().out == line


@pytest.mark.usefixtures("product")
def test_a_wrong_answer_raises_one_line_that_names_the_mistake():
    with pytest.raises(CheckFailed, match="^01-product: b is squared\n") as caught:
        check("01-product", lambda a, b: a * b**2)
    (shown,) = caught.value._render_traceback_()
    assert shown.startswith("not yet  01-product: b is squared\ncase 1, returned at [0]: expected ")
    assert all(len(line) <= 90 for line in shown.splitlines())


@pytest.mark.parametrize("answer", [lambda a, b: a * b * b, lambda a, b: 3 * a * b])
def test_what_is_expected_what_came_and_the_inputs_can_be_tried_by_hand(answer):
    case = PRODUCT.cases(0)[0]
    a, b = case.arguments["a"], case.arguments["b"]
    _, number, called, *inputs = fault(answer).splitlines()
    due, came = (a * b)[0].item(), answer(a, b)[0].item()
    assert number == f"case 1, returned at [0]: expected {due:.4f}, yours {came:.4f}"
    assert called == "case 1 was called with"
    scope = {}
    exec("\n".join(line.strip() for line in inputs), scope)
    torch.testing.assert_close(torch.tensor(scope["a"]), a, atol=1e-7, rtol=1e-7)  # as printed
    torch.testing.assert_close(torch.tensor(scope["b"]), b, atol=1e-7, rtol=1e-7)


def test_only_the_first_number_that_differs_is_shown_with_its_place():
    exercise = Exercise(
        name="00-table",
        draw=lambda generator, k: {"x": normal(2, 3, generator=generator), "n": k},
        route=lambda x, n: (n, x),
    )
    cases = exercise.cases(0)
    at = torch.tensor([[0, 0, 0], [0, 0, 1]])
    told = exercise.fault(lambda x, n: (n, x + at * (n == 2)), cases).splitlines()
    x = cases[2].arguments["x"][1, 2].item()
    assert told[:2] == [
        "the value is not right",
        f"case 3, returned 2 of 2 at [1, 2]: expected {x:.4f}, yours {x + 1:.4f}",
    ]
    assert told[2] == "case 3 was called with"
    assert told[-1] == "  n = 2"


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
        (lambda a, b: float("nan") * a, "the value is not right: nan comes of"),
        (lambda a, b: a / 0, "the value is not right: ∞ comes of"),
        (lambda a, b: -a * b, "the value is not right: its sign is"),
        (
            lambda a, b: (a * b).abs(),
            "the value is not right: its sign is, or it can be negative; take no abs",
        ),
        (lambda a, b: (a * b).relu(), "it can be negative; do not cut it off at 0"),
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


def test_an_answer_that_writes_to_its_arguments_is_told_which_and_spoils_nothing():
    case = Case({"x": torch.ones(3), "y": torch.ones(3)}, ("y",))
    for k, name in enumerate("xy"):
        for write in (lambda x: x.add_(1), lambda x: x.detach().zero_(), lambda x: x.data.mul_(2)):
            with pytest.raises(CheckFailed, match=f"it changes its argument {name} in place"):
                transcript(lambda *a, k=k, f=write: f(a[k]), [case])
    assert case.arguments["x"].tolist() == case.arguments["y"].tolist() == [1, 1, 1]
    assert not case.arguments["y"].requires_grad


def test_where_a_vector_or_a_pair_is_due_lists_arrays_and_stacked_tensors_are_read_as_such():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    vector, pair = Case({}, shapes=((2,),)), Case({}, shapes=((2,), (2,)))
    for returned in (
        x,
        [1, 2],
        (x[0], x[1]),
        np.array([1, 2]),
        [x[0], 2.0],
        [np.float32(1), 2],
        (x,),
    ):
        assert transcript(lambda y=returned: y, [vector]) == transcript(lambda: x, [vector])
    both = torch.stack([x, 2 * x])
    for returned in (both, both.tolist(), both.detach().numpy(), [x, [2, 4]], ((1, 2), 2 * x)):
        assert transcript(lambda y=returned: y, [pair]) == transcript(lambda: (x, 2 * x), [pair])
    three = Case({}, shapes=((), (), ()))
    for returned in (torch.arange(3), np.arange(3), [0, 1, 2], (torch.tensor(0), 1, 2.0)):
        assert len(transcript(lambda y=returned: y, [three])) == 3
    for returned in ({1.0, 2.0}, {"a": 1, "b": 2}, "ab"):
        with pytest.raises(CheckFailed, match="numbers are wanted"):
            transcript(lambda y=returned: y, [pair])


def test_what_is_stacked_by_the_check_keeps_its_gradient():
    case = Case({"x": torch.ones(2)}, ("x",), ((2,),))
    assert transcript(lambda x: [x[0], 3 * x[1]], [case]) == transcript(
        lambda x: x * torch.tensor([1, 3]), [case]
    )


def test_numbers_arrays_booleans_and_lists_of_them_are_shown():
    lines = transcript(lambda: [1, 0.5, True, torch.eye(1), (-0.00001,)], [Case({})])
    shown = [line.split(": ")[1] for line in lines]
    assert shown == ["1.0000", "0.5000", "1.0000", "1.0000", "0.0000"]


def test_cases_keep_clear_of_rounding_boundaries():
    near = Exercise("01-near", lambda g, k: {"x": 0.12345}, lambda x: x)
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
    known = [f"ppo_toy.classroom{name}" for name in ("", ".check", ".language", ".variables")]
    assert eval(answer.stdout) == ["ppo_toy", *known]


def test_no_module_of_the_classroom_is_longer_than_250_lines():
    for path in CLASSROOM.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 250, path.name
        assert ast.get_docstring(ast.parse(text)), path.name


def test_the_exercise_knows_the_check_and_not_the_other_way_round():
    text = (CLASSROOM / "check.py").read_text(encoding="utf-8")
    imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
    own = [ast.unparse(n) for n in imports if "ppo_toy" in ast.unparse(n)]
    assert own == [
        "from ppo_toy.classroom.language import fill, told",
        "from ppo_toy.classroom.variables import HIDDEN, SEED",
    ]


def test_nothing_below_imports_the_classroom():
    for path in CLASSROOM.parent.glob("*.py"):
        assert "classroom" not in path.read_text(encoding="utf-8"), path.name


def test_a_learner_sees_pass_and_fail_for_each_check_with_nbval_alone():
    root = Path(__file__).parents[1]
    path = root / "notebooks" / "exercises" / "01_objective.ipynb"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "--nbval-lax", path]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "3 failed, 5 passed" in answer.stdout
    assert "not yet  01-brake: this is not written yet" in answer.stdout


SLIPS = {
    "a name": ("return beta * kl.sum(-1)", "NameError: name 'kl' is not defined"),
    "a shape": ("return beta * (logits @ ref_logits)", "RuntimeError: Expected size"),
    "a helper": ("return helper(logits)", "ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_an_answer_shows_the_learners_own_lines_and_little_else(slip):
    line, error = SLIPS[slip]
    answer = (
        f"def brake(logits, ref_logits, beta):\n    {line}\ndef helper(x):\n    return x * (1 / 0)"
    )
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance(colors='nocolor')\n"
        f"shell.run_cell({answer!r})\n"
        "shell.run_cell('from ppo_toy.classroom.check import check')\n"
        "shell.run_cell('check(\"01-brake\", brake)')\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = told.stdout.splitlines()
    assert any(line in text for text in shown)
    assert ("return x * (1 / 0)" in told.stdout) == (slip == "a helper")
    assert shown[-1].startswith(error)
    assert len(shown) <= 20
    assert "ppo_toy/classroom" not in told.stdout


def test_what_a_learner_is_shown_is_never_wider_than_90_columns():
    for name in ("06-anchors", "07-attention", "02-batch-kl"):
        exercise = find(name)
        for answer in (lambda *a: 0.5, lambda x, *a: 2 * x, next(iter(exercise.mistakes.values()))):
            with pytest.raises(CheckFailed) as caught:
                check(name, answer)
            shown = "".join(caught.value._render_traceback_())
            assert max(map(len, shown.splitlines())) <= 90
            assert "case 1 was called with\n  " in shown
