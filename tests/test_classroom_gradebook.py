import csv
import json
import os

import pytest

from ppo_toy.classroom.gradebook import (
    NOT_WALLED,
    Gradebook,
    Mark,
    Record,
    class_page,
    report,
    table,
)


def record(student="ada", lesson="01_x", points=2, **changes):
    marks = [Mark("01-a", points, 2, "right"), Mark("01-b", 0, 3, "β is missing", ["sys"])]
    fields = {"file": f"{student}.ipynb", "digest": "d", "seed": 7, "walled": True}
    fields |= {"marks": marks, "remarks": []} | changes
    return Record(student=student, lesson=lesson, **fields)


def test_the_table_has_a_row_for_a_student_and_a_column_for_an_exercise():
    other = record(lesson="02_y", marks=[Mark("02-c", 4, 4, "right")])
    rows = list(csv.reader(table([other, record(), record("bob", points=0)]).splitlines()))
    assert rows == [
        ["student", "01-a", "01-b", "02-c", "total", "out_of", "to_look_at"],
        ["ada", "2", "0", "4", "6", "9", "1"],
        ["bob", "0", "0", "", "0", "9", "1"],
    ]


def test_a_report_says_what_failed_and_what_was_odd():
    text = report([record(remarks=["01-a: the check cell was altered"], walled=False)])
    for part in ("# ada", "01_x: 2 of 5 points", "β is missing", "`sys`", "altered", NOT_WALLED):
        assert part in text
    assert NOT_WALLED not in report([record()])


def test_a_strangers_text_cannot_leave_its_place_in_a_report():
    text = report([record(marks=[Mark("01-a", 0, 2, "`**bold**`")])])
    assert "`'**bold**'`" in text


def test_names_and_paths_cannot_leave_their_place_either():
    odd = "<img src=x>`|\n# a heading"
    text = report([record(file=odd, remarks=[odd])])
    text += class_page([record(marks=[Mark("01-a", 0, 2, odd)])], {odd: "it is no notebook"})
    assert text.count("`‹img src=x›'|?# a heading`") == 4
    assert "<" not in text
    assert "\n# a" not in text


def test_the_instructors_page_counts_who_solved_what_and_the_faults():
    def of(student, *verdicts):
        marks = [
            Mark(name, 2 * (verdict == "right"), 2, verdict)
            for name, verdict in zip(("01-a", "01-b"), verdicts, strict=True)
        ]
        return record(student, marks=marks)

    page = class_page(
        [
            of("ada", "right", "β is missing"),
            of("bob", "right", "k1 was expected: 0.5 -1.25 3, yours [[0.25, 2.0], [-inf, 1]]"),
            of("carl", "not attempted", "k1 was expected: 7.5, yours (1e-05)"),
            of("dora", "no answer", "β is missing"),
        ],
        {"submitted/eve": "an empty folder"},
    )
    assert "| 01-a | 4 | 2 | 2 |\n| 01-b | 4 | 4 | 0 |" in page
    assert "**01-a**\n\n- 1 x `not attempted`\n- 1 x `no answer`" in page
    assert "**01-b**\n\n- 2 x `β is missing`\n- 2 x `k1 was expected: …, yours …`" in page
    assert "## Not graded\n\n- `submitted/eve`: an empty folder" in page


def test_what_was_written_is_read_again(tmp_path):
    book = Gradebook(tmp_path / "book")
    book.add(record(), {"01-a": b"<xml/>"})
    assert (tmp_path / "book" / "junit" / "ada" / "01-a.xml").read_bytes() == b"<xml/>"
    again = Gradebook(tmp_path / "book")
    assert again.records == {("ada", "01_x"): record()}
    assert again.holds("ada", "01_x", "d")
    assert not again.holds("ada", "01_x", "another digest")
    assert not again.holds("bob", "01_x", "d")


def test_a_new_grade_replaces_the_old_one_and_leaves_the_others(tmp_path):
    book = Gradebook(tmp_path)
    book.add(record(points=0), {})
    book.add(record("bob"), {})
    book.add(record(points=2), {})
    rows = list(csv.DictReader((tmp_path / "grades.csv").read_text().splitlines()))
    assert [(row["student"], row["total"]) for row in rows] == [("ada", "2"), ("bob", "2")]


@pytest.mark.parametrize("now", [{"01-a": 2}, {"01-a": 2, "01-c": 3}, {"01-a": 2, "01-b": 4}])
def test_a_book_of_other_exercises_or_points_is_refused_and_named(now, tmp_path):
    book = Gradebook(tmp_path)
    book.add(record(), {})
    book.add(record("eve", "unknown", marks=[]), {})
    for points in ({"01_x": {"01-a": 2, "01-b": 3}}, {"02_y": now}):
        book.refuse_another_edition(points)
    with pytest.raises(ValueError, match=r"another edition: ada's 01_x .* 01-a \(2\), 01-b \(3\)"):
        book.refuse_another_edition({"01_x": now})


def test_a_grade_is_never_half_written(tmp_path, monkeypatch):
    book = Gradebook(tmp_path)
    book.add(record(points=2), {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def power_cut(file):
        raise OSError("no power")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="no power"):
        book.add(record(points=0), {})
    assert {path: path.read_bytes() for path in before} == before
    assert Gradebook(tmp_path).records == {("ada", "01_x"): record(points=2)}


def test_results_that_were_graded_elsewhere_can_be_copied_together(tmp_path):
    for machine, student in (("a", "ada"), ("b", "bob")):
        Gradebook(tmp_path / machine).add(record(student), {})
        source = tmp_path / machine / "results" / student
        target = tmp_path / "all" / "results" / student
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    Gradebook(tmp_path / "all").publish()
    assert len((tmp_path / "all" / "grades.csv").read_text().splitlines()) == 3
    assert len(list((tmp_path / "all" / "reports").iterdir())) == 2


@pytest.mark.parametrize("content", ["{", "{}", '{"marks": [{}]}'])
def test_a_result_of_something_else_is_named(content, tmp_path):
    path = tmp_path / "results" / "ada" / "01_x.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match="01_x.json is no result of this grader"):
        Gradebook(tmp_path)


def test_names_in_other_alphabets_survive(tmp_path):
    Gradebook(tmp_path).add(record("Ærøskøbing"), {})
    assert json.loads((tmp_path / "results" / "Ærøskøbing" / "01_x.json").read_text("utf-8"))
    assert ("Ærøskøbing", "01_x") in Gradebook(tmp_path).records
