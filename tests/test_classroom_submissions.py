import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ppo_toy.classroom.cage import clear
from ppo_toy.classroom.splice import Reference
from ppo_toy.classroom.submissions import (
    UNKNOWN,
    digest,
    find_submissions,
    not_graded,
    safe_name,
)

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


def hand_in(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PATH, path)
    return folder


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ada/01_objective.ipynb", "Eve/ada_01_objective.ipynb"),
        ("ada/01_objective.ipynb", "Eve/01_objective_Ada.ipynb"),
        ("Ada/01_objective.ipynb", "Eve/copy of ada_01-objective (2).IPYNB"),
        ("ada_01_objective.ipynb", "ada/01_objective.ipynb"),
        ("ada_01_objective.ipynb", "Ada_01_objective.ipynb"),
        ("ada/week1/01_objective.ipynb", "bob/week1/01_objective.ipynb"),
        ("ada/01_objective.ipynb", "ada/01_objective_final.ipynb"),
        ("ada/01_objective.ipynb", "ada/01_objective/01_objective.ipynb"),
        ("ada/01_objective (1).ipynb", "ada/01_objective (2).ipynb"),
        ("ada/01_objective.ipynb", "ada/01_objective/01_objective-Copy1.ipynb"),
        ("a/José/01_objective.ipynb", "b/José/01_objective.ipynb"),
        ("ada lovelace/01_objective.ipynb", "Ada_Lovelace_01_objective.ipynb"),
    ],
)
def test_two_files_that_could_be_the_same_students_stop_the_grading_before_it_begins(
    tmp_path, first, second
):
    hand_in(tmp_path, first, second, "fay/01_objective.ipynb")
    with pytest.raises(ValueError, match="would both be") as caught:
        find_submissions([tmp_path], REFERENCES)
    assert str(tmp_path / first) in str(caught.value)
    assert str(tmp_path / second) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "Copy of 01_objective.ipynb",
        "Copy of Copy of 01_objective.ipynb",
        "01_objective_final.ipynb",
        "01_objective final (1).ipynb",
        "01_objective-v2.ipynb",
        "01_objective.IPYNB",
        "01_Objective.ipynb",
        "01-objective.ipynb",
        "01 objective - Copy.ipynb",
        "my answers.ipynb",
        "hand_in_01_objective.ipynb",
    ],
)
def test_names_are_understood_as_a_person_would(tmp_path, name):
    hand_in(tmp_path, f"ada/{name}", f"bob/{name}", "carl_01_objective.ipynb", "dora/x/y/z.ipynb")
    found = find_submissions([tmp_path], REFERENCES)
    assert {x.student for x in found} == {"ada", "bob", "carl", "y"}
    assert {x.lesson for x in found} == {"01_objective"}
    assert not not_graded([tmp_path], found)
    flat = hand_in(tmp_path / "flat", f"ada {name}", f"bob {name}")
    if "answers" not in name and "hand_in" not in name and "Copy of" not in name:
        assert {x.student for x in find_submissions([flat], REFERENCES)} == {"ada", "bob"}


def test_a_file_in_one_students_folder_that_bears_another_name_is_remarked_on(tmp_path):
    hand_in(tmp_path, "eve/ada_01_objective.ipynb", "bob/01_objective.ipynb")
    (eve,) = (x for x in find_submissions([tmp_path], REFERENCES) if x.student == "eve")
    assert eve.remarks == ["its name says 'ada'; its folder says whose it is"]


def test_students_named_one_by_one_have_the_names_that_they_have_together(tmp_path):
    hand_in(tmp_path, "ada/my_01_objective.ipynb", "bob/my_01_objective.ipynb", "eve/x.ipynb")
    together = find_submissions([tmp_path], REFERENCES)
    one_by_one = find_submissions(sorted(tmp_path.iterdir()), REFERENCES)
    assert [x.student for x in together] == [x.student for x in one_by_one] == ["ada", "bob", "eve"]


def test_a_lesson_and_the_deeper_notebook_of_its_number_are_told_apart(tmp_path):
    paths = [PATH.parent / f"{name}.ipynb" for name in ("03_policy_gradient", "03b_estimators")]
    references = {path.stem: Reference.read(path) for path in paths}
    for k, path in enumerate(paths):
        for name in (
            f"ada/{path.name}",
            f"bob{k}/{path.stem} (1).ipynb",
            f"by_its_cells{k}/x.ipynb",
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / name)
    found = {(x.student, x.lesson) for x in find_submissions([tmp_path], references)}
    assert found == {
        (student, path.stem)
        for k, path in enumerate(paths)
        for student in ("ada", f"bob{k}", f"by_its_cells{k}")
    }


def test_an_accent_is_the_same_however_it_is_encoded(tmp_path):
    hand_in(tmp_path, "Jose\u0301/01_objective.ipynb")
    assert [x.student for x in find_submissions([tmp_path], REFERENCES)] == ["José"]


def test_a_folder_that_holds_files_of_several_people_is_nobodys(tmp_path):
    hand_in(tmp_path, "week1/ada_01_objective.ipynb", "week1/bob_01_objective.ipynb")
    assert {x.student for x in find_submissions([tmp_path], REFERENCES)} == {"ada", "bob"}


def test_whatever_is_not_graded_is_listed_with_the_reason(tmp_path):
    names = ("ada/01_objective.ipynb", "ada/01_objective-Copy1.ipynb", "bob/01_objective.py")
    hand_in(tmp_path, *names, "__MACOSX/ada/x.ipynb", "ada/.ipynb_checkpoints/01_objective.ipynb")
    (tmp_path / "carl" / "empty").mkdir(parents=True)
    (tmp_path / "dora").symlink_to(PATH.parent)
    found = find_submissions([tmp_path], REFERENCES)
    assert [x.path for x in found] == [tmp_path / "ada" / "01_objective.ipynb"]
    assert not_graded([tmp_path], found) == {
        str(tmp_path / name): why
        for name, why in {
            "ada/01_objective-Copy1.ipynb": "01_objective.ipynb is graded",
            "ada/.ipynb_checkpoints": "it is hidden",
            "__MACOSX": "it is hidden",
            "bob/01_objective.py": "it is no notebook",
            "carl/empty": "an empty folder",
            "dora": "it is a link",
        }.items()
    }


def test_a_link_out_of_the_hand_in_folder_is_refused_by_name(tmp_path):
    hand_in(tmp_path, "submitted/ada/01_objective.ipynb")
    link = tmp_path / "submitted" / "eve"
    link.symlink_to(PATH.parent)
    for path in (link, link / PATH.name):
        with pytest.raises(ValueError, match=f"{link} is a link to {PATH.parent}"):
            find_submissions([path], REFERENCES)


def test_folders_however_deep_or_closed_stop_nothing(tmp_path, request):
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", tmp_path], check=False))
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    hand_in(tmp_path, "ada/01_objective.ipynb")
    found = find_submissions([tmp_path], REFERENCES)
    assert [x.student for x in found] == ["ada"]
    (why,) = not_graded([tmp_path], found).values()
    assert why == "it cannot be read: File name too long"
    clear(tmp_path)
    assert not tmp_path.exists()


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
