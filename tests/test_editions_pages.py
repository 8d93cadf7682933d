"""What a translation must keep, on a made-up edition; then all pages of all editions."""

import json
import os
import re
from pathlib import Path

import pytest
from lingua import OPENING, RENDERED, change, fill, make

from ppo_toy.editions.compare import links
from ppo_toy.editions.edition import find_editions
from ppo_toy.editions.faults import drawing_faults, faults
from ppo_toy.editions.pages import read
from ppo_toy.editions.sheets import export, take

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
EDITIONS = find_editions(NOTEBOOKS)
PAGES = [(edition, page) for edition in EDITIONS.values() for page in edition.written]


@pytest.fixture
def edition(tmp_path):
    return make(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("$R$", "$r$", "formula: lost $R$; new $r$"),
        ("`run`", "`ran`", "code: lost `run`; new `ran`"),
        ("est 3", "est trois", "number: lost 3"),
        ("why.md", "how.md", "link: lost why.md; new how.md"),
        ("# One", "## One", "heading: lost #; new ##"),
        ("et `run`.", "et `run`.\n\n- x", "list: new -"),
        ("et `run`.", "et `run`.\n\n| x | x |", "table: new row of 2"),
        ("et `run`.", "et `run`.\n\n<details>", "tag: new <details>"),
        ("récompense", "réponse", "reward is récompense or prix"),
        ("récompense", "récompense, un gain", "reward is not gain but récompense or prix"),
        ("3,", "3 !", "a blank: ' !' in “se est 3 ! x; see ”"),
        ("La récompense", "**Après →** La récompense", "'**Next →**' is '**Après →**' here"),
        ("La récompense est 3", "La r*é!*compense est 3", "emphasis that begins or ends with"),
    ],
)
def test_what_differs_in_a_text_is_named(edition, old, new, said):
    fill(edition, a=RENDERED.replace(old, new))
    assert any(f"a: {said}" in x for x in faults(edition, "01.ipynb")), faults(edition, "01.ipynb")


def test_an_untranslated_text_is_named(edition):
    fill(edition, a=OPENING)
    assert "a: it is not translated" in faults(edition, "01.ipynb")


def test_words_in_a_formula_may_be_translated(edition):
    change(edition.notebooks / "01.ipynb", "c", source=r"$\text{twice two} = 4$")
    fill(edition, c=r"$\text{deux fois deux, été} = 4$")
    assert faults(edition, "01.ipynb") == []


def test_a_cell_may_be_allowed_what_a_rule_forbids_as_long_as_it_needs_it(edition):
    path = export(edition, "01.ipynb")
    sheet = path.read_text("utf-8").replace("La récompense", "Ça")
    path.write_text(re.sub("%%% xx", "%%% allows reward\n%%% xx", sheet, count=1), encoding="utf-8")
    take(edition, path)
    assert faults(edition, "01.ipynb") == []
    fill(edition, a=RENDERED)
    assert faults(edition, "01.ipynb") == ["a: allows 'reward', and need not"]


def test_a_drawing_may_differ_in_words_alone(edition):
    drawing = '<svg><text x="1" font-family="serif">word</text></svg>'
    for folder, text in ((edition.notebooks, drawing), (edition.folder, drawing)):
        (folder / "a.svg").write_text(text, encoding="utf-8")
    assert drawing_faults(edition) == ["a.svg: not translated"]
    translated = drawing.replace("word", "été").replace("serif", "sans-serif")
    (edition.folder / "a.svg").write_text(translated, encoding="utf-8")
    assert drawing_faults(edition) == []
    (edition.folder / "a.svg").write_text(translated.replace("1", "2"), encoding="utf-8")
    assert drawing_faults(edition) == ["a.svg: differs from the English drawing in more than words"]


@pytest.mark.parametrize(("edition", "page"), PAGES, ids=lambda x: getattr(x, "language", x))
def test_a_page_of_an_edition_has_no_fault(edition, page):
    assert faults(edition, page) == []


@pytest.mark.parametrize(("edition", "page"), PAGES, ids=lambda x: getattr(x, "language", x))
def test_relative_links_of_a_page_lead_somewhere(edition, page):
    path = edition.folder / page
    due = {edition.folder / other for other in edition.pages}  # some are still to be written
    for cell in read(path)["cells"]:
        for target in links(cell["source"]) if cell["cell_type"] == "markdown" else ():
            to = Path(os.path.normpath(path.parent / target.split("#")[0]))
            assert "://" in target or to.exists() or to in due, target


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=list(EDITIONS))
def test_an_edition_has_all_its_pages_and_no_other(edition):
    there = {x.relative_to(edition.folder).as_posix() for x in edition.folder.rglob("*.ipynb")}
    missing = set(edition.pages) - there
    assert there <= set(edition.pages)
    assert edition.table.get("unfinished", False) == bool(missing), missing
    assert drawing_faults(edition) == []


def test_notebooks_of_editions_are_collected_by_no_run_of_notebooks():
    namespace = {"__file__": str(NOTEBOOKS / "conftest.py")}
    exec((NOTEBOOKS / "conftest.py").read_text(encoding="utf-8"), namespace)
    assert set(EDITIONS) <= set(namespace["collect_ignore"])


def test_every_file_of_an_edition_ends_with_a_line():
    for edition, page in PAGES:
        raw = (edition.folder / page).read_text(encoding="utf-8")
        assert raw.endswith("}\n")
        assert json.loads(raw)["nbformat"] == 4
