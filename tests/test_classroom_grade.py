"""The grade book's growth, with the running of answers replaced; for that see the attacks."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppo_toy.classroom import cage, examiner
from ppo_toy.classroom.__main__ import main
from ppo_toy.classroom.grade import Session, grade
from ppo_toy.classroom.sitting import Sitting

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SESSION = Session(NOTEBOOKS / "solutions", seed=3)
N = 3  # exercises of lesson 01


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
    assert len(sittings) == N + 3 * N  # the reference first; of an untouched answer none


def test_what_was_graded_is_not_graded_again_unless_it_changed(submitted, sittings, tmp_path):
    book = tmp_path / "book"
    grade([submitted], book, SESSION)
    del sittings[:]
    grade([submitted], book, SESSION)
    assert sittings == []
    path = submitted / "ada" / "01_objective.ipynb"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    grade([submitted], book, SESSION)
    assert len(sittings) == N + N


def test_marks_of_two_editions_of_the_exercises_are_not_mixed(submitted, sittings, tmp_path):
    book = tmp_path / "book"
    grade([submitted / "ada"], book, SESSION)
    record = book / "results" / "ada" / "01_objective.json"
    record.write_text(record.read_text(encoding="utf-8").replace("01-brake", "01-old"))
    before, n = (book / "grades.csv").read_bytes(), len(sittings)
    with pytest.raises(ValueError, match="another edition"):
        grade([submitted / "bob"], book, SESSION)
    assert (book / "grades.csv").read_bytes() == before
    assert len(sittings) == n


def test_one_student_can_be_graded_again(submitted, sittings, tmp_path):
    grade([submitted], tmp_path / "book", SESSION)
    del sittings[:]
    again = Session(NOTEBOOKS / "solutions", seed=4, again=True)
    grade([submitted / "bob"], tmp_path / "book", again)
    assert len(sittings) == N + N
    assert len(totals(tmp_path / "book")) == 4


def test_a_file_of_one_student_does_not_take_the_place_of_anothers_grade(
    submitted, sittings, tmp_path
):
    book = tmp_path / "book"
    grade([submitted], book, SESSION)
    eves = tmp_path / "later" / "ada_01_objective.ipynb"
    eves.parent.mkdir()
    shutil.copy(NOTEBOOKS / "exercises" / "01_objective.ipynb", eves)
    with pytest.raises(ValueError, match="would take its place; if it should, say --again") as why:
        grade([eves], book, SESSION)
    assert str(eves) in str(why.value)
    assert str(submitted / "ada" / "01_objective.ipynb") in str(why.value)
    assert totals(book)["ada"] == "10"
    grade([eves], book, replace(SESSION, again=True))
    assert totals(book)["ada"] == "0"


@pytest.mark.usefixtures("sittings")
def test_what_was_not_graded_stands_on_the_instructors_page(submitted, tmp_path, capsys):
    (submitted / "eve").mkdir()
    grade([submitted], tmp_path / "book", SESSION)
    line = f"`{submitted / 'eve'}`: an empty folder"
    assert line in (tmp_path / "book" / "class.md").read_text(encoding="utf-8")
    assert f"not graded: {submitted / 'eve'}: an empty folder" in capsys.readouterr().err


@pytest.mark.skipif(cage.bubblewrap() is None, reason="bubblewrap is missing, or does not work")
@pytest.mark.usefixtures("sittings")
def test_a_class_that_would_be_seen_from_inside_the_walls_is_not_graded(
    submitted, tmp_path, monkeypatch
):
    def refused(out, session):
        with pytest.raises(ValueError, match="is shown to every answer since Python lies there"):
            grade([submitted], out, session)
        grade([submitted], out, replace(session, walled=False))

    (tmp_path / "shown").mkdir()
    shown = [*cage.SYSTEM, str(tmp_path / "shown")]
    monkeypatch.setattr(cage, "SYSTEM", shown)
    grade([submitted], tmp_path / "book", SESSION)
    refused(tmp_path / "shown" / "book", SESSION)
    shutil.copytree(NOTEBOOKS / "solutions", tmp_path / "shown" / "s")
    refused(tmp_path / "book2", replace(SESSION, solutions=tmp_path / "shown" / "s"))
    shown.append(str(submitted))
    refused(tmp_path / "book3", SESSION)
    shown[-1:] = [str(cage.PACKAGE.parent)]
    refused(tmp_path / "book4", SESSION)


def test_an_interrupted_run_keeps_what_it_has_and_goes_on_there(submitted, sittings, tmp_path):
    sittings.stop_after = N + N + 2  # in the middle of the second student
    with pytest.raises(KeyboardInterrupt):
        grade([submitted / name for name in ("ada", "bob", "carl")], tmp_path / "book", SESSION)
    assert totals(tmp_path / "book") == {"ada": "10"}
    sittings.stop_after = 10**6
    del sittings[:]
    grade([submitted], tmp_path / "book", SESSION)
    assert len(sittings) == N + 2 * N
    assert totals(tmp_path / "book") == {"ada": "10", "bob": "10", "carl": "10", "dora": "0"}


def test_a_run_without_a_report_is_tried_twice(submitted, sittings, tmp_path, monkeypatch):
    calls = []

    def dies(notebook, name, cases, limits, *, walled):
        calls.append(name)
        passed = len(calls) <= N  # the reference's
        return Sitting(passed, "the run ended without a report", "", b"x" if passed else b"")

    monkeypatch.setattr(examiner, "sit", dies)
    grade([submitted / "ada"], tmp_path / "book", SESSION)
    assert len(calls) == N + 2 * N
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
