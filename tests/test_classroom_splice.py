import copy
import json
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from ppo_toy.classroom import splice
from ppo_toy.classroom.cells import ANSWER_BYTES, BRACKETS, FILE_BYTES, read_cells
from ppo_toy.classroom.helpers import names
from ppo_toy.classroom.release import nbgrader, student_edition
from ppo_toy.classroom.splice import Reference, for_a_person, is_untouched, spliced, take

PATH = Path(__file__).parents[1] / "notebooks" / "solutions" / "01_objective.ipynb"
REFERENCE = Reference.read(PATH)
NOT_RUN = "cells that no answer uses, no plain Python, or too long, not run: "
ANSWER = "def brake(a, b, c):\n    return 1\n"


def submission(**answers):
    cells = copy.deepcopy(student_edition(REFERENCE.notebook).cells)
    for cell in cells:
        cell.source = answers.get(nbgrader(cell).get("grade_id", "").replace("-", "_"), cell.source)
    return json.loads(json.dumps(cells))


def cell_of(cells, name):
    return next(c for c in cells if c["metadata"].get("nbgrader", {}).get("grade_id") == name)


def test_a_reference_knows_its_questions_in_order_with_their_points():
    points = {name: question.points for name, question in REFERENCE.questions.items()}
    assert points == {"01-brake": 2, "01-objective": 3, "01-which-beta": 5}


def test_a_reference_without_a_check_is_refused(tmp_path):
    notebook = nbformat.read(PATH, as_version=4)
    notebook.cells = [c for c in notebook.cells if nbgrader(c).get("grade_id") != "01-brake-check"]
    nbformat.write(notebook, tmp_path / "01_x.ipynb")
    with pytest.raises(ValueError, match="answer '01-brake' has no cell 01-brake-check"):
        Reference.read(tmp_path / "01_x.ipynb")


def test_a_reference_that_is_no_notebook_or_has_no_points_is_named(tmp_path):
    path = tmp_path / "01_x.ipynb"
    notebook = nbformat.read(PATH, as_version=4)
    del notebook.cells[REFERENCE.questions["01-brake"].check].metadata.nbgrader["points"]
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match="01_x.ipynb: the cell 01-brake-check has no points"):
        Reference.read(path)
    for text in ("{", "{}", '{"nbformat": 4, "nbformat_minor": 5, "cells": []}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="01_x.ipynb is no notebook of format 4"):
            Reference.read(path)


def test_a_references_digest_changes_with_its_own_checks_and_no_others(tmp_path, monkeypatch):
    for name in ("__init__", "lesson_01", "lesson_01_more", "lesson_01b", "lesson_010"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setattr(splice.checks, "__file__", str(tmp_path / "__init__.py"))
    seen = [Reference.read(PATH).digest]
    for name in ("lesson_01b", "lesson_010", "lesson_01", "lesson_01_more"):
        (tmp_path / f"{name}.py").write_text("changed", encoding="utf-8")
        seen.append(Reference.read(PATH).digest)
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen)) == 3


def test_only_answer_cells_are_taken():
    cells = submission(**{"01_brake": ANSWER})
    cells.append({"cell_type": "code", "source": "import os", "metadata": {}, "id": "new"})
    taken = take(cells, REFERENCE)
    assert taken.answers["01-brake"] == ANSWER
    assert set(taken.answers) == set(REFERENCE.questions)
    assert not any(taken.helpers.values())
    assert taken.remarks == [NOT_RUN + str(len(cells))]


def test_a_code_cell_that_was_altered_or_removed_is_remarked_on():
    cells = submission()
    given = [c for c in cells if c["cell_type"] == "code" and not c["metadata"].get("nbgrader")]
    given[1]["source"] += "\nimport numpy as np"
    assert take(cells, REFERENCE).remarks == [
        "code cells of the reference that were altered or removed, and are used: 1",
        NOT_RUN + str(cells.index(given[1]) + 1),
    ]
    cells.remove(given[1])
    given[0]["source"] = given[0]["source"].splitlines(keepends=True)
    cells.append({"cell_type": "code", "source": "\n", "metadata": {}, "id": "empty"})
    assert take(cells, REFERENCE).remarks == [
        "code cells of the reference that were altered or removed, and are used: 1"
    ]


def test_an_answer_to_an_exercise_of_another_edition_is_named():
    cells = submission()
    cell_of(cells, "01-brake")["metadata"]["nbgrader"]["grade_id"] = "01-of-old"
    assert "of another edition of the exercises: 01-of-old" in take(cells, REFERENCE).remarks


def test_a_source_may_be_a_list_of_lines():
    cells = submission()
    cell_of(cells, "01-brake")["source"] = ANSWER.splitlines(keepends=True)
    assert take(cells, REFERENCE).answers["01-brake"] == ANSWER


