import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def ruff(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ruff", *arguments, "ppo_toy", "tests", "notebooks", "web"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_code_and_notebooks_are_formatted():
    answer = ruff("format", "--check")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_code_and_notebooks_pass_the_linter():
    answer = ruff("check")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_repositorys_address_stands_in_pyproject_alone():
    address = re.search(
        r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M
    ).group(1)
    elsewhere = [ROOT / "README.md", ROOT / "requirements.txt", ROOT / ".ci" / "run"]
    elsewhere += [*(ROOT / "ppo_toy").rglob("*.py"), *(ROOT / "notebooks").rglob("*.ipynb")]
    for path in elsewhere:
        assert address not in path.read_text(encoding="utf-8"), path


def test_the_tested_versions_lie_in_the_ranges_that_hosts_are_asked_for():
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    pinned = {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line and not line.startswith("-e"):
            pin = Requirement(line)
            pinned[pin.name] = next(iter(pin.specifier)).version
    for line in requires("ppo_toy"):
        need = Requirement(line)
        if not re.search("scale|web", str(need.marker)):  # extras that learners do not install
            assert need.specifier.contains(pinned[need.name]), line
