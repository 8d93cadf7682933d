import json
import shutil
from pathlib import Path

import pytest

from ppo_toy.classroom.splice import Reference
from ppo_toy.classroom.submissions import UNKNOWN, digest, find_submissions, safe_name

PATH = Path(__file__).parents[1] / "notebooks" / "solutions" / "01_objective.ipynb"
REFERENCES = {"01_objective": Reference.read(PATH)}


@pytest.fixture
def folder(tmp_path):
    for name in (
        "ada/01_objective.ipynb",
        "submitted/bob/01_objective/01_objective.ipynb",
        "carl_01_objective.ipynb",
        "dora.ipynb",
        "ada/.ipynb_checkpoints/01_objective.ipynb",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PATH, path)
    return tmp_path


def test_students_and_lessons_are_found_in_names_folders_and_files(folder):
    found = find_submissions([folder], REFERENCES)
    assert {x.student for x in found} == {"ada", "bob", "carl", "dora"}
    assert {x.lesson for x in found} == {"01_objective"}
    assert not any(x.others for x in found)


def test_a_second_file_of_a_student_is_kept_and_not_graded(folder):
    shutil.copy(PATH, folder / "ada_01_objective.ipynb")
    (ada,) = (x for x in find_submissions([folder], REFERENCES) if x.student == "ada")
    assert ada.path == folder / "ada_01_objective.ipynb"
    assert ada.others == [folder / "ada" / "01_objective.ipynb"]


@pytest.mark.parametrize("copied", ["01_objective (1)", "01_objective-Copy1", "01_objective(2)"])
def test_what_is_added_to_the_name_of_a_copy_is_no_student(tmp_path, copied):
    for student in ("ada", "bob"):
        (tmp_path / student).mkdir()
        shutil.copy(PATH, tmp_path / student / f"{copied}.ipynb")
    shutil.copy(PATH, tmp_path / "bob" / "01_objective.ipynb")
    shutil.copy(PATH, tmp_path / f"carl_{copied}.ipynb")
    found = {x.student: x for x in find_submissions([tmp_path], REFERENCES)}
    assert set(found) == {"ada", "bob", "carl"}
    assert len(found["bob"].others) == 1


@pytest.mark.parametrize("name", ["{}/01_objective_final.ipynb", "{}/week1/01_objective.ipynb"])
def test_two_students_who_would_be_one_stop_the_grading_before_it_begins(tmp_path, name):
    for student in ("ada", "bob"):
        path = tmp_path / name.format(student)
        path.parent.mkdir(parents=True)
        shutil.copy(PATH, path)
    with pytest.raises(ValueError, match="ada/.* and .*bob/.* would both be '(final|week1)'; let"):
        find_submissions([tmp_path], REFERENCES)


def test_a_file_that_does_not_tell_its_lesson_is_not_lost(tmp_path):
    (tmp_path / "eve.ipynb").write_text("no notebook")
    (tmp_path / "fay.ipynb").write_text(json.dumps({"cells": []}))
    assert [x.lesson for x in find_submissions([tmp_path], REFERENCES)] == [UNKNOWN] * 2
    given = find_submissions([tmp_path], REFERENCES, "01_objective")
    assert [(x.student, x.lesson) for x in given] == [
        ("eve", "01_objective"),
        ("fay", "01_objective"),
    ]


def test_nothing_to_grade_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match="there is no notebook in"):
        find_submissions([tmp_path], REFERENCES)
    with pytest.raises(ValueError, match="there is no file or folder .*nowhere"):
        find_submissions([tmp_path / "nowhere"], REFERENCES)


@pytest.mark.parametrize(
    "name",
    ["..", "../../etc", "=1+1", "-rf", "a\nb", "a/b", "\udcff", "", "x" * 300, "\U00020000" * 63],
)
def test_a_path_or_a_formula_for_a_name_becomes_a_name(name):
    safe = safe_name(name)
    assert safe
    assert safe[0] not in "=+-@."
    assert not set(safe) & set("/\\\n")
    assert len(safe.encode()) < 80
    safe.encode()


def test_different_names_stay_different():
    assert safe_name("a/b") != safe_name("a b")
    assert safe_name("José-María_2.b") == "José-María_2.b"


def test_a_file_that_cannot_be_read_has_a_digest(tmp_path, monkeypatch):
    path = tmp_path / "x.ipynb"
    path.write_text("1")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    readable = digest(path, None)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert digest(path, None) not in (readable, "")


def test_the_digest_changes_with_the_file_and_with_the_reference(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_text("1")
    first = digest(path, REFERENCES["01_objective"])
    assert digest(path, None) != first
    path.write_text("2")
    assert digest(path, REFERENCES["01_objective"]) != first
