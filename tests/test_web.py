"""The web edition, built once as its readers build it, and opened in a real browser."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pages
import pytest

NEEDED = "the web edition needs pip install -e '.[web]'"
for package in ("sphinx_book_theme", "myst_nb", "sphinx_codeautolink", "playwright"):
    pytest.importorskip(package, reason=NEEDED)
bs4 = pytest.importorskip("bs4", reason=NEEDED)

ROOT = Path(__file__).parents[1]
WEB, NOTEBOOKS = ROOT / "web", ROOT / "notebooks"
# One test for each notebook, so that pytest-xdist takes this file for a long one and begins early.
NAMES = sorted(
    path.relative_to(ROOT).with_suffix(".html").as_posix()
    for path in NOTEBOOKS.rglob("*.ipynb")
    if not {"solutions", ".ipynb_checkpoints"} & set(path.parts)
)
TRANSLATED = tuple(f"notebooks/{path.parent.name}/" for path in NOTEBOOKS.glob("*/edition.toml"))
in_a_browser = pytest.mark.skipif(
    pages.chromium() is None, reason="no Chromium is installed: no page is opened in a browser"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("web")
    command = [sys.executable, str(WEB / "build.py"), "--out", str(out)]
    made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
    assert made.returncode == 0, made.stderr
    return out / "html"


@pytest.fixture(scope="module")
def soups(site) -> dict:
    """Each page by its path, parsed."""
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {
        path.relative_to(site).as_posix(): bs4.BeautifulSoup(path.read_bytes(), "html.parser")
        for path in sorted(found)
    }


@pytest.fixture(scope="module")
def address(site):
    from build import server

    with server(site) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/"
        served.shutdown()


@pytest.fixture(scope="module", autouse=True)
def web_on_the_path():
    sys.path.insert(0, str(WEB))
    yield
    sys.path.remove(str(WEB))


def lessons(soups: dict) -> dict:
    names = {f"notebooks/{path.stem}.html": path for path in NOTEBOOKS.glob("[0-9]*.ipynb")}
    assert set(names) <= set(soups)
    return {
        name: (json.loads(path.read_text("utf-8")), soups[name]) for name, path in names.items()
    }


def test_it_is_small(site, soups):
    files = [path for path in site.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    for name, soup in soups.items():
        here = (site / name).parent
        images = {here / unquote(image["src"]) for image in soup.find_all("img")}
        assert sum(p.stat().st_size for p in {site / name, *images}) < 2e6, name
    shared = [p for p in files if p.suffix in (".js", ".css")] + [*site.rglob("*Main-Regular.woff")]
    assert sum(path.stat().st_size for path in shared) < 8e6


def test_every_link_on_every_page_answers(site, soups):
    dead = []
    for name, soup in soups.items():
        for link in soup.find_all(["a", "link", "script", "img"]):
            target = urlsplit(unquote(link.get("href") or link.get("src") or ""))
            if target.scheme or not (target.path or target.fragment):
                continue
            path = (site / name).parent / target.path if target.path else site / name
            path = path / "index.html" if path.is_dir() else path
            page = path.resolve().relative_to(site.resolve()).as_posix()
            known = page not in soups or not target.fragment or soups[page].find(id=target.fragment)
            if not path.exists() or not known:
                dead.append(f"{name}: {link}")
    assert not dead, "\n".join(dead)


def test_every_lesson_and_module_stands_in_the_contents_in_order(soups):
    links = soups["index.html"].select(".bd-links li.toctree-l1 > a, .bd-links li.toctree-l2 > a")
    listed = [link["href"] for link in links]
    short = sorted(f"notebooks/{p.stem}.html" for p in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    deep = sorted(f"notebooks/{p.stem}.html" for p in NOTEBOOKS.glob("[0-9][0-9][a-z]_*.ipynb"))
    own = "notebooks/exercises/12_your_own.html"
    assert [link for link in listed if link in {*short, *deep, own}] == [*short, own, *deep]
    for path in (NOTEBOOKS / "exercises").glob("*.ipynb"):
        assert f"notebooks/exercises/{path.stem}.html" in listed
    modules = {path.stem for path in (ROOT / "ppo_toy").glob("*.py")} - {"__init__"}
    assert {f"package/{name}.html" for name in modules} <= set(listed)


def test_cells_fold_as_in_jupyterlab_and_figures_have_their_words(soups):
    for name, (book, soup) in lessons(soups).items():
        cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        shown = soup.select(".bd-article div.cell")
        assert len(shown) == len(cells), name
        for cell, part in zip(cells, shown, strict=True):
            marks = cell["metadata"].get("jupyter", {})
            assert bool(part.select("details.above-input")) == bool(marks.get("source_hidden"))
            assert bool(part.select("details.below-input")) == bool(marks.get("outputs_hidden"))
            assert not part.select("details[open]")
            for image in part.select("img"):
                assert image["alt"] == cell["metadata"].get("alt", image["alt"]), name
                assert len(image["alt"]) > 20


def test_a_guards_line_is_seen_while_its_code_is_folded(soups):
    for name, (_, soup) in lessons(soups).items():
        seen = [part for part in soup.select(".cell_output pre") if not part.find_parent("details")]
        assert any(part.get_text().startswith("ok  ") for part in seen), name


def test_a_lesson_says_how_it_is_opened_and_what_it_downloads(site, soups):
    for name, (_, soup) in lessons(soups).items():
        head = soup.select_one(".open-lesson")
        source = name.replace(".html", ".ipynb")
        assert f".venv/bin/jupyter lab {source}" in head.get_text()
        download = (site / name).parent / head.select_one("a.download")["href"]
        assert download.read_bytes() == (ROOT / source).read_bytes()


def test_colab_is_offered_once_the_repositorys_address_is_real(soups):
    from lessons import colab

    address = re.search(
        r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M
    )
    offered = {name for name, soup in soups.items() if "colab.research" in str(soup)}
    assert bool(offered) == (colab(address.group(1), "x.ipynb") is not None)
    assert colab("https://repository.example/ppo_toy", "notebooks/01.ipynb") is None
    assert colab("https://github.com/who/what/", "notebooks/01.ipynb") == (
        "https://colab.research.google.com/github/who/what/blob/main/notebooks/01.ipynb"
    )


def test_a_lesson_links_what_it_imports_to_the_packages_pages(soups):
    for name, (book, soup) in lessons(soups).items():
        first = "".join(
            [cell["source"] for cell in book["cells"] if cell["cell_type"] == "code"][1]
        )
        used = set(re.findall(r"^from ppo_toy\.(\w+)", first, re.M))
        assert used, name
        linked = {a["href"].split("#")[0] for a in soup.select("a.sphinx-codeautolink-a")}
        assert {f"../package/{module}.html" for module in used} <= linked, name
    # Also where a name is used, cells after the one that imports it.
    beta = soups["notebooks/04_beta.html"]
    assert len(beta.select('a.sphinx-codeautolink-a[title="ppo_toy.exact.optimum"]')) > 5


@pytest.fixture(scope="module")
def browser_page(address):
    with pages.opened(address) as page:
        yield page


def has_colours_of_its_own(name):
    """Colours are those of the style sheets: other languages and modules show nothing new."""
    ours = name.startswith("notebooks/") and not name.startswith(TRANSLATED)
    return ours or name in ("index.html", "beta.html", "package/exact.html")


@in_a_browser
@pytest.mark.parametrize("name", [*NAMES, "all others"])
def test_pages_in_a_browser_wide_and_narrow_light_and_dark(name, browser_page, address, soups):
    names = [name] if name in NAMES else soups.keys() - set(NAMES)
    found = {
        x: pages.faults(browser_page, address + x, contrast=has_colours_of_its_own(x))
        for x in names
    }
    broken = [f"{name}: {fault}" for name, faults in found.items() for fault in faults]
    assert not broken, "\n".join(broken)


@in_a_browser
def test_the_colours_of_code_and_of_all_around_can_be_read_in_both_themes(browser_page, address):
    browser_page.set_viewport_size(pages.WIDTHS["wide"])
    browser_page.goto(f"{address}notebooks/01_objective.html")
    for theme in ("light", "dark"):
        pages.turn(browser_page, theme)
        assert not pages.accessibility(browser_page, pages.CONTRAST)


@in_a_browser
def test_the_search_finds_the_theme_turns_and_code_can_be_copied(browser_page, address):
    page = browser_page
    page.set_viewport_size(pages.WIDTHS["wide"])
    page.goto(f"{address}search.html?q=frontier")
    page.wait_for_selector("#search-results ul.search li a")
    page.goto(f"{address}notebooks/04_beta.html")
    for theme in ("dark", "light"):
        page.click(".article-header-buttons .theme-switch-button")
        page.click(f".theme-change-button[data-mode={theme}]")
        assert page.evaluate("document.documentElement.dataset.theme") == theme
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(".open-lesson button.copy")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == ".venv/bin/jupyter lab notebooks/04_beta.ipynb\n"
