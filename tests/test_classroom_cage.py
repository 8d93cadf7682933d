import json
import os
import resource
import subprocess
import sys

import pytest

from ppo_toy.classroom import cage


def furnished(folder, **options):
    (folder / "cases").write_bytes(b"")
    cage.furnish(folder, folder / "cases", cage.Limits(**options), "a-token", walled=False)
    return folder


def test_the_copy_of_the_course_holds_no_solutions_and_can_be_imported(tmp_path):
    folder = furnished(tmp_path)
    assert {p.name for p in (folder / "course" / "ppo_toy" / "classroom").iterdir()} == {
        "__init__.py", "check.py",
    }  # fmt: skip
    assert not list(folder.rglob("*.ipynb"))
    code = "import ppo_toy.classroom.check, ppo_toy.data as d; d.read_ratings(); print(d.__file__)"
    run = {"env": cage.environment(folder, "a-token"), "cwd": folder / "home", "check": True}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **run)
    assert answer.stdout.startswith(str(folder))


def test_the_environment_is_made_new(tmp_path):
    assert set(cage.environment(tmp_path, "t")) == {
        "PATH", "HOME", "USER", "LANG", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE",
        "OMP_NUM_THREADS", "CI", cage.HIDDEN, cage.TOKEN, *cage.switches(),
    }  # fmt: skip


def test_only_the_four_switches_of_the_caller_go_through_and_only_plain_ones(tmp_path, monkeypatch):
    for name in ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cage.environment(tmp_path, "t")["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2,E1")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2; rm\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LD_PRELOAD", "x.so")
    assert cage.switches() == {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2,E1",
        "OMP_NUM_THREADS": "3",
    }
    assert cage.environment(tmp_path, "t").items() >= cage.switches().items()


def test_the_kernel_starts_with_limits_in_an_empty_folder_and_says_nothing(tmp_path):
    folder = furnished(tmp_path, memory=3 << 30, cpu_seconds=50, file_bytes=1 << 20)
    kernel = json.loads((folder / "jupyter/kernels/caged/kernel.json").read_text())
    command = kernel["argv"][:-1] + ["connection"]
    # In place of ipykernel: a module of that name in the copy of the course.
    (folder / "course" / "ipykernel_launcher.py").write_text(
        "import json, os, resource as r, sys\n"
        "names = ('RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_FSIZE', 'RLIMIT_CORE')\n"
        "seen = {name: r.getrlimit(getattr(r, name)) for name in names}\n"
        "seen |= {'here': os.getcwd(), 'files': os.listdir(), 'arguments': sys.argv[1:]}\n"
        "seen['token'] = os.environ['PPO_TOY_CAGE']\n"
        "seen['secret'] = os.environ.get('SECRET')\n"
        "print('to nobody')\n"
        f"json.dump(seen, open({str(folder / 'seen')!r}, 'w'))\n"
    )
    environment = {**os.environ, "SECRET": "1", "PYTHONPATH": str(cage.PACKAGE.parent)}
    answer = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert answer.stdout == answer.stderr == b""
    seen = json.loads((folder / "seen").read_text())
    assert seen.pop("RLIMIT_AS") == [3 << 30] * 2 or sys.platform == "darwin"
    assert seen == {
        "RLIMIT_CPU": [50, 50], "RLIMIT_FSIZE": [1 << 20] * 2, "RLIMIT_CORE": [0, 0],
        "here": str(folder / "home"), "files": [], "arguments": ["-f", "connection"],
        "token": "a-token", "secret": None,
    }  # fmt: skip
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] != 50  # not of this process


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_process_that_hides_its_memory_cannot_be_dumped():
    code = (
        "import ctypes; from ppo_toy.classroom.cage import hide_memory; hide_memory()\n"
        "PR_GET_DUMPABLE = 3\n"
        "print(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert answer.stdout == b"0\n"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_sweeping_ends_what_carries_the_token_and_nothing_else():
    def sleeper(token):
        environment = {**os.environ, cage.TOKEN: token}
        return subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)

    mine, other = sleeper("this"), sleeper("that")
    try:
        cage.sweep("this")
        assert mine.wait(timeout=10) < 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_where_bubblewrap_is_missing_or_does_not_work_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    cage.bubblewrap.cache_clear()
    assert cage.bubblewrap() is None
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    cage.bubblewrap.cache_clear()
    assert cage.bubblewrap() is None
    cage.bubblewrap.cache_clear()
