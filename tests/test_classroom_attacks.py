"""Hostile submissions, graded as a class by the command line: none may earn what it did not."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from attacks import CUNNING, HONEST, QUOTES, SPY, VIOLENT

from ppo_toy.classroom.cage import PACKAGE, PROCESSES, SWITCHES, bubblewrap, clear
from ppo_toy.classroom.gradebook import NOT_WALLED
from ppo_toy.classroom.release import nbgrader, student_edition
from ppo_toy.classroom.submissions import safe_name

SOLUTION = Path(__file__).parents[1] / "notebooks" / "solutions" / "01_objective.ipynb"
SLEEP = {True: "98761.5", False: "98762.5"}  # a duration that nobody else sleeps for
# Without walls, only what walls make no difference to.
WITHOUT_WALLS = {
    "right", "os-exit", "kills-its-parent", "forges-the-report", "reads-the-expected", "crowds",
    "digs", "quotes",
}  # fmt: skip
ODD = "<img src=x>"  # a student's folder

needs_bubblewrap = pytest.mark.skipif(
    bubblewrap() is None, reason="bubblewrap is missing, or does not work on this machine"
)

MALFORMED = {
    "no-json": b"{'cells': []}",
    "no-notebook": b"[1, 2, 3]",
    "format-3": b'{"nbformat": 3, "worksheets": []}',
    "deep": b"[" * 200_000,
    "latin-1": '{"cells": [{"source": "é"}]}'.encode("latin-1"),
    "binary": bytes(range(256)) * 100,
    "empty": b"",
    "odd-cells": b'{"cells": [1, null, {"metadata": 7}, {"id": "ex01-04", "source": {}},'
    b'{"cell_type": "code", "id": {}, "source": "x = 1"}]}',
    "too-large": b" " * (11 << 20),
    "too-many": b'{"cells": [' + b"{}," * 3_300_000 + b"{}]}",
    "surrogates": b'{"cells": [{"cell_type": "code", "source": "\\ud800",'
    b'"metadata": {"nbgrader": {"grade_id": "01-brake"}}}]}',
}


def two_exercises():
    """The reference's first two exercises: enough here, and half the time."""
    notebook = nbformat.read(SOLUTION, as_version=4)
    ids = [nbgrader(cell).get("grade_id") for cell in notebook.cells]
    notebook.cells = notebook.cells[: ids.index("01-objective-check") + 1]
    return notebook


def handed_in(name, answer):
    notebook = student_edition(two_exercises())
    solution = {nbgrader(cell).get("grade_id"): cell.source for cell in two_exercises().cells}
    helper, _, answer = answer.rpartition("---\n")
    own = "01-objective" if name == "quotes" else "01-brake"
    for k, cell in enumerate(notebook.cells):
        if nbgrader(cell).get("grade_id") == own:
            cell.source = answer
            if helper:
                notebook.cells.insert(k, nbformat.v4.new_code_cell(helper))
                break
        elif nbgrader(cell).get("grade_id") == "01-objective" and name == "os-exit":
            cell.source = solution["01-objective"]
    return notebook


def write_class(folder, *, walled, port):
    """Writes a reference and a submission of each kind; returns the students' names."""
    reference = folder / "solutions" / "01_objective.ipynb"
    reference.parent.mkdir()
    nbformat.write(two_exercises(), reference)
    answers = {**HONEST, **VIOLENT, **CUNNING, "quotes": QUOTES, "spies": SPY}
    if not walled:
        answers = {name: answers[name] for name in WITHOUT_WALLS}
    files = [reference, folder / "submitted", folder / "book", PACKAGE.parent / "notebooks"]
    files = [*map(str, files), str(PACKAGE / "classroom" / "exercise.py")]
    for name, answer in answers.items():
        for word, fact in (
            ("sleep", SLEEP[walled]), ("port", port), ("files", files), ("switches", SWITCHES),
        ):  # fmt: skip
            answer = answer.replace("{{" + word + "}}", str(fact))
        path = folder / "submitted" / name / "01_objective.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(handed_in(name, answer), path)
    for name, content in MALFORMED.items():
        (folder / "submitted" / f"{name}_01_objective.ipynb").write_bytes(content)
    (folder / "submitted" / "link_01_objective.ipynb").symlink_to(reference)
    (folder / "submitted" / ODD).mkdir()
    for name in ("01_objective.ipynb", "01_objective-Copy1.ipynb"):
        nbformat.write(student_edition(two_exercises()), folder / "submitted" / ODD / name)
    return set(answers)


@pytest.fixture(
    scope="module",
    params=[pytest.param(True, marks=needs_bubblewrap), False],
    ids=["inside bubblewrap", "without bubblewrap"],
)
def graded(request, tmp_path_factory):
    """The grade book of a hostile class."""
    walled, folder = request.param, tmp_path_factory.mktemp("class")
    with socket.create_server(("127.0.0.1", 0)) as server:
        names = write_class(folder, walled=walled, port=server.getsockname()[1])
        command = [sys.executable, "-m", "ppo_toy.classroom", "grade", "submitted"]
        command += ["--out", "book", "--solutions", "solutions", "--jobs", "2"]
        command += ["--cell-seconds", "5", "--memory", "2"]
        command += [] if walled else ["--without-bubblewrap"]
        switches = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "a; b"}
        run = {"cwd": folder, "env": {**os.environ, "SECRET": "1", **switches}, "check": False}
        (folder / "tmp").mkdir()
        run["env"]["TMPDIR"] = str(folder / "tmp")
        answer = subprocess.run(command, capture_output=True, text=True, **run)
    left = os.listdir(folder / "tmp")
    clear(folder / "tmp")  # or pytest could not
    assert answer.returncode == 0, answer.stderr
    book = folder / "book"
    rows = csv.DictReader((book / "grades.csv").read_text(encoding="utf-8").splitlines())
    results = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in book.glob("results/*/01_objective.json")
    }
    return SimpleNamespace(
        walled=walled,
        names=names,
        rows={row["student"]: row for row in rows},
        results=results,
        verdicts={
            name: result["marks"][name == "quotes"]["verdict"] for name, result in results.items()
        },
        left=left,
        reports={p.stem: p.read_text(encoding="utf-8") for p in book.glob("reports/*.md")},
        page=(book / "class.md").read_text(encoding="utf-8"),
        lines=answer.stdout.splitlines(),
        note=answer.stderr,
    )


