import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ppo_toy.classroom.exercise import find, lesson_of
from ppo_toy.classroom.release import BEGIN, END, nbgrader, release, stub, student_edition

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))

every_solution = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def answers_and_checks(path):
    cells = [cell for cell in read(path).cells if nbgrader(cell)]
    answers = [cell for cell in cells if nbgrader(cell)["solution"]]
    return answers, [cell for cell in cells if nbgrader(cell)["grade"]]


def test_what_is_committed_is_what_release_generates(tmp_path):
    assert SOLUTIONS
    release(NOTEBOOKS / "solutions", tmp_path)
    fresh = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    committed = {
        path.name: path.read_text(encoding="utf-8")
        for path in (NOTEBOOKS / "exercises").glob("*.ipynb")
    }
    assert fresh.keys() == committed.keys()
    for name, text in fresh.items():
        assert text == committed[name], f"{name}: run python -m ppo_toy.classroom release"


def test_the_command_line_says_what_it_wrote(tmp_path):
    command = [sys.executable, "-m", "ppo_toy.classroom", "release", "--solutions"]
    command += [NOTEBOOKS / "solutions", "--exercises", tmp_path]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [str(tmp_path / path.name) for path in SOLUTIONS]
    nowhere = subprocess.run([*command[:-1], "x", "--solutions", tmp_path / "no"], check=False)
    assert nowhere.returncode == 2


@every_solution
def test_a_student_edition_holds_no_solution_and_no_output(path):
    edition = student_edition(read(path))
    text = nbformat.writes(edition)
    assert BEGIN not in text
    assert END not in text
    for cell in edition.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    (solutions, _), (answers, _) = answers_and_checks(path), answers_and_checks(path)
    for solution, answer in zip(solutions, answers, strict=True):
        lines = re.search(f"{BEGIN}\n(.*?)\n *{END}", solution.source, re.S).group(1)
        assert lines not in text
        assert "raise NotImplementedError()" in stub(answer.source)


@every_solution
def test_exercises_and_checks_stand_in_pairs_with_the_metadata_that_nbgrader_wants(path):
    answers, checks = answers_and_checks(path)
    assert 3 <= len(answers) <= 4
    for answer, check in zip(answers, checks, strict=True):
        name = nbgrader(answer)["grade_id"]
        kind = {"schema_version": 3, "task": False}
        assert nbgrader(answer) == {
            "grade_id": name, "grade": False, "solution": True, "locked": False, **kind,
        }  # fmt: skip
        assert nbgrader(check) == {
            "grade_id": f"{name}-check", "grade": True, "solution": False, "locked": True, **kind,
            "points": nbgrader(check)["points"],
        }  # fmt: skip
        assert nbgrader(check)["points"] in (1, 2, 3, 4, 5)
        assert check.source.startswith(f'check("{name}", ')
        assert find(name).name == name


@every_solution
def test_a_lesson_has_a_check_for_each_of_its_exercises_and_no_other(path):
    answers, _ = answers_and_checks(path)
    number = path.stem.split("_")[0]
    assert {nbgrader(cell)["grade_id"] for cell in answers} == set(lesson_of(f"{number}-"))


@every_solution
def test_an_exercise_says_its_points_and_minutes_and_has_two_or_three_hints(path):
    cells = read(path).cells
    for k, cell in enumerate(cells):
        if nbgrader(cell).get("solution"):
            text = cells[k - 1].source
            points = nbgrader(cells[k + 1])["points"]
            assert re.match(rf"## Exercise \d\. .+ \({points} points?, about \d+ minutes\)", text)
            assert 2 <= text.count("<details><summary>Hint ") <= 3


@every_solution
def test_a_stored_verdict_says_ok(path):
    for check in answers_and_checks(path)[1]:
        (output,) = check.outputs
        name = nbgrader(check)["grade_id"].removesuffix("-check")
        assert re.fullmatch(rf"ok  {name}: .+\n", output.text)


def test_a_stub_keeps_what_stands_around_the_solution():
    source = f'def f(x):\n    """Twice x."""\n    {BEGIN}\n    return 2 * x\n    {END}'
    wanted = 'def f(x):\n    """Twice x."""\n    # YOUR CODE HERE\n    raise NotImplementedError()'
    assert stub(source) == wanted
    assert stub(f"{source}\nprint(f(1))") == f"{wanted}\nprint(f(1))"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"{BEGIN}\nx = 1", "never ends"),
        (f"x = 1\n{END}", "does not belong"),
        (f"{BEGIN}\n{BEGIN}\nx = 1\n{END}", "does not belong"),
    ],
)
def test_markers_that_do_not_match_are_named(source, message):
    with pytest.raises(ValueError, match=message):
        stub(source)


@pytest.mark.parametrize("source", [f"{BEGIN}\nx = 1\n{END}", "x = 1"])
def test_a_solution_stands_in_an_answer_cell_and_every_answer_cell_has_one(source, tmp_path):
    cell = nbformat.v4.new_code_cell(source)
    if BEGIN not in source:
        cell.metadata["nbgrader"] = {"solution": True}
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbformat.write(notebook, tmp_path / "01_x.ipynb")
    with pytest.raises(ValueError, match=f"01_x.ipynb: cell '{cell.id}'"):
        release(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
