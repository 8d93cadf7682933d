import pytest

from ppo_toy.classroom.sitting import plain, read_report


def cell(k, name="", inside=""):
    notes = f'<property name="grade_id" value="{name}"/><property name="printed" value="1&#10;2"/>'
    return f'<testcase name="Cell {k}"><properties>{notes}</properties>{inside}</testcase>'


def read(*cells, n_cells=3):
    xml = f"<testsuites><testsuite>{''.join(cells)}</testsuite></testsuites>"
    return read_report(xml.encode(), "01-a", n_cells)


def test_a_check_reported_once_without_a_fault_passes():
    sitting = read(cell(0), cell(1, "01-a"), cell(2, "01-a-check"))
    assert sitting.passed
    assert sitting.printed == "1\n2"


def test_a_fault_in_another_cell_costs_nothing_by_itself():
    assert read(cell(0), cell(1, "01-a", "<failure/>"), cell(2, "01-a-check")).passed


@pytest.mark.parametrize("fault", ["failure", "error", "skipped"])
def test_a_check_with_a_fault_does_not_pass(fault):
    assert not read(cell(0), cell(1), cell(2, "01-a-check", f"<{fault}/>")).passed


@pytest.mark.parametrize(
    "cells",
    [
        [cell(0), cell(1), cell(2)],
        [cell(0), cell(1, "01-a-check"), cell(2, "01-a-check")],
        [cell(0), cell(2, "01-a-check")],
        [cell(0), cell(1), cell(1), cell(2, "01-a-check")],
        [cell(0), cell(0), cell(2, "01-a-check")],
        [cell(0), cell(1), cell(2, "01-b-check")],
        [],
    ],
    ids=[
        "no check",
        "two checks",
        "a cell less",
        "a cell more",
        "a cell twice",
        "other",
        "nothing",
    ],
)
def test_anything_but_one_report_of_each_cell_does_not_pass(cells):
    assert not read(*cells).passed


@pytest.mark.parametrize("xml", [b"", b"<testsuites>", b"\xff\xfe"])
def test_without_a_report_there_are_no_points(xml):
    sitting = read_report(xml, "01-a", 3)
    assert not sitting.passed
    assert sitting.xml == b""
    assert sitting.ended == "the run ended without a report"


def test_a_strangers_text_becomes_one_short_line():
    assert plain("a\n\x1b[31mb\x1b[0m\tc\x07") == "a b c?"
    assert len(plain("x" * 1000)) < 310
    assert plain("β ≥ 1/2, \u202e`x`") == "β ≥ 1/2, ?`x`"