def test_every_file_has_a_row_a_report_and_a_line(graded):
    everyone = graded.names | set(MALFORMED) | {"link", safe_name(ODD)}
    assert set(graded.rows) == set(graded.reports) == everyone
    assert len(graded.lines) == len(everyone)


def test_a_right_answer_in_another_style_gets_its_points_though_it_prints(graded):
    assert graded.rows["right"]["01-brake"] == "2"
    assert graded.verdicts["right"] == "right"
    assert graded.rows["right"]["01-objective"] == "0"
    assert "not attempted" in graded.reports["right"]


def test_no_attack_earns_a_point(graded):
    for name in graded.names - set(HONEST):
        assert graded.rows[name]["01-brake"] == "0", graded.verdicts[name]


def test_no_malformed_file_earns_a_point_and_its_report_says_why(graded):
    for name in {*MALFORMED, "link"}:
        assert graded.rows[name]["total"] == "0"
        assert graded.results[name]["remarks"], name
    assert "at most" in graded.reports["too-large"]
    assert "not in UTF-8" in graded.reports["latin-1"]


def test_a_helper_in_a_cell_of_its_own_is_taken_along(graded):
    if graded.walled:
        assert graded.rows["helped"]["01-brake"] == "2"
        assert "01-brake: cells that it uses were taken along: " in graded.reports["helped"]


def test_names_of_folders_are_quoted_wherever_they_are_shown(graded):
    report = graded.reports[safe_name(ODD)]
    assert "Handed in as `submitted/‹img src=x›/01_objective.ipynb`" in report
    assert "not graded: submitted/‹img src=x›/01_objective-Copy1.ipynb`" in report
    assert "01_objective-Copy1.ipynb`: 01_objective.ipynb is graded" in graded.page
    assert "<" not in report + graded.page


def test_the_instructors_page_tells_the_faults_by_number(graded):
    assert "| 01-brake |" in graded.page
    assert "- 1 x `the kernel died`" in graded.page or graded.walled
    assert "- 1 x `it wrote into the folder of the kernel's sockets`" in graded.page


def test_what_crashes_costs_its_own_exercise_and_not_the_others(graded):
    assert graded.rows["os-exit"]["01-objective"] == "3"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("os-exit", "the kernel died"),
        ("swallows-the-interrupt", "it ran longer than 5 seconds"),
        ("fills-the-memory", "MemoryError"),
        ("hides-the-error", "it raised an error and hid it: ValueError"),
        ("prints-much-and-raises", "it printed more than"),
        ("fills-the-disk", "RuntimeError: filled []"),
        ("prints-half-a-line", "the shape is not right"),
        ("prints-a-line-more", "nothing more"),
        ("reads-the-expected", "RuntimeError: found []"),
        ("holds-markers", "the value is not right"),
        ("wrong", "β is missing"),
        ("digs", "it wrote into the folder of the kernel's sockets"),
        ("quotes", "RuntimeError: found False, False"),
    ],
)
def test_the_report_says_what_was_wrong(graded, name, said):
    if name in graded.names:
        assert said in graded.verdicts[name]
        assert said in graded.reports[name]


def test_a_crowd_is_ended_whoever_grades(graded):
    # root has no limit of the system's own
    said = f"it started more than {PROCESSES} processes|BlockingIOError"
    assert re.search(said, graded.verdicts["crowds"])


def test_no_folder_is_left_behind(graded):
    assert graded.left == []


def test_a_flood_is_cut_short_by_one_of_the_limits(graded):
    # It may fill the kernel's memory before the grader has read what it printed.
    if "floods" in graded.names:
        limits = "printed more than|MemoryError|the kernel died|ran longer than"
        assert re.search(limits, graded.verdicts["floods"])


def test_markers_and_the_packages_own_version_are_named_for_a_person(graded):
    if graded.walled:
        assert graded.rows["own"]["01-brake"] == "2"
        assert graded.rows["own"]["to_look_at"] == "1"
        assert "`kl_divergence`" in graded.reports["own"]
        assert "nbval markers in the answer were removed" in graded.reports["holds-markers"]


def test_no_process_is_left_behind(graded):
    assert "forges-the-report" in graded.names
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert SLEEP[graded.walled].encode() not in path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile


def test_reports_and_terminal_say_where_there_were_no_walls(graded):
    assert (NOT_WALLED in graded.reports["right"]) == (not graded.walled)
    assert (NOT_WALLED in graded.note) == (not graded.walled)


def test_inside_bubblewrap_an_answer_sees_nothing_worth_seeing(graded):
    if graded.walled:
        seen = json.loads(graded.verdicts["spies"].partition(": ")[2])
        assert seen.pop("home") == [".ipython"]  # made by the kernel itself
        assert seen.pop("files") == [False] * 5
        switches = seen.pop("switches")
        assert switches.pop("ATEN_CPU_CAPABILITY") == "default"
        assert switches.pop("ONEDNN_MAX_CPU_ISA") is None
        assert not any(seen.values()), seen