def test_without_metadata_the_cell_id_tells():
    cells = submission(**{"01_brake": ANSWER})
    for cell in cells:
        cell["metadata"] = {}
    taken = take(cells, REFERENCE)
    assert taken.answers["01-brake"] == ANSWER
    assert taken.remarks == []


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (lambda cell, cells: cells.remove(cell), "missing"),
        (lambda cell, cells: cell["metadata"]["nbgrader"].update(grade_id="01-x"), "missing"),
        (lambda cell, cells: cells.append({**cell, "source": "x"}), "2 different answer cells"),
        (lambda cell, cells: cell.update(cell_type="markdown"), "no code cell"),
        (lambda cell, cells: cell.update(source={"a": 1}), "no code cell"),
        (lambda cell, cells: cell.update(source=["a", 1]), "no code cell"),
        (lambda cell, cells: cell.update(source="\ud800"), "characters that are none"),
        (lambda cell, cells: cell.update(source="#" * (ANSWER_BYTES + 1)), "at most"),
    ],
)
def test_an_answer_that_cannot_be_taken_is_named_and_costs_nothing_else(change, remark):
    cells = submission()
    change(cell_of(cells, "01-brake"), cells)
    taken = take(cells, REFERENCE)
    assert set(taken.answers) == set(REFERENCE.questions) - {"01-brake"}
    assert [r for r in taken.remarks if r.startswith("01-brake: ") and remark in r]


def test_the_same_cell_twice_is_one_answer():
    cells = submission()
    cells.append(cell_of(cells, "01-brake"))
    assert take(cells, REFERENCE).remarks == []


def test_an_altered_check_is_named():
    cells = submission(**{"01_brake_check": "print('ok')"})
    assert take(cells, REFERENCE).remarks == [
        "01-brake: the check cell was altered; the reference's is used"
    ]


def test_markers_are_removed_and_other_comments_stay():
    cells = submission(**{"01_brake": "## NBVAL_SKIP\n# a comment\n  #NBVAL_CHECK_OUTPUT\nx = 1"})
    taken = take(cells, REFERENCE)
    assert taken.answers["01-brake"] == "#\n# a comment\n#\nx = 1"
    assert taken.remarks == ["01-brake: nbval markers in the answer were removed"]


HELPERS = """\
import torch.nn.functional as F
LIMIT = 3
%matplotlib inline
---
def log_ratio(a, b):
    return F.log_softmax(a, -1) - other(b)
---
print(log_ratio)
---
def other(b):
    return F.log_softmax(b, -1)
---
for for for
---
%pip install everything
""".split("---\n")


def with_helpers(answer, helpers=HELPERS, last="def other(b): return 0"):
    cells = submission(**{"01_brake": answer})
    place = cells.index(cell_of(cells, "01-brake"))
    added = [{"cell_type": "code", "source": h, "metadata": {}, "id": []} for h in helpers]
    cells[place:place] = added
    return [*cells, {"cell_type": "code", "source": last, "metadata": {}}], place


def test_cells_that_an_answer_uses_are_taken_along_and_the_others_are_named():
    cells, k = with_helpers("def brake(a, b, c):\n    return log_ratio(a, b) * c\n")
    taken = take(cells, REFERENCE)
    assert taken.helpers.pop("01-brake") == [
        HELPERS[0].replace("%matplotlib inline", ""), HELPERS[1], HELPERS[3],
    ]  # fmt: skip
    assert not any(taken.helpers.values())
    assert taken.remarks == [
        f"01-brake: cells that it uses were taken along: {k + 1}, {k + 2}, {k + 4}",
        f"{NOT_RUN}{k + 3}, {k + 5}, {k + 6}, {len(cells)}",
    ]


def test_an_earlier_answer_is_taken_along_where_a_later_one_uses_it():
    answer = "def objective(*arguments):\n    return brake(*arguments)\n"
    taken = take(submission(**{"01_brake": ANSWER, "01_objective": answer}), REFERENCE)
    assert taken.helpers["01-objective"] == [ANSWER]
    assert not taken.helpers["01-brake"]
    assert taken.remarks == []  # that is no cell of the learner's own


def test_a_helper_that_is_too_long_or_holds_a_marker_is_no_way_round():
    long = f"helper = 1\n{'#' * ANSWER_BYTES}"
    taken = take(with_helpers("def brake(*a):\n    return helper", [long])[0], REFERENCE)
    assert not taken.helpers["01-brake"]
    assert taken.remarks[0].startswith(NOT_RUN)
    marked = "# NBVAL_SKIP\nhelper = 1"
    taken = take(with_helpers("def brake(*a):\n    return helper", [marked])[0], REFERENCE)
    assert taken.helpers["01-brake"] == ["#\nhelper = 1"]


