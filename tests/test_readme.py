import contextlib
import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from form import LINK

from ppo_toy.editions.compare import prose
from ppo_toy.editions.edition import find_editions

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


README = read("README.md")
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
EDITIONS = find_editions(ROOT / "notebooks")
DUE = {x.folder / page for x in EDITIONS.values() for page in x.pages}  # some still to be written
TRANSLATED = {path.name.split(".")[1]: path.name for path in ROOT.glob("README.*.md")}


@pytest.mark.parametrize("number", range(2))
def test_the_examples_print_what_their_comments_say(number):
    code = re.findall(r"```python\n(.*?)```", README, re.S)[number]
    promised = re.findall(r"^# (.+)$", code, re.M)
    assert promised
    printed = io.StringIO()
    torch.set_default_dtype(torch.float32)  # as a reader has it
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().splitlines() == promised


def test_the_test_of_ones_own_loss_passes_and_fails_as_it_says():
    after = README.split("## Your own loss before the referee")[1]
    code = re.search(r"```python\n(.*?)```", after, re.S).group(1)
    test = code[code.index("from ppo_toy.referee") :]
    assert len(test.strip().splitlines()) == 5
    names, without_flips = {}, {}
    exec(code, names)
    names["test_my_loss_has_the_gradient_of_the_objective"]()
    exec(code.replace(".flip(1)", ""), without_flips)
    with pytest.raises(AssertionError):
        without_flips["test_my_loss_has_the_gradient_of_the_objective"]()
    found = names["verdict"](without_flips["my_loss"], loss=True)
    assert f"the test fails: `{' + '.join(found.faults)}`" in README


def block(mark):
    return re.search(rf"<!-- {mark} -->\n```bash\n(.*?)```", README, re.S).group(1)


def test_ci_runs_the_test_command_as_it_stands():
    line = re.search(r"^command=(.+)$", read(".ci/run"), re.M)
    echo = f"{line.group(0)}; printf '%s\\n' \"$command\""
    done = subprocess.run(["bash", "-ec", echo], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode() == block("the test command")
    assert block("the test command").startswith("python3 -m venv .venv && ")
    assert block("the test command").endswith("python -m pytest\n")


def test_what_and_for_whom_and_start_stand_first():
    start = README.splitlines().index("## Start")
    assert "**For** learners" in "\n".join(README.splitlines()[:start])
    assert README[: README.index("![")].count("```bash") == 3
    assert len(README[: README.index("![")].splitlines()) <= 55


@pytest.mark.parametrize("block", re.findall(r"```bash\n(.*?)```", README, re.S))
def test_each_block_of_start_is_one_command_that_stops_at_the_first_failure(block):
    *others, _ = block.splitlines()
    assert all(line.endswith((" &&", " \\")) for line in others)
    assert block.startswith("python3 -m venv .venv && ")
    for file in re.findall(r"notebooks/\S+", block):
        assert (ROOT / file).exists()
    for extra in re.findall(r"\.\[([\w,]+)\]", block):
        known = tomllib.loads(read("pyproject.toml"))
        site = {"web"} if not (ROOT / "web").exists() else set()
        assert set(extra.split(",")) <= {*known["project"]["optional-dependencies"]} | site


@pytest.mark.parametrize("name", PAGES)
def test_no_line_outside_a_table_has_more_than_100_characters(name):
    for line in read(name).splitlines():
        assert len(line) <= 100 or line.startswith("|"), line


@pytest.mark.parametrize("name", [*PAGES, *TRANSLATED.values()])
def test_its_links_lead_somewhere(name):
    for _, target in LINK.findall(read(name)):
        file, _, anchor = target.partition("#")
        if "://" not in target:
            assert (ROOT / file).exists() or ROOT / file in DUE, target
        if anchor and "://" not in target:
            page = read(file or name)
            headings = re.findall(r"^#+ (.+)$", page, re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


COMMANDS = re.findall(r"^\| `python ([^`]+)` \|", README.split("## Command lines")[1], re.M)


def test_the_table_has_every_command_line_of_the_package():
    given = {m for m in re.findall(r"-m ([\w.]+)", "\n".join(COMMANDS)) if m.startswith("ppo_toy")}
    package = ROOT / "ppo_toy"
    files = [*package.glob("*.py"), *package.glob("*/__main__.py")]
    mains = [p for p in files if '__name__ == "__main__"' in p.read_text(encoding="utf-8")]
    names = [p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for p in mains]
    assert given == {name.removesuffix(".__main__") for name in names}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("-m ppo_toy")])
def test_each_command_line_says_more_with_help(command):
    module = command.split()[1]
    ask = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    options = re.findall(r"--\w+", "".join(re.findall(r"`[^`]*`", row_of(command)))) or ["ppo_toy"]
    subcommand = command.split()[2:3]
    if subcommand:
        assert subcommand[0] in done.stdout
    elif options != ["ppo_toy"]:
        assert all(option in done.stdout for option in options)


def row_of(command):
    return next(line for line in README.splitlines() if line.startswith(f"| `python {command}`"))


def test_each_row_of_the_comparison_has_its_commit_and_date():
    part = README.split("## Beside other courses")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| [")]
    notes = re.findall(r"^- (.+?) `[0-9a-f]{7}`, (20\d\d-\d\d-\d\d): .+$", part, re.M)
    assert 4 <= len(rows) <= 6
    assert {len(row) for row in rows} == {6}
    for (first, *_), (name, _) in zip(rows, notes, strict=True):
        assert name in first
        assert "https://github.com/" in first


def test_one_version_and_one_date_stand_in_all_three_places():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    cited = yaml.safe_load(read("CITATION.cff"))
    changes = read("CHANGELOG.md")
    version, date = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", changes, re.M)[0]
    assert version == project["version"] == cited["version"]
    assert date == str(cited["date-released"])
    assert cited["license"] == project["license"]


def test_the_citation_has_what_the_format_asks_for():
    cited = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert cited["authors"] == [{"name": "The ppo_toy contributors"}]
    assert README.startswith(f"# {cited['title']}\n")


ROW = re.compile(r"^\| \[[^]]+\]\(notebooks/(\S+\.ipynb)\) \|.*? \| ([\d +]+) \|", re.M)
BASH = re.compile(r"```bash\n(.*?)```", re.S)


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_readme_in_another_language_has_the_same_commands_formula_and_minutes(language):
    page, edition = read(TRANSLATED[language]), EDITIONS[language]
    assert BASH.findall(page)[:3] == BASH.findall(README)
    for file in re.findall(r"notebooks/\S+", "".join(BASH.findall(page))):
        assert (ROOT / file).exists(), file
    assert page.count(re.search(r"^J\(θ\) .*\]", README, re.M).group(0)) == 1
    own = {name: f"{language}/{name}" for name in edition.pages}
    assert ROW.findall(page) == [(own.get(name, name), x) for name, x in ROW.findall(README)]


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_readme_in_another_language_leads_back_and_keeps_that_languages_rules(language):
    page, table = read(TRANSLATED[language]), EDITIONS[language].table
    assert page.split("\n\n")[1] == "[English](README.md)"
    assert f"[{table['name']}](README.{language}.md)" in README.split("\n\n")[1]
    for rule in table["style"]:
        assert not re.search(rule["not"], prose(page), re.M), rule["why"]
