"""Editions in other languages; a made-up one shows that a language is a folder and a table."""

import json
import re
from pathlib import Path

import pytest

from ppo_toy.classroom.language import MESSAGES, read_table
from ppo_toy.editions.__main__ import main
from ppo_toy.editions.edition import Edition, find_editions
from ppo_toy.editions.faults import drawing_faults, faults
from ppo_toy.editions.pages import read, refresh, texts, write
from ppo_toy.editions.sheets import export, take
from ppo_toy.editions.templates import templates

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
EDITIONS = find_editions(NOTEBOOKS)
PAGES = [(edition, page) for edition in EDITIONS.values() for page in edition.written]

TABLE = """
name = "Lingua"
pages = ["0*.ipynb", "exercises/*.ipynb"]
script = '[À-ÿ]'
[[code]]
to = "import check"
adds = "\\nspeak()"
[[style]]
not = ' !'
why = "a blank"
[phrases]
"**Next →**" = "**Apr\u00e8s →**"
"""
GLOSSARY = """
| English | xx | not | remark |
|---|---|---|---|
| reward | récompense / prix | gain | |
| reward model | modèle | | |
"""
OPENING = "# One\n\nA reward of 3 is $R$; see [two](exercises/02.ipynb), [why](why.md) and `run`."
RENDERED = OPENING.replace("A reward of 3 is", "La récompense est 3,").replace("and", "et")


def markdown(name, source):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def coded(name, source):
    return {
        "cell_type": "code", "id": name, "metadata": {}, "execution_count": 1, "source": source,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": ["3\n"]}],
    }  # fmt: skip


def save(cells, path):
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    write(notebook, path)


@pytest.fixture
def edition(tmp_path):
    """An edition of two pages: one is translated, the other is not there."""
    cells = [markdown("a", OPENING), coded("b", "import check"), markdown("c", "Twice 2 is 4.")]
    save(cells, tmp_path / "01.ipynb")
    for folder in ("exercises", "solutions"):
        save([markdown("d", "# Two")], tmp_path / folder / "02.ipynb")
    (tmp_path / "xx").mkdir()
    (tmp_path / "xx" / "edition.toml").write_text(TABLE, encoding="utf-8")
    (tmp_path / "xx" / "glossary.md").write_text(GLOSSARY, encoding="utf-8")
    made = Edition(tmp_path, "xx")
    fill(made, a=RENDERED, c="Deux fois 2 égale 4.")
    assert main(["xx", "--notebooks", str(tmp_path)]) == 0
    return made


def fill(edition, **translations):
    """As a translator would: below the line of the language, and nowhere else."""
    path = export(edition, "01.ipynb")
    text = path.read_text(encoding="utf-8")
    for name, translation in translations.items():
        pattern = re.compile(rf"(^%%% {name} .*?^%%% xx\n).*?(?=^%%% |\Z)", re.M | re.S)
        text = pattern.sub(lambda m, new=translation: f"{m[1]}{new}\n\n", text)
    path.write_text(text, encoding="utf-8")
    return take(edition, path)


def change(path, name, **new):
    notebook = read(path)
    next(cell for cell in notebook["cells"] if cell["id"] == name).update(new)
    write(notebook, path)


def state(edition, name):
    return next(x.state for x in texts(edition, "01.ipynb") if x.cell == name)


def test_a_page_has_the_english_code_and_outputs_and_the_translators_text(edition):
    cells = read(edition.folder / "01.ipynb")["cells"]
    assert [cell["id"] for cell in cells] == ["a", "b", "c"]
    assert cells[1] == coded("b", "import check\nspeak()")
    assert cells[2]["source"] == "Deux fois 2 égale 4."
    assert faults(edition, "01.ipynb") == []


def test_links_lead_to_the_editions_pages_and_up_to_all_else(edition):
    source = read(edition.folder / "01.ipynb")["cells"][0]["source"]
    assert "[two](exercises/02.ipynb)" in source
    assert "[why](../why.md)" in source
    assert edition.inward(edition.outward(OPENING, "01.ipynb"), "01.ipynb") == OPENING
    inside = "[one](../01.ipynb) [sheet](../why.md) [home](../../README.md) [x](https://a.b/c)"
    moved = "[one](../01.ipynb) [sheet](../../why.md) [home](../../../README.md) [x](https://a.b/c)"
    assert edition.outward(inside, "exercises/02.ipynb") == moved
    assert edition.inward(moved, "exercises/02.ipynb") == inside


def test_both_pages_lead_to_each_other_behind_their_titles(edition):
    there, back = (read(folder / "01.ipynb") for folder in (edition.notebooks, edition.folder))
    assert there["cells"][0]["source"].split("\n\n")[1] == "[Lingua](xx/01.ipynb)"
    assert back["cells"][0]["source"].split("\n\n")[1] == "[English](../01.ipynb)"
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
    assert [cell["id"] for cell in cells] == ["a", "c", "b", "e"]
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


def test_the_command_lists_faults_and_fails(edition, capsys):
    where = ["--notebooks", str(edition.notebooks)]
    assert main(["xx", *where, "--check", "01"]) == 0
    assert main(["xx", *where, "--check"]) == 1
    assert "exercises/02.ipynb: 1 fault\n  missing: " in capsys.readouterr().out
    assert main(["xx", *where, "--check", "05"]) == 2
    assert main(["yy", *where]) == 2
    assert "no edition 'yy'; known: xx" in capsys.readouterr().err


@pytest.mark.parametrize(("edition", "page"), PAGES, ids=lambda x: getattr(x, "language", x))
def test_a_page_of_an_edition_has_no_fault(edition, page):
    assert faults(edition, page) == []


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=list(EDITIONS))
def test_an_edition_has_all_its_pages_and_no_other(edition):
    there = {x.relative_to(edition.folder).as_posix() for x in edition.folder.rglob("*.ipynb")}
    missing = set(edition.pages) - there
    assert there <= set(edition.pages)
    assert edition.table.get("unfinished", False) == bool(missing), missing
    assert drawing_faults(edition) == []


@pytest.mark.parametrize("language", [path.stem for path in MESSAGES.glob("*.tsv")])
def test_a_language_has_every_message_of_the_checks_and_no_other(language):
    assert language in EDITIONS
    table = read_table(language)
    assert set(table) == templates()
    for english, translation in table.items():
        n, places = english.count("{}"), re.findall(r"\{(\d*)\}", translation)
        assert sorted(int(x or k) for k, x in enumerate(places)) == [*range(n)], english


def test_notebooks_of_editions_are_collected_by_no_run_of_notebooks():
    namespace = {"__file__": str(NOTEBOOKS / "conftest.py")}
    exec((NOTEBOOKS / "conftest.py").read_text(encoding="utf-8"), namespace)
    assert set(EDITIONS) <= set(namespace["collect_ignore"])


def test_every_file_of_an_edition_ends_with_a_line():
    for edition, page in PAGES:
        raw = (edition.folder / page).read_text(encoding="utf-8")
        assert raw.endswith("}\n")
        assert json.loads(raw)["nbformat"] == 4
