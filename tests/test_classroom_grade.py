"""The grade book's growth, with the running of answers replaced; for that see the attacks."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppo_toy.classroom import examiner
from ppo_toy.classroom.__main__ import main
from ppo_toy.classroom.grade import Session, grade
from ppo_toy.classroom.sitting import Sitting

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SESSION = Session(NOTEBOOKS / "solutions", seed=3)


class FakeSittings(list):
    """In place of `sit`: every answer passes, unless `stop_after` were run."""

    stop_after = 10**6

    def __call__(self, notebook, name, cases, limits, *, walled):
        if len(self) >= self.stop_after:
            raise KeyboardInterrupt
        self.append(name)
        return Sitting(True, "", "", b"<testsuites/>")


@pytest.fixture
def sittings(monkeypatch):
    fake = FakeSittings()
    monkeypatch.setattr(examiner, "sit", fake)
    return fake


@pytest.fixture
def submitted(tmp_path):
    for student in ("ada", "bob", "carl"):
        (tmp_path / "submitted" / student).mkdir(parents=True)
        shutil.copy(
            NOTEBOOKS / "solutions" / "01_objective.ipynb", tmp_path / "submitted" / student
        )
    shutil.copy(
        NOTEBOOKS / "exercises" / "01_objective.ipynb", tmp_path / "submitted" / "dora.ipynb"
    )
    return tmp_path / "submitted"


def totals(book):
    rows = csv.DictReader((book / "grades.csv").read_text(encoding="utf-8").splitlines())
    return {row["student"]: row["total"] for row in rows}


def test_references_get_full_marks_and_untouched_editions_none(submitted, sittings, tmp_path):
    grade([submitted], tmp_path / "book", SESSION)
    assert totals(tmp_path / "book") == {"ada": "10", "bob": "10", "carl": "10", "dora": "0"}
    assert len(sittings) == 4 + 3 * 4  # the reference first; of an untouched answer none


def test_what_was_graded_is_not_graded_again_unless_it_changed(submitted, sittings, tmp_path):
    book = tmp_path / "book"
    grade([submitted], book, SESSION)
    del sittings[:]
    grade([submitted], book, SESSION)
    assert sittings == []
    path = submitted / "ada" / "01_objective.ipynb"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    grade([submitted], book, SESSION)
    assert len(sittings) == 4 + 4


def test_one_student_can_be_graded_again(submitted, sittings, tmp_path):
    grade([submitted], tmp_path / "book", SESSION)
    del sittings[:]
    again = Session(NOTEBOOKS / "solutions", seed=4, again=True)
    grade([submitted / "bob"], tmp_path / "book", again)
    assert len(sittings) == 4 + 4
    assert len(totals(tmp_path / "book")) == 4


def test_an_interrupted_run_keeps_what_it_has_and_goes_on_there(submitted, sittings, tmp_path):
    sittings.stop_after = 4 + 4 + 2  # in the middle of the second student
    with pytest.raises(KeyboardInterrupt):
        grade([submitted / name for name in ("ada", "bob", "carl")], tmp_path / "book", SESSION)
    assert totals(tmp_path / "book") == {"ada": "10"}
    sittings.stop_after = 10**6
    del sittings[:]
    grade([submitted], tmp_path / "book", SESSION)
    assert len(sittings) == 4 + 2 * 4
    assert totals(tmp_path / "book") == {"ada": "10", "bob": "10", "carl": "10", "dora": "0"}


def test_a_run_without_a_report_is_tried_twice(submitted, sittings, tmp_path, monkeypatch):
    calls = []

    def dies(notebook, name, cases, limits, *, walled):
        calls.append(name)
        passed = len(calls) <= 4  # the reference's
        return Sitting(passed, "the run ended without a report", "", b"x" if passed else b"")

    monkeypatch.setattr(examiner, "sit", dies)
    grade([submitted / "ada"], tmp_path / "book", SESSION)
    assert len(calls) == 4 + 2 * 4
    assert totals(tmp_path / "book") == {"ada": "0"}


def test_a_reference_that_does_not_pass_stops_everything(submitted, tmp_path, monkeypatch):
    failed = Sitting(False, "the kernel died", "", b"x")
    monkeypatch.setattr(examiner, "sit", lambda *arguments, **options: failed)
    with pytest.raises(ValueError, match="own answer to 01-brake does not pass: the kernel died"):
        grade([submitted], tmp_path / "book", SESSION)
    assert not (tmp_path / "book").exists()


def test_a_class_is_not_graded_against_nothing(submitted, tmp_path):
    empty = tmp_path / "elsewhere"
    with pytest.raises(ValueError, match=f"^there is no solution in {empty}; grade from the root"):
        grade([submitted], tmp_path / "book", replace(SESSION, solutions=empty))
    assert not (tmp_path / "book").exists()


def test_an_answer_that_cannot_be_diagnosed_does_not_stop_the_class():
    def diagnosis(lines, cases):
        raise IndexError(lines)

    question = SimpleNamespace(exercise=SimpleNamespace(diagnosis=diagnosis))
    known = SimpleNamespace(reference=SimpleNamespace(questions={"x": question}), cases={"x": []})
    examination = examiner.Examination(known, None, None, {})
    sitting = Sitting(False, "", "what no check prints", b"<testsuites/>")
    assert examination._verdict("x", sitting) == "it printed what no check prints"


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    solutions = ["--solutions", str(NOTEBOOKS / "solutions")]
    for arguments, message in (
        (["nowhere.ipynb"], "no file or folder nowhere.ipynb"),
        ([str(tmp_path)], "there is no notebook in"),
        ([str(tmp_path), "--jobs", "0"], "--jobs is 0"),
        ([str(tmp_path), "--memory", "-1"], "--memory is -1; it must be a number above 0"),
        ([str(tmp_path), "--memory", "inf"], "--memory is inf"),
        ([str(tmp_path), "--cell-seconds", "nan"], "--cell-seconds is nan"),
        ([str(tmp_path), "--lesson", "99_x"], "no lesson '99_x'"),
    ):
        assert main(["grade", *arguments, "--out", str(tmp_path / "book"), *solutions]) == 2
        assert message in capsys.readouterr().err
