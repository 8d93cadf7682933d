"""The cage: where a kernel that runs a stranger's code can reach nothing worth reaching.

pytest starts it by a kernelspec whose command is this module. It sets the limits, replaces the
environment, goes to an empty folder and becomes the kernel; where bubblewrap works, behind walls:
no network, no other processes, and no files but Python, a copy of the course without solutions,
and a folder of sockets. It needs Linux or macOS.
"""

import ctypes
import functools
import json
import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import ppo_toy
from ppo_toy.classroom.variables import HIDDEN

PACKAGE = Path(ppo_toy.__file__).parent
TOKEN = "PPO_TOY_CAGE"  # environment variable by which the processes of a cage are known
KERNEL = "caged"
PYTHON = os.path.abspath(sys.executable)  # without "..", so that it is found inside
SYSTEM = "/bin /lib /lib64 /usr/bin /usr/lib /usr/lib64 /usr/local/lib /etc/ld.so.cache".split()
PARTS = ("bin", "lib", "lib64", "pyvenv.cfg")  # that are shown of a Python's folder
# Of the caller's environment, what says which instructions are used and how many threads.
SWITCHES = "ATEN_CPU_CAPABILITY MKL_ENABLE_INSTRUCTIONS ONEDNN_MAX_CPU_ISA OMP_NUM_THREADS".split()
PROCESSES = 512  # and threads, that one cage may add to those the user has
CLEARING_SECONDS = 60
HOME_BYTES = 64 << 20  # of its home; as much again of each folder for what is passing


@dataclass(frozen=True)
class Limits:
    """What one answer may use.

    Attributes:
        cell_seconds: time on the clock for one cell.
        cpu_seconds: processor time of one process.
        memory: address space of one process, in bytes.
        file_bytes: largest file it may write.
    """

    cell_seconds: float = 20.0
    cpu_seconds: int = 120
    memory: int = 4 << 30
    file_bytes: int = 16 << 20


def furnish(folder: Path, cases: Path, limits: Limits, token: str, *, walled: bool) -> None:
    """Prepares an empty folder: the course's copy, the cases, the kernelspec, a home, sockets.

    Args:
        folder: of this cage alone.
        cases: the file of cases on which the answer will be called.
        limits: what the kernel may use.
        token: a name for the kernel's processes.
        walled: whether bubblewrap is to be used.
    """
    copied = folder / "course" / PACKAGE.name
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("classroom", "__pycache__"))
    (copied / "classroom").mkdir()
    for name in "__init__ check language probe variables".split():  # of a check; no solutions
        shutil.copy(PACKAGE / "classroom" / f"{name}.py", copied / "classroom")
    if not (PACKAGE / "datafiles").is_dir():  # a clone, where the data lie beside the package
        shutil.copytree(PACKAGE.parent / "data", folder / "course" / "data")
    shutil.copy(cases, folder / "course" / "cases.pt")
    for name in ("home", "run"):
        (folder / name).mkdir()
    settings = {"folder": str(folder), "limits": asdict(limits), "token": token, "walled": walled}
    (folder / "cage.json").write_text(json.dumps(settings), encoding="utf-8")
    spec = folder / "jupyter" / "kernels" / KERNEL
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", __name__, str(folder / "cage.json"), "{connection_file}"]
    kernel = {"argv": command, "display_name": KERNEL, "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")


@functools.cache
def bubblewrap() -> str | None:
    """The path of a bubblewrap that works here, or None."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="ppo-") as folder:
        command = [program, *walls(Path(folder)), "--", PYTHON, "-c", "import json"]
        answer = subprocess.run(command, capture_output=True, check=False)
    return program if answer.returncode == 0 else None


def _shown() -> list[Path]:
    """Python's own parts: of the system, of a virtual environment and of what it was made from."""
    pythons = {sys.prefix, sys.base_prefix, str(Path(PYTHON).resolve().parents[1])}
    return [*map(Path, SYSTEM), *(Path(x, part) for x in sorted(pythons) for part in PARTS)]


def _installed() -> set[Path]:
    """The classrooms of all installed copies of the course, with solutions in them."""
    pattern = f"python*/*-packages/{PACKAGE.name}/classroom"
    return {classroom for shown in _shown() for classroom in shown.glob(pattern)}


