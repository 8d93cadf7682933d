"""Exercises without a stored answer: only numbers count, and the truth judges them."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from answers import lesson_12 as answers

from ppo_toy import exact
from ppo_toy.classroom import examiner, probe
from ppo_toy.classroom.cage import Limits, bubblewrap
from ppo_toy.classroom.check import Case, check, find, transcript
from ppo_toy.classroom.checks import lesson_12
from ppo_toy.classroom.examiner import Examination, Examiner, _told
from ppo_toy.classroom.release import nbgrader
from ppo_toy.classroom.sitting import Sitting
from ppo_toy.classroom.splice import Reference, spliced
from ppo_toy.rules import as_rule

PATH = Path(__file__).parents[1] / "notebooks" / "solutions" / "12_your_own.ipynb"
REFERENCE = Reference.read(PATH)
RIGHT = {name: them[-1] for name, them in answers.RIGHT.items()}
RIGHT["12-run"], RIGHT["12-prediction"] = answers.run_by_hand, answers.RIGHT["12-prediction"][1]
every_exercise = pytest.mark.parametrize("name", RIGHT)


def numbers_of(name):
    (case,) = find(name).cases(0)
    return case.ask(RIGHT[name], **case.arguments)


def told(name, lines):
    return _told(find(name), "\n".join(lines), find(name).cases(0))


def lines_of(numbers):
    """What a check prints in the cage of an answer with these numbers."""
    return transcript(None, [Case({}, ask=lambda answer: numbers)])


def share(end):
    return (end.reached.objective - end.start.reward) / (end.best.objective - end.start.reward)


def test_a_right_answer_gets_one_line(capsys):
    check("12-world", answers.Change)
    line = "ok  12-world: it passes the door, and every response is listed\n"
    assert capsys.readouterr().out == line


@every_exercise
def test_in_the_cage_numbers_are_printed_and_no_verdict(name, tmp_path, monkeypatch, capsys):
    cases = find(name).cases(3)
    torch.save({name: cases}, tmp_path / "cases.pt")
    monkeypatch.setenv("PPO_TOY_HIDDEN_CASES", str(tmp_path / "cases.pt"))
    check(name, RIGHT[name])
    printed = capsys.readouterr().out
    assert "ok" not in printed
    assert all(line.startswith("case 1, ") for line in printed.splitlines())
    assert _told(find(name), printed, cases) == ""
    file = io.BytesIO()
    torch.save(cases, file)
    assert b"lesson_12" not in file.getvalue()  # the judge stays outside


@every_exercise
def test_words_and_missing_numbers_are_no_answer(name):
    nothing = "it printed what no check prints"
    assert told(name, [f"ok  {name}: all is right"]) == nothing
    lines = lines_of(numbers_of(name))
    assert told(name, [*lines, "ok", "not yet"]) == ""
    for k in range(len(lines)):
        if "faults" not in lines[k]:
            assert told(name, lines[:k] + lines[k + 1 :]) == nothing
            assert told(name, [*lines, lines[k].split(":")[0] + ": x"]) == nothing
            assert told(name, [*lines, lines[k]]) == nothing  # one of the two is not the check's


@every_exercise
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_no_number_that_is_none_passes(name, odd):
    numbers = numbers_of(name)
    for which, x in numbers.items():
        if which != "faults":
            spoiled = x.clone()
            spoiled.view(-1)[0] = odd
            assert told(name, lines_of(numbers | {which: spoiled})), which


def test_probabilities_that_do_not_add_up_are_none():
    numbers = numbers_of("12-run")
    for which in ("log_ref", "log_p"):
        spoiled = numbers | {which: numbers[which] + 0.01}
        assert "do not add up to 1" in told("12-run", lines_of(spoiled))
    shorter = {k: x[:, :-1] if x.dim() == 2 else x for k, x in numbers.items()}
    assert "do not add up to 1" in told("12-run", lines_of(shorter))


def test_a_table_too_large_is_not_judged():
    numbers = {"rewards": torch.eye(80), "weights": torch.full((80,), 1 / 80)}
    assert "at most 5,000 responses" in told("12-world", lines_of(numbers))


def test_the_judge_finds_what_exact_finds_in_the_world_itself():
    world, reference, policy = answers.run_with_purse(torch.Generator().manual_seed(0), beta=0.3)
    numbers = probe._tables(world, reference, policy) | {"beta": torch.tensor(0.3)}
    end = lesson_12._run(**numbers)
    best = exact.optimum(reference, world, 0.3)
    for found, due in (
        (end.reached, exact.evaluate(policy, reference, world, 0.3)),
        (end.best, best),
    ):
        for name in ("objective", "reward", "kl"):
            assert getattr(found, name) == pytest.approx(getattr(due, name), abs=1e-5)
    # J* - J = beta * KL(policy || best), and so for the reference
    left, whole = (exact.evaluate(x, best.policy, world, 0).kl for x in (policy, reference))
    assert share(end) == pytest.approx(1 - left / whole, abs=1e-5)


def test_neither_a_constant_nor_another_unit_of_r_changes_the_share():
    numbers = numbers_of("12-run")
    shares = [
        share(lesson_12._run(**numbers | {"rewards": a * numbers["rewards"] + c, "beta": a * beta}))
        for beta in [numbers["beta"]]
        for a, c in ((1, 0), (1, 10), (1, -10), (7, 0))
    ]
    assert shares == pytest.approx(shares[:1] * 4, abs=1e-6)


def test_a_truth_beside_which_the_run_ended_is_told_so():
    numbers = numbers_of("12-prediction")
    pull = numbers["rewards"] / (0.88 * numbers["beta"])  # as if the price were lower
    numbers["log_p"] = (numbers["log_ref"] + pull).log_softmax(dim=1)
    said = told("12-prediction", lines_of(numbers))
    assert said.startswith("so ends the best policy; the run ended at R = ")
    assert "% of what there is to earn: let it come nearer" in said


@pytest.mark.parametrize(
    ("name", "which", "value", "fault"),
    [
        ("12-run", "beta", 0.0, "beta is below 0.001"),
        ("12-prediction", "moved", 0.01, "with twice the beta R is another"),
    ],
)
def test_what_is_no_run_of_a_world_is_told_so(name, which, value, fault):
    numbers = numbers_of(name)
    assert fault in told(name, lines_of(numbers | {which: torch.full_like(numbers[which], value)}))


def test_a_loss_with_the_exact_kl_is_calm_whatever_the_seed():
    calm, plain = (as_rule(x, loss=True) for x in (answers.calm(), answers.readme_loss))
    for seed in range(12):
        ratios = [
            probe.variance(calm, x) / probe.variance(plain, x) for x in probe.problems(seed)[1]
        ]
        assert torch.stack(ratios).mean() < 0.9 * lesson_12.CALM


def solutions():
    """What the reference's own answers define."""
    scope = {}
    for cell in REFERENCE.notebook.cells:
        code = cell.cell_type == "code" and not nbgrader(cell).get("grade")
        if code and ("import check" in cell.source or nbgrader(cell)):
            exec(cell.source, scope)
    return scope


