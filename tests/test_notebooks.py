import ast
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
# In other languages: proven equal to the English ones in test_editions.
EDITIONS = {table.parent for table in (ROOT / "notebooks").glob("*/edition.toml")}
NOTEBOOKS = sorted(
    path
    for path in (ROOT / "notebooks").rglob("*.ipynb")
    if not {".ipynb_checkpoints", "exercises"} & set(path.parts) and path.parent not in EDITIONS
)
LAST = ROOT / "notebooks" / "exercises" / "12_your_own.ipynb"
KNOWN_TAGS = {"nbval-check-output", "nbval-skip", "nbval-ignore-output"}
KNOWN_TAGS |= {"hide-input", "hide-output"}  # folding, for the web edition
NOT_EVERYWHERE = re.compile(
    r"\\(operatorname|newcommand|mbox|phantom|cancel|label)\b|\\begin\{align\*?\}"
)
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
DRAWINGS = ROOT / "notebooks" / "drawings"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def test_there_are_notebooks():
    assert NOTEBOOKS


@every_notebook
def test_it_is_valid_and_names_the_common_kernel(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@every_notebook
def test_it_was_executed_in_order_without_errors(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


@every_notebook
def test_compared_cells_print_and_show_nothing_else(path):
    compared = [cell for cell in code_cells(read(path)) if "nbval-check-output" in tags(cell)]
    assert compared
    for cell in compared:
        assert {output.output_type for output in cell.outputs} == {"stream"}, cell.source


@every_notebook
def test_only_known_tags_are_used_and_no_marker_comments(path):
    for cell in read(path).cells:
        assert tags(cell) <= KNOWN_TAGS
        assert "NBVAL" not in cell.source


@every_notebook
def test_it_holds_no_path_of_a_machine_and_stays_small(path):
    raw = path.read_text(encoding="utf-8")
    assert not re.search(r"[\"' (=]/(home|root|tmp|Users|work|usr)/", raw)
    assert len(raw) < 1_000_000


def says(cell):
    """The calls in a cell that write into a figure."""
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"text", "annotate", "set_title", "set_xlabel", "set_ylabel", "write"}:
                yield node


@every_notebook
def test_coloured_text_is_written_in_ink(path):
    calls = [call for cell in code_cells(read(path)) for call in says(cell)]
    keys = [key for call in calls for key in call.keywords if key.arg == "color"]
    colours = [ast.unparse(key.value) for key in keys]
    assert [c for c in colours if not re.fullmatch(r"plots\.INK\[.+\]|ink", c)] == []


@every_notebook
def test_the_code_that_is_read_fits_its_column(path):
    setup, *cells = code_cells(read(path))
    shown = [cell for cell in cells if "hide-input" not in tags(cell)]
    wide = [line for cell in (setup, *shown) for line in cell.source.splitlines() if len(line) > 90]
    assert wide == []


@every_notebook
def test_its_formulas_render_on_every_host(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert not NOT_EVERYWHERE.search(cell.source), cell.source
            assert cell.source.count("$$") % 2 == 0


@every_notebook
def test_no_code_cell_is_longer_than_30_lines(path):
    assert max(len(cell.source.splitlines()) for cell in code_cells(read(path))) <= 30


def images(path):
    """Alternative text and file of each image in the text of a notebook or a Markdown page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    return [(alt, (path.parent / target).resolve()) for alt, target in IMAGE.findall(text)]


PAGES = [*NOTEBOOKS, LAST, *(ROOT / "notebooks").glob("*.md"), ROOT / "README.md"]


def test_every_image_of_the_text_exists_and_says_in_words_what_it_shows():
    shown = [image for path in PAGES for image in images(path)]
    assert len(shown) >= 6
    for alt, file in shown:
        assert file.is_file(), file
        assert len(alt.split()) >= 5, alt


@pytest.mark.parametrize("path", sorted(DRAWINGS.iterdir()), ids=lambda path: path.name)
def test_a_drawing_is_used_small_and_opens_with_its_title_and_description(path):
    assert path in {file for page in PAGES for _, file in images(page)}
    assert path.stat().st_size <= 8_000
    drawing = ElementTree.parse(path).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert [part.tag for part in drawing[:2]] == [f"{svg}title", f"{svg}desc"]
    assert all(len(part.text.split()) >= 4 for part in drawing[:2])


@every_notebook
def test_every_figure_says_in_words_what_it_shows(path):
    for cell in code_cells(read(path)):
        figures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
        assert figures <= 1, "a cell has one alternative text, so one figure"
        assert ("alt" in cell.metadata) == bool(figures), cell.source
        assert not figures or 15 <= len(cell.metadata.alt.split()) <= 90, cell.metadata.alt


def test_the_first_cell_is_the_same_in_all_of_them_and_silent():
    first = [code_cells(read(path))[0] for path in NOTEBOOKS]
    assert len({cell.source for cell in first}) == 1
    assert all(cell.outputs == [] for cell in first)
    assert "://" not in first[0].source


def test_the_readme_lists_every_lesson_and_the_last_exercise():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lessons = [*(ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"), LAST]
    linked = re.findall(r"\]\((notebooks/[^)]+\.ipynb)\)", readme)
    assert sorted(linked) == sorted(path.relative_to(ROOT).as_posix() for path in lessons)


def test_every_notebook_is_json_with_a_final_newline():
    for path in NOTEBOOKS:
        raw = path.read_text(encoding="utf-8")
        json.loads(raw)
        assert raw.endswith("\n")
