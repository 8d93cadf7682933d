"""The instructor's weeks hold every lesson once, and their hours are README's minutes."""

import re
from pathlib import Path

import pytest
from form import NOTEBOOKS

README = (NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8")
PAGE = (NOTEBOOKS / "README.md").read_text(encoding="utf-8").split("## A syllabus")[1]
ROW = r"^\| \[.*\]\(notebooks/([\w/]+\.ipynb)\) .* \| ([\d +]+) \| \d+ \|$"
MINUTES = {name: sum(map(int, m.split("+"))) for name, m in re.findall(ROW, README, re.M)}
SHORT = [name for name in MINUTES if re.search(r"\d_", Path(name).name)]
WAYS = {"The short way, six weeks": SHORT, "The short way and depth, twelve weeks": list(MINUTES)}


def weeks(way: str) -> list[list[str]]:
    table = PAGE.split(f"**{way}**")[1].strip().split("\n\n")[1]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def links(cell: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", cell)


@pytest.mark.parametrize("way", WAYS)
def test_it_holds_each_lesson_once(way):
    read = [name for _, lessons, *_ in weeks(way) for name in links(lessons)]
    assert sorted(read) == sorted(WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_its_hours_are_the_readmes_minutes(way):
    for _, lessons, _, hours, _ in weeks(way):
        assert hours == f"{sum(MINUTES[name] for name in links(lessons)) / 60:.1f}", lessons
    total = sum(MINUTES[name] for name in WAYS[way]) / 60
    assert f"**{way}**, {total:.1f} hours:" in PAGE


@pytest.mark.parametrize("way", WAYS)
def test_what_is_handed_in_are_the_exercises_of_the_weeks_lessons(way):
    for _, lessons, exercises, *_ in weeks(way):
        there = [f"exercises/{Path(name).name}" for name in links(lessons)]
        assert links(exercises) == [name for name in there if (NOTEBOOKS / name).exists()]
