import json
import re

import pytest
from form import LINK, NOTEBOOKS, Notebook

LESSONS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_it_keeps_its_budgets_and_the_form_of_its_cells(path):
    assert list(Notebook(path).faults()) == []


def test_the_whole_can_be_finished():
    words = {path.stem: Notebook(path).words for path in LESSONS}
    deep = {name for name in words if name.split("_")[0][-1].isalpha()}
    assert sum(n for name, n in words.items() if name not in deep) <= 24_000
    assert sum(words.values()) <= 46_000


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_readme_says_how_long_a_person_takes(path):
    readme = (NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| \[.*\]\(notebooks/{path.name}\) .*$", readme, re.M)
    minutes = str(Notebook(path).minutes)
    exercises = NOTEBOOKS / "solutions" / path.name
    if exercises.exists():
        stated = re.findall(r"about (\d+) minutes\)", exercises.read_text(encoding="utf-8"))
        minutes += f" + {sum(map(int, stated))}"
    assert row.split(" | ")[-2] == minutes


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_there_are_three_exercises_worth_ten_points_and_one_is_a_diagnosis(path):
    exercises = NOTEBOOKS / "solutions" / path.name
    if not exercises.exists():
        assert Notebook(path).deep or path.stem.startswith("00")
        return
    text = exercises.read_text(encoding="utf-8")
    titles = re.findall(r'"## (Exercise \d\. .*) \((\d+) points?, about \d+ minutes\)', text)
    assert len(titles) == 3
    assert sum(int(points) for _, points in titles) == 10
    assert sum("Diagnosis: " in title for title, _ in titles) == 1


def test_each_statement_of_the_source_is_taught_in_a_section_that_exists():
    page = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    table = page.split("## What is taught where")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    for row in rows:
        places = re.findall(r"\[(\d+b?\.\d+)\]\((\w+\.ipynb)\)", row)
        assert places, row
        for number, name in places:
            assert f"## {number} " in Notebook(NOTEBOOKS / name).text, row


def pages(pattern):
    """Those of the course in English, not the copies that JupyterLab leaves beside them."""
    editions = {table.parent for table in NOTEBOOKS.glob("*/edition.toml")}
    return [
        page
        for page in sorted(NOTEBOOKS.rglob(pattern))
        if ".ipynb_checkpoints" not in page.parts and not editions & set(page.parents)
    ]


@pytest.mark.parametrize("path", pages("*.ipynb"), ids=lambda path: path.stem)
def test_the_sections_that_it_names_exist(path):
    named = re.findall(r"[Ss]ections? (\d+)([bc]?)\.(\d+)", Notebook(path).text)
    for lesson, letter, section in named:
        for page in NOTEBOOKS.glob(f"{int(lesson):02}{letter}_*"):
            heading = f"## {lesson}{letter}.{section} "
            assert heading in Notebook(page).text, heading


PAGES = [NOTEBOOKS.parent / "README.md", *pages("*.md"), *pages("*.ipynb")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_relative_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for _, target in LINK.findall(text):
        assert "://" in target or (page.parent / target.split("#")[0]).exists(), target