def refuse_visible(paths: Iterable[Path]) -> None:
    """Refuses a class that an answer could see from inside the walls, or a clone.

    Raises:
        ValueError: one of the paths, or the course itself, lies among what is shown there.
    """
    hidden = {path.resolve() for path in _installed()}
    for path in (PACKAGE / "classroom", *paths):
        for shown in _shown():
            if path.resolve().is_relative_to(shown.resolve()) and path.resolve() not in hidden:
                raise ValueError(
                    f"{path} lies in {shown}, which is shown to every answer since Python lies "
                    "there; move it, or grade --without-bubblewrap"
                )


def walls(folder: Path) -> list[str]:
    """The options of bubblewrap for the cage that lives in `folder`."""
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for path in ("/tmp", "/dev/shm"):
        options += ["--size", str(HOME_BYTES), "--tmpfs", path]
    for path in _shown():
        options += ["--ro-bind-try", str(path), str(path)]
    for path in _installed():
        options += ["--tmpfs", str(path), "--remount-ro", str(path)]
    for name, kind in (("course", "--ro-bind-try"), ("run", "--bind-try")):
        options += [kind, str(folder / name), str(folder / name)]
    options += ["--size", str(HOME_BYTES), "--tmpfs", str(folder / "home")]
    return options + ["--remount-ro", "/dev", "--remount-ro", "/"]


def switches() -> dict[str, str]:
    """Those of the caller's SWITCHES that hold plain words or numbers."""
    plain = re.compile(r"[\w.,:+-]{1,64}", re.A)
    return {x: os.environ[x] for x in SWITCHES if plain.fullmatch(os.environ.get(x, ""))}


def environment(folder: Path, token: str) -> dict[str, str]:
    """All the variables that the kernel gets."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "USER": "student",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(folder / "course"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        **switches(),
        "CI": "true",
        HIDDEN: str(folder / "course" / "cases.pt"),
        TOKEN: token,
    }


def hide_memory() -> None:
    """Keeps other processes of the same user from reading this one's memory (Linux, not root)."""
    if sys.platform == "linux":
        PR_SET_DUMPABLE = 4
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def clear(folder: Path) -> None:
    """Removes a folder that may hold anything, as far as that can be done.

    It goes down nowhere: what lies in a folder is brought up, so neither depth nor length counts.
    """
    end = time.monotonic() + CLEARING_SECONDS
    try:
        os.chmod(folder, 0o700)
        while (entries := list(os.scandir(folder))) and time.monotonic() < end:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry)
                    continue
                os.chmod(entry, 0o700)
                for inner in list(os.scandir(entry)):
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner, 0o700)  # or its owner could not move it
                    os.rename(inner, folder / secrets.token_hex(16))
                os.rmdir(entry)
        os.rmdir(folder)
    except OSError:
        return


def sweep(token: str) -> None:
    """Kills what a cage left behind: every process with its token in its environment (Linux)."""
    mark = f"{TOKEN}={token}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue  # not ours, or gone


def _limit(limits: Limits) -> None:
    mine = [path for path in Path("/proc").glob("[0-9]*/task/*") if _owned(path)]
    for kind, amount in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, len(mine) + PROCESSES),
    ):
        _, most = resource.getrlimit(kind)
        amount = amount if most == resource.RLIM_INFINITY else min(amount, most)
        try:
            resource.setrlimit(kind, (amount, amount))
        except (ValueError, OSError):
            continue  # macOS knows no limit of address space


def _owned(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except OSError:
        return False


def main() -> None:
    """Becomes the kernel; see the module."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(settings["folder"])
    _limit(Limits(**settings["limits"]))
    os.chdir(folder / "home")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    command = [PYTHON, "-m", "ipykernel_launcher", "-f", sys.argv[2]]
    if settings["walled"]:
        inside = ["--chdir", str(folder / "home"), "--"]
        command = [shutil.which("bwrap"), *walls(folder), *inside, *command]
    os.execve(command[0], command, environment(folder, settings["token"]))


if __name__ == "__main__":
    main()
