"""From the README a reader can walk the whole course, and back, by links alone."""

import json
from pathlib import Path

import pytest
from form import LINK, NOTEBOOKS

ROOT = NOTEBOOKS.parent
LESSONS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
SHORT_WAY = [path for path in LESSONS if path.stem.split("_")[0].isdigit()]
EXERCISES = sorted((NOTEBOOKS / "exercises").glob("*.ipynb"))
LAST = NOTEBOOKS / "exercises" / "12_your_own.ipynb"


def links(page: Path, last_cell: bool = False) -> list[Path]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells[-1 if last_cell else 0 :])
    targets = [target.split("#")[0] for _, target in LINK.findall(text) if "://" not in target]
    return [(page.parent / target).resolve() for target in targets if target]


def next_of(path: Path) -> Path:
    """The next lesson of the short way after a lesson, its depth or its exercises."""
    later = [page for page in SHORT_WAY if page.stem[:2] > path.stem[:2]]
    return later[0] if later else LAST


def lesson_of(path: Path) -> Path:
    number = path.stem.split("_")[0]
    return next(page for page in LESSONS if page.stem.split("_")[0] == number)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_ends_with_the_links_onward(path):
    end = links(path, last_cell=True)
    assert next_of(path) in end
    exercises = NOTEBOOKS / "exercises" / path.name
    assert exercises in end or not exercises.exists()
    if path in SHORT_WAY:
        deeper = [page for page in LESSONS if page.stem[:2] == path.stem[:2] and page != path]
        assert set(deeper) <= set(end)
    else:
        short = next(page for page in SHORT_WAY if page.stem[:2] == path.stem[:2])
        assert short in links(path), "there is no way back"


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_exercises_lead_back_to_their_lesson_and_on(path):
    if path == LAST:
        assert {SHORT_WAY[-1], ROOT / "README.md"} <= set(links(path))
    else:
        assert lesson_of(path) in links(path)
        assert next_of(path) in links(path, last_cell=True)


def test_every_notebook_and_page_can_be_reached_from_the_readme():
    reached, new = set(), [ROOT / "README.md"]
    while new:
        page = new.pop()
        if page not in reached and page.suffix in (".md", ".ipynb") and page.exists():
            reached.add(page)
            new += links(page)
    assert {*LESSONS, *EXERCISES, *NOTEBOOKS.glob("*.md")} <= reached
