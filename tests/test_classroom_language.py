"""What checks say in the learner's language, and that it changes nothing for a grader."""

import re
from pathlib import Path

import nbformat
import pytest

from ppo_toy.classroom.cells import read_cells
from ppo_toy.classroom.check import CheckFailed, check, lesson_of
from ppo_toy.classroom.language import MESSAGES, fill, read_table, told
from ppo_toy.classroom.release import read_solutions
from ppo_toy.classroom.splice import Reference, take
from ppo_toy.classroom.variables import LANGUAGE
from ppo_toy.editions.edition import find_editions
from ppo_toy.editions.language import breaches
from ppo_toy.editions.pages import code, read
from ppo_toy.editions.templates import templates
from ppo_toy.kl import kl_divergence

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
EDITIONS = find_editions(NOTEBOOKS)
LANGUAGES = [path.stem for path in MESSAGES.glob("*.tsv")]
IMPORT = "from ppo_toy.classroom.check import check"

every_language = pytest.mark.parametrize("language", LANGUAGES)
every_exercise = pytest.mark.parametrize(
    ("edition", "page"),
    [(x, page) for x in EDITIONS.values() for page in x.written if page.startswith("exercises/")],
    ids=lambda x: getattr(x, "language", x),
)


def swapped(logits, ref_logits, beta):
    return beta * kl_divergence(ref_logits, logits).sum(-1)


def verdict(answer):
    with pytest.raises(CheckFailed) as failure:
        check("01-brake", answer)
    return failure.value._render_traceback_()[0]


@every_language
def test_it_has_every_message_of_the_checks_and_no_other(language):
    table = read_table(language)
    assert set(table) == templates()
    for english, translation in table.items():
        n, places = english.count("{}"), re.findall(r"\{(\d*)\}", translation)
        assert sorted(int(x or k) for k, x in enumerate(places)) == [*range(n)], english


@every_language
def test_its_messages_keep_the_rules_of_its_edition(language):
    for english, translation in read_table(language).items():
        # A place may hold anything, and stars are no emphasis here.
        text = re.sub(r"\{\d*\}", "·", translation).replace("*", "")
        assert not [*breaches(EDITIONS[language], english, text, [])], english


@every_language
def test_every_mistake_of_every_exercise_has_its_own_sentence(language, monkeypatch):
    monkeypatch.setenv(LANGUAGE, language)
    table = read_table(language)
    names = {path.stem.split("_")[0] for path in (NOTEBOOKS / "solutions").glob("*.ipynb")}
    for name in sorted(names):
        for exercise in lesson_of(name).values():
            for message in getattr(exercise, "mistakes", ()):
                assert told(message) == table[message]


@every_language
def test_a_learner_reads_the_whole_verdict_in_it(language, monkeypatch):
    monkeypatch.setenv(LANGUAGE, language)
    table = read_table(language)
    headline, place, called, *_ = verdict(swapped).split("\n")
    assert headline.startswith(f"{table['not yet']}  01-brake: ")
    assert headline.endswith(table["the KL's arguments are swapped: the policy stands first"])
    for line in (place, called):
        assert not re.search(r"expected|yours|returned|called|case", line), line


@every_language
def test_messages_within_messages_are_told_in_it_too(language, monkeypatch):
    monkeypatch.setenv(LANGUAGE, language)
    table = read_table(language)
    inner = table["its sign is"]
    outer = told("the value is not right: its sign is")
    assert inner in outer
    assert "right" not in outer
    assert "{}" not in told("the value is not right")
    english = "expected 2 numbers, yours 3 things (number, array [2, 3], number)"
    assert not re.search(r"[a-z]", told(f"the shape is not right: {english}"))
    assert told("something else went wrong") == "something else went wrong"


@pytest.mark.parametrize("language", ["", "en", "xx", "../messages"])
def test_english_is_what_is_said_where_there_is_no_table(language, monkeypatch):
    monkeypatch.setenv(LANGUAGE, language)
    said = "not yet  01-brake: the KL's arguments are swapped: the policy stands first\n"
    assert verdict(swapped).startswith(said)


def test_a_line_of_wide_letters_is_as_wide_as_one_of_narrow_ones():
    lines = fill("01-brake: " + "宽" * 30 + "。word " + "字" * 20, 40).split("\n")
    assert [len(line) for line in lines] == [10 + 15, 15 + 1 + 4 + 1 + 1, 19]
    assert lines[1].startswith("宽")
    assert (
        fill("a word " * 9, 20)
        == "a word a word a word\na word a word a word\na word a word a word"
    )


def test_no_line_begins_with_a_mark_that_ends_a_clause():
    assert fill("宽" * 5 + "，" + "宽" * 2, 10) == "宽" * 5 + "，\n" + "宽" * 2


@every_exercise
def test_exercises_of_an_edition_speak_its_language(edition, page):
    sources = [x["source"] for x in read(edition.folder / page)["cells"]]
    assert sum(f'{LANGUAGE}"] = "{edition.language}"' in source for source in sources) == 1


@every_exercise
def test_a_submission_from_an_edition_is_graded_like_any_other(edition, page, tmp_path):
    path = NOTEBOOKS / page.replace("exercises", "solutions")
    notebook = read_solutions(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = code(edition, cell.source)
    assert sum(LANGUAGE in cell.source for cell in notebook.cells) == 1
    nbformat.write(notebook, tmp_path / path.name)
    reference = Reference.read(path)
    english, translated = (take(read_cells(x), reference) for x in (path, tmp_path / path.name))
    assert translated == english
    assert len(english.answers) >= 3
    assert english.remarks == []


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=list(EDITIONS))
def test_the_line_of_an_edition_names_its_language(edition, monkeypatch):
    monkeypatch.delenv(LANGUAGE, raising=False)
    exec(f"import os\n{code(edition, IMPORT)}", {})
    import os

    assert os.environ.pop(LANGUAGE) == edition.language
