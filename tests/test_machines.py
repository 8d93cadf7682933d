import importlib.util
import re
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def machines():
    loader = SourceFileLoader("machines", str(ROOT / ".ci" / "machines"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("machines", loader))
    loader.exec_module(module)
    return module


def test_the_machines_are_three_instruction_sets_twice_and_two_sets_of_versions(machines):
    assert set(machines.MACHINES) == {
        *(f"{name}-{threads}" for name in ("native", "avx2", "plain") for threads in (1, 2)),
        "oldest",
        "newest",
    }
    for name, (versions, switches, workers) in machines.MACHINES.items():
        threads = int(switches["OMP_NUM_THREADS"])
        assert threads * workers == 2, name
        assert versions == (name if name in ("oldest", "newest") else "pinned")


def test_the_oldest_set_is_the_lower_end_of_every_range(machines):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = machines.requirements("oldest")
    for wanted in project["dependencies"]:
        name, lowest = wanted.split(">=")
        assert f"{name}=={lowest}" in oldest
    assert "pytest==8" in oldest
    assert "nbval==0.11.0" in oldest
    assert not any(">" in each or "<" in each for each in oldest)


def test_ci_lets_the_same_switches_through_and_is_plain_in_the_same_way(machines):
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (passed,) = re.findall(r"^for switch in (.+); do$", script, re.M)
    used = {name for _, switches, _ in machines.MACHINES.values() for name in switches}
    assert set(passed.split()) == used
    (plain,) = re.findall(r"^plain=\((.+)\)$", script, re.M)
    assert dict(pair.split("=") for pair in plain.split()) == machines.SETS["plain"]


def test_an_unknown_machine_is_refused_by_name(machines):
    with pytest.raises(SystemExit, match="arm is not one of the machines: native-1 "):
        machines.main(["arm"])
