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
        "__init__.py", "check.py", "language.py", "probe.py", "variables.py",
    }  # fmt: skip
    assert not list(folder.rglob("*.ipynb"))
    code = "import ppo_toy.classroom.check, ppo_toy.data as d; d.read_ratings(); print(d.__file__)"
    run = {"env": cage.environment(folder, "a-token"), "cwd": folder / "home", "check": True}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **run)
    assert answer.stdout.startswith(str(folder))


def test_what_stands_around_a_kernel_does_not_wait_for_torch():
    code = "import sys, ppo_toy.classroom.cage, ppo_toy.classroom.plugin; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "nbval" in answer.stdout.split()
    assert "torch" not in answer.stdout.split()


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
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2; rm")
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


@pytest.mark.skipif(cage.bubblewrap() is None, reason="bubblewrap is missing, or does not work")
def test_of_a_python_only_its_own_parts_are_shown_and_no_copy_of_the_solutions(
    tmp_path, monkeypatch
):
    installed = tmp_path / "env" / "lib" / "python3" / "site-packages" / "ppo_toy"
    files = [installed / "kl.py", installed / "classroom" / "exercise.py", tmp_path / "class"]
    files += [tmp_path / "env" / "src" / "app" / "solutions", tmp_path / "env" / "solutions"]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    files.append("/usr/share")
    (tmp_path / "env" / "lib64").symlink_to("lib")
    files.append(tmp_path / "env" / "lib64" / files[1].relative_to(tmp_path / "env" / "lib"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    code = "import os, sys; print([os.path.exists(x) for x in sys.argv[1:]])"
    python = os.path.realpath(cage.PYTHON)
    command = [cage.bubblewrap(), *cage.walls(tmp_path / "cage"), "--", python, "-c", code, *files]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout == "[True, False, False, False, False, False, False]\n"
    cage.refuse_visible([tmp_path / "class", tmp_path / "env" / "src" / "app"])
    for path in (tmp_path / "env" / "lib" / "x", tmp_path / "env" / "lib64" / "not" / "yet"):
        with pytest.raises(ValueError, match=f"{path} lies in .* which is shown to every answer"):
            cage.refuse_visible([path])
    (tmp_path / "alias").symlink_to("env/src")
    monkeypatch.setattr(cage, "SYSTEM", [str(tmp_path / "alias")])
    with pytest.raises(ValueError, match="app lies in .*alias"):
        cage.refuse_visible([tmp_path / "env" / "src" / "app"])


def test_whatever_an_answer_leaves_behind_is_cleared(tmp_path, request):
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", tmp_path], check=False))
    folder, outside = tmp_path / "cage", tmp_path / "outside"
    outside.mkdir()
    (folder / "run" / "closed" / "inner").mkdir(parents=True)
    (folder / "run" / ("n" * 255)).mkdir()
    for place in (folder, folder / "run" / "closed" / "inner", outside):
        (place / "file").write_text("x")
        (place / "file").chmod(0)
    os.mkfifo(folder / "run" / "fifo")
    (folder / "run" / "out").symlink_to(outside)
    (folder / "run" / "closed" / "out").symlink_to(outside)
    here = os.open(folder / "run", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 255, dir_fd=here)
        here, last = os.open("d" * 255, os.O_RDONLY, dir_fd=here), here
        os.close(last)
    os.close(here)
    for closed in ("closed/inner", "closed", "d" * 255):
        (folder / "run" / closed).chmod(0)
    cage.clear(folder)
    assert not folder.exists()
    assert list(outside.iterdir()) == [outside / "file"]
    cage.clear(folder)  # nothing there is no error


def test_where_bubblewrap_is_missing_or_does_not_work_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    cage.bubblewrap.cache_clear()
    assert cage.bubblewrap() is None
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    cage.bubblewrap.cache_clear()
    assert cage.bubblewrap() is None
    cage.bubblewrap.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_address_space_counts_what_a_process_has_mapped():
    code = (
        "import mmap; from ppo_toy.classroom.plugin import address_space as size; before = size();"
        "kept = mmap.mmap(-1, 1 << 30); print((size() - before) >> 20)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert 1024 <= int(answer.stdout) < 1100