@pytest.mark.parametrize("seed", range(5))
def test_the_reference_keeps_a_margin(seed, monkeypatch):
    scope = solutions()
    assert share(lesson_12._run(**probe.of_run(scope["my_run"], seed))) > 0.97
    numbers = probe.of_prediction(scope["run_and_prediction"], seed)
    said, moved = (numbers.pop(which).tolist() for which in ("said", "moved"))
    assert moved == [0, 0]
    end = lesson_12._run(**numbers, felt=0)
    assert share(end) > 0.97
    monkeypatch.setattr(lesson_12, "NEAR", {k: 2 / 3 * x for k, x in lesson_12.NEAR.items()})
    assert lesson_12._off(said, end) == {}


def test_an_open_check_is_spliced_without_outputs_to_compare():
    notebook = spliced(REFERENCE, "12-world", "x = 1", None)
    check_cell = notebook.cells[-1]
    assert check_cell.outputs == []
    assert check_cell.metadata.tags == ["nbval-ignore-output"]


def test_the_references_own_answers_bring_along_what_they_use(monkeypatch):
    seen = {}

    def sit(self, name, answer, helpers=()):
        seen[name] = "\n".join(helpers)
        return Sitting(True, "", "", b"x")

    monkeypatch.setattr(Examiner, "sit", sit)
    with ThreadPoolExecutor(1) as pool:
        Examiner(REFERENCE, 1, Limits(), walled=False).verify(pool)
    assert "class Haiku" not in seen["12-world"] + seen["12-loss"]
    assert "def my_world" in seen["12-run"]
    assert "def my_world" in seen["12-prediction"]
    assert "def my_run" in seen["12-prediction"]


def test_a_run_that_ended_well_is_judged_by_what_it_printed(monkeypatch):
    printed = "\n".join(lines_of(numbers_of("12-world")))
    for text, passed, ended in (
        (printed, True, ""),
        ("ok  12-world: right", False, "it printed what no check prints"),
        (
            re.sub(r"\d\.0000", "1.0000", printed),
            False,
            "to each prompt all responses earn the same",
        ),
    ):
        sitting = Sitting(True, "", text, b"x")
        monkeypatch.setattr(examiner, "sit", lambda *a, sitting=sitting, **b: sitting)
        judged = Examiner(REFERENCE, 1, Limits(), walled=False).sit("12-world", "x = 1")
        assert judged.passed == passed
        assert judged.ended.startswith(ended)


def test_an_answer_that_uses_one_that_is_not_there_is_told_so():
    sat = Sitting(False, "NotImplementedError:", "", b"x")
    examination = Examination(Examiner(REFERENCE, 1, Limits(), walled=False), None, None, {})
    assert (
        examination._verdict("12-run", sat) == "it is not finished, or uses an answer that is not"
    )


FORGED = """\
import ppo_toy.classroom.check as module
module.transcript = lambda *anything: ["ok  12-world: it passes the door"]
def my_world():
    return None
"""


@pytest.mark.parametrize(
    ("answer", "passed", "ended"),
    [
        (REFERENCE.solution("12-world"), True, ""),
        ("def my_world():\n    return my_world", False, "CheckFailed: the world, a function, has"),
        (FORGED, False, "it printed what no check prints"),
    ],
)
def test_in_a_cage_of_its_own(answer, passed, ended):
    walled = bubblewrap() is not None
    sitting = Examiner(REFERENCE, 1, Limits(), walled=walled).sit("12-world", answer)
    assert sitting.passed == passed, sitting
    assert sitting.ended.startswith(ended)


def test_it_says_its_minutes_and_points_and_where_it_comes_from():
    first, *others = [c.source for c in REFERENCE.notebook.cells if c.cell_type == "markdown"]
    stated = re.findall(
        r"^## Exercise \d\. .+ \((\d+) points, about (\d+) minutes\)", "\n".join(others), re.M
    )
    points, minutes = (sum(map(int, numbers)) for numbers in zip(*stated, strict=True))
    assert f"About {minutes} minutes, {points} points." in first
    assert points == 10
    for page in ("../11_in_the_wild.ipynb", "../../README.md"):
        assert f"]({page})" in first