@pytest.mark.parametrize(
    ("source", "gives", "wants"),
    [
        ("import a.b as c, d.e\nfrom f import g as h", {"c", "d", "h"}, set()),
        ("def f(x):\n    y = x\n    return y + z", {"f"}, {"z"}),
        ("class A:\n    def f(self):\n        return [k + w for k in v]", {"A"}, {"w", "v"}),
        ("def f():\n    x = 1\n    return lambda: x + u", {"f"}, {"u"}),
        ("x = 1\nprint(x)", {"x"}, {"print"}),
        ("-" * 50_000 + "1", set(), set()),
        ("a" + ".b" * 40_000, set(), set()),
        ("\0", set(), set()),
        ("\ud800 = 1", set(), set()),
    ],
)
def test_names_are_found_as_python_finds_them(source, gives, wants):
    assert names(source)[1:] == (gives, wants)


def test_a_copy_holds_one_answer_its_helpers_and_check_and_no_other_answer():
    notebook = spliced(REFERENCE, "01-which-beta", "mine = 1", "expected\n", ["first", "second"])
    grade_ids = [nbgrader(cell).get("grade_id") for cell in notebook.cells]
    assert grade_ids == [
        None, None, "01-which-beta-helper-0", "01-which-beta-helper-1",
        "01-which-beta", "01-which-beta-check",
    ]  # fmt: skip
    assert [cell.source for cell in notebook.cells[2:4]] == ["first", "second"]
    assert all(cell.cell_type == "code" for cell in notebook.cells)
    answer, check = notebook.cells[-2:]
    assert answer.source == "mine = 1"
    assert check.outputs[0].text == "expected\n"
    assert check.execution_count == 1
    assert check.source == 'check("01-which-beta", which_beta)'
    for name in set(REFERENCE.questions) - {"01-which-beta"}:
        assert all(REFERENCE.solution(name) not in cell.source for cell in notebook.cells)
    assert all(cell.outputs == [] for cell in notebook.cells[:-1])
    nbformat.validate(notebook)


def test_a_stub_is_known_whatever_its_spaces():
    cells = submission()
    source = cell_of(cells, "01-brake")["source"]
    assert is_untouched(source, REFERENCE, "01-brake")
    assert is_untouched(source + "\n\n", REFERENCE, "01-brake")
    assert not is_untouched(ANSWER, REFERENCE, "01-brake")


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("from ppo_toy import kl\ndef brake(a, b, c): return kl.kl_divergence(a, b)",
         ["kl_divergence", "ppo_toy"]),
        ("def brake(a, b, c):\n    # not kl_divergence\n    return a", []),
        ("%pip install x\nkl_divergence = 1", ["kl_divergence"]),
        ("import sys; sys._getframe(1)", ["sys"]),
        ("((((" * 1000, []),
        ("model.eval(); torch.compile(f); re.compile(p); file.open()", []),
        ("eval(x); object.__getattribute__(f, x)", ["__getattribute__", "eval"]),
        ("open (x); f . open(x)", ["open"]),
        ("import pkgutil; pkgutil.resolve_name(x)", ["pkgutil"]),
    ],
)  # fmt: skip
def test_what_a_person_should_look_at_is_found_in_code_and_not_in_comments(answer, names):
    assert for_a_person(answer, REFERENCE, "01-brake") == names


def test_the_name_that_is_asked_for_is_not_suspicious():
    question = REFERENCE.questions["01-brake"]
    exercise = replace(question.exercise, own=("brake", "sum"))
    reference = replace(REFERENCE, questions={"01-brake": replace(question, exercise=exercise)})
    assert for_a_person(reference.solution("01-brake"), reference, "01-brake") == ["sum"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "no list of cells"),
        (b'{"worksheets": []}', "no list of cells"),
        (b'{"cells": {}}', "no list of cells"),
        ('{"cells": ["é"]}'.encode("latin-1"), "not in UTF-8"),
        (b" " * (FILE_BYTES + 1), "bytes; at most"),
        (b'{"cells": [' + b"{}," * 3_300_000 + b"{}]}", f"over {BRACKETS:,} brackets"),
        (b'{"cells": [' + b"[]," * 400_000 + b"{}]}", "brackets"),
    ],
)
def test_a_file_that_is_no_notebook_says_so(content, message, tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_cells(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_newer_formats_and_other_encodings_of_unicode_are_read(encoding, tmp_path):
    path = tmp_path / "x.ipynb"
    text = json.dumps({"nbformat": 9, "cells": [{"source": "é"}, 7]}, ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    assert read_cells(path) == [{"source": "é"}]


def test_a_link_or_a_folder_is_not_read(tmp_path):
    (tmp_path / "link.ipynb").symlink_to(PATH)
    (tmp_path / "folder.ipynb").mkdir()
    for name in ("link.ipynb", "folder.ipynb"):
        with pytest.raises(ValueError, match="not a plain file"):
            read_cells(tmp_path / name)
