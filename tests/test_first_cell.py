import json
import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
LESSON = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
CELL = next(cell.source for cell in LESSON.cells if cell.cell_type == "code")
NEEDED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# As on a host that has torch and does not have ppo_toy; pip is asked for, and not run.
BARE = """
import json, subprocess, sys, types
sys.meta_path = [f for f in sys.meta_path if "editable" not in str(f).lower()]
sys.path = [p for p in sys.path if "editable" not in p and p != {root!r}]
asked = []
def run(command, **options):
    asked.append(command[3:])
    return types.SimpleNamespace(returncode={code}, stderr="no such torch")
subprocess.run = run
exec({cell!r})
from ppo_toy import data
print(json.dumps([asked, data.__file__]))
"""


def clone(folder: Path) -> Path:
    """What of a clone the cell needs, in this folder."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (folder / "ppo_toy").symlink_to(ROOT / "ppo_toy")
    return folder


def run_cell(folder: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
    script = textwrap.dedent(BARE).format(root=str(ROOT), cell=CELL, code=code)
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = {"cwd": folder, "env": {**kept, **environment}}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, **where
    )


@pytest.mark.parametrize("inside", ["notebooks", ".."])
def test_it_finds_the_clone_wherever_the_notebook_was_started(tmp_path, inside):
    # The folder has the name that `git clone` gives it, so that from one folder above there is a
    # folder ppo_toy in sight which is no package.
    course = clone(tmp_path / "ppo_toy")
    answer = run_cell(course / inside)
    assert answer.returncode == 0, answer.stderr
    said, found = answer.stdout.splitlines()
    assert said == f"ppo_toy is used from {course}"
    asked, module = json.loads(found)
    assert asked == [["install", "-qq", *NEEDED["dependencies"]]]
    assert module == str(course / "ppo_toy" / "data.py")


def test_it_writes_nothing_into_the_clone(tmp_path):
    course = clone(tmp_path / "course")
    before = sorted(course.rglob("*"))
    assert run_cell(course / "notebooks").returncode == 0
    assert sorted(course.rglob("*")) == before


def test_it_takes_a_source_by_name(tmp_path):
    course = clone(tmp_path / "course")
    (tmp_path / "elsewhere").mkdir()
    answer = run_cell(tmp_path / "elsewhere", PPO_TOY_SOURCE=str(course))
    assert answer.stdout.startswith(f"ppo_toy is used from {course}\n"), answer.stderr


def test_an_address_is_given_to_pip_as_it_is(tmp_path):
    answer = run_cell(tmp_path, PPO_TOY_SOURCE="git+https://repository.example/ppo_toy", code=1)
    assert "cannot install ['git+https://repository.example/ppo_toy']: no such" in answer.stderr


def test_without_a_clone_it_says_what_to_do(tmp_path):
    (tmp_path / "ppo_toy").mkdir()  # no package
    answer = run_cell(tmp_path)
    assert answer.stderr.splitlines()[-1] == (
        "AssertionError: open this in a clone of the course, or set PPO_TOY_SOURCE to a clone"
    )


def test_where_pip_fails_it_says_for_what(tmp_path):
    answer = run_cell(clone(tmp_path / "course") / "notebooks", code=1)
    assert "AssertionError: pip cannot install ['torch>=2.8', 'numpy" in answer.stderr
    assert "no such torch" in answer.stderr


def test_where_ppo_toy_is_installed_it_is_silent(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", CELL], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
