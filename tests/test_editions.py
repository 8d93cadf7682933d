"""The machinery of editions, on a made-up one, which needs no line of Python."""

import re

import pytest
from lingua import OPENING, change, coded, fill, make, markdown, state

from ppo_toy.editions.__main__ import main
from ppo_toy.editions.faults import faults
from ppo_toy.editions.pages import read, refresh, write
from ppo_toy.editions.sheets import export, take


@pytest.fixture
def edition(tmp_path):
    return make(tmp_path)


def test_a_page_has_the_english_code_and_outputs_and_the_translators_text(edition):
    cells = read(edition.folder / "01.ipynb")["cells"]
    assert [cell["id"] for cell in cells] == ["a", "b", "c", "f"]
    assert cells[1] == coded("b", "import check\nspeak()")
    assert cells[2]["source"] == "Deux fois 2 égale 4."
    assert faults(edition, "01.ipynb") == []


def test_what_is_said_of_a_figure_is_a_text_like_any_other(edition):
    cell = read(edition.folder / "01.ipynb")["cells"][3]
    assert (cell["source"], cell["metadata"]["alt"]) == ("draw()", "Une ligne tirée de 1 à 2.")
    change(edition.notebooks / "01.ipynb", "f", metadata={"alt": "A line from 1 to 3."})
    assert faults(edition, "01.ipynb") == ["f: stale", "f: number: lost 3; new 2"]
    fill(edition, f="Une ligne tirée de 1 à 3.")
    assert faults(edition, "01.ipynb") == []
    change(edition.folder / "01.ipynb", "f", metadata={"alt": "A line from 1 to 3."})
    assert faults(edition, "01.ipynb") == ["f: missing"]


def test_links_lead_to_the_editions_pages_and_up_to_all_else(edition):
    source = read(edition.folder / "01.ipynb")["cells"][0]["source"]
    assert "[two](exercises/02.ipynb)" in source
    assert "[why](../why.md)" in source
    assert edition.inward(edition.outward(OPENING, "01.ipynb"), "01.ipynb") == OPENING
    inside = "[one](../01.ipynb) [sheet](../why.md) [home](../../README.md) [x](https://a.b/c)"
    moved = "[one](../01.ipynb) [sheet](../../why.md) [home](../../../README.md) [x](https://a.b/c)"
    assert edition.outward(inside, "exercises/02.ipynb") == moved
    (edition.notebooks / "README.md").write_text("of the notebooks, not of the course")
    assert edition.outward(inside, "exercises/02.ipynb") == moved
    assert edition.inward(moved, "exercises/02.ipynb") == inside


def test_both_pages_lead_to_each_other_behind_their_titles(edition):
    there, back = (read(folder / "01.ipynb") for folder in (edition.notebooks, edition.folder))
    assert there["cells"][0]["source"].split("\n\n")[1] == "[Lingua](xx/01.ipynb)"
    line = "[English](../01.ipynb) · [Glossaire](glossary.md)"
    assert back["cells"][0]["source"].split("\n\n")[1] == line
    # A page that the edition does not have is not offered.
    assert read(edition.notebooks / "exercises" / "02.ipynb")["cells"][0]["source"] == "# Two"
    change(edition.notebooks / "01.ipynb", "a", source=OPENING)
    assert faults(edition, "01.ipynb") == ["the English page does not lead here"]


def test_exercises_lead_there_from_their_solutions_too(edition):
    write(read(edition.notebooks / "exercises" / "02.ipynb"), edition.folder / "exercises/02.ipynb")
    main(["xx", "--notebooks", str(edition.notebooks)])
    for folder in ("exercises", "solutions"):
        source = read(edition.notebooks / folder / "02.ipynb")["cells"][0]["source"]
        assert source == "# Two\n\n[Lingua](../xx/exercises/02.ipynb)"


def test_a_changed_text_is_stale_and_says_where(edition):
    new = "Twice 2 is 4.\n\nNow more."
    change(edition.notebooks / "01.ipynb", "c", source=new)
    assert state(edition, "c") == "stale"
    assert "c: stale" in faults(edition, "01.ipynb")
    sheet = export(edition, "01.ipynb").read_text(encoding="utf-8")
    assert "%%% c stale\n" + new + "\n%%% changed\nNow more.\n%%% xx\nDeux fois" in sheet
    fill(edition)  # nothing was touched
    assert state(edition, "c") == "stale"
    fill(edition, c="Deux fois 2 égale 4.\n\nEt voilà.")
    assert state(edition, "c") == "done"


def test_a_stale_translation_may_be_declared_right_as_it_stands(edition):
    change(edition.notebooks / "01.ipynb", "c", source="Two times 2 is 4.")
    path = export(edition, "01.ipynb")
    sheet = path.read_text(encoding="utf-8").replace("%%% c stale", "%%% c done")
    path.write_text(sheet, encoding="utf-8")
    take(edition, path)
    assert state(edition, "c") == "done"


def test_a_sheet_renders_the_text_that_stands_in_it_not_what_came_later(edition):
    path = export(edition, "01.ipynb")
    path.write_text(path.read_text("utf-8").replace("Deux fois", "Le double de"), encoding="utf-8")
    change(edition.notebooks / "01.ipynb", "c", source="Thrice 2 is 6.")
    take(edition, path)
    assert state(edition, "c") == "stale"


def test_a_sheet_with_unwritten_texts_is_not_overwritten(edition):
    path = export(edition, "01.ipynb")
    path.write_text(path.read_text("utf-8").replace("Deux fois", "Le double de"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"not in the notebook yet \(c\)"):
        export(edition, "01.ipynb")


def test_a_moved_cell_takes_its_translation_along(edition):
    notebook = read(edition.notebooks / "01.ipynb")
    notebook["cells"].insert(1, markdown("c", "Entirely new."))
    notebook["cells"][3]["id"] = "e"
    write(notebook, edition.notebooks / "01.ipynb")
    refresh(edition, "01.ipynb")
    cells = read(edition.folder / "01.ipynb")["cells"]
    assert [cell["id"] for cell in cells] == ["a", "c", "b", "e", "f"]
    assert cells[3]["source"] == "Deux fois 2 égale 4."
    assert state(edition, "c") == "missing"


@pytest.mark.parametrize(
    ("name", "new", "said"),
    [
        ("b", {"source": "import check"}, "b: not what the tool makes .*: source"),
        ("b", {"outputs": []}, "b: not what the tool makes .*: outputs"),
        ("b", {"metadata": {"tags": []}}, "b: not what the tool makes .*: metadata"),
        ("b", {"id": "z"}, "z: superfluous"),
        ("c", {"metadata": {}}, "c: missing"),
    ],
)
def test_what_is_not_the_english_cell_is_named(edition, name, new, said):
    change(edition.folder / "01.ipynb", name, **new)
    told = faults(edition, "01.ipynb")
    assert any(re.match(said, x) for x in told), told


def test_the_command_lists_faults_and_fails(edition, capsys):
    where = ["--notebooks", str(edition.notebooks)]
    assert main(["xx", *where, "--check", "01"]) == 0
    assert main(["xx", *where, "--check"]) == 1
    assert "exercises/02.ipynb: 1 fault\n  missing: " in capsys.readouterr().out
    assert main(["xx", *where, "--check", "05"]) == 2
    assert main(["yy", *where]) == 2
    assert "no edition 'yy'; known: xx" in capsys.readouterr().err
