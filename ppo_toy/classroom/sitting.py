"""One answer under examination: a cage, a pytest of its own, and what its report says."""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import torch
from nbformat import NotebookNode

from ppo_toy.classroom import cage
from ppo_toy.classroom.check import Case

STARTUP_SECONDS = 60
XML_BYTES = 16 << 20
# Runs pytest without a grammar of web addresses that jsonschema would build at import: 1.5 s.
START = "import sys; sys.modules['rfc3987_syntax'] = None; import pytest; sys.exit(pytest.main())"


@dataclass(frozen=True)
class Sitting:
    """What came of one answer.

    Attributes:
        passed: the check was reported once, without failure, and so was every cell.
        ended: what cut it short, or the first error that was raised; empty if neither.
        printed: what the check printed.
        xml: the JUnit report; empty if there was none.
    """

    passed: bool
    ended: str
    printed: str
    xml: bytes


def sit(
    notebook: NotebookNode, name: str, cases: Sequence[Case], limits: cage.Limits, *, walled: bool
) -> Sitting:
    """Runs a spliced notebook with `pytest --nbval` and a caged kernel.

    Args:
        notebook: as `splice.spliced` makes it.
        name: of the exercise.
        cases: on which the check calls the answer.
        limits: what the kernel may use.
        walled: whether bubblewrap is used.
    """
    token, folder = secrets.token_hex(16), Path(tempfile.mkdtemp(prefix="ppo-"))
    try:
        torch.save({name: list(cases)}, folder / "cases.pt")
        cage.furnish(folder, folder / "cases.pt", limits, token, walled=walled)
        nbformat.write(notebook, folder / "answer.ipynb")
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        seconds = STARTUP_SECONDS + len(notebook.cells) * (limits.cell_seconds + 10)
        # The report has no name in any folder: nothing but pytest and this process can write to it.
        with tempfile.TemporaryFile() as report:
            _pytest(folder, report.fileno(), limits, seconds, token)
            report.seek(0)
            return read_report(report.read(XML_BYTES), name, len(notebook.cells))
    except (OSError, RuntimeError) as error:  # another answer may have taken the disk's room
        return Sitting(False, plain(f"the grader could not run it: {error}"), "", b"")
    finally:
        cage.clear(folder)


def _pytest(folder: Path, report: int, limits: cage.Limits, seconds: float, token: str) -> None:
    command = [
        *(sys.executable, "-c", START, "answer.ipynb", "--nbval", "--capture=no", "--color=no"),
        *("-c", "pytest.ini", "-p", "nbval.plugin", "-p", "ppo_toy.classroom.plugin"),
        *("-p", "no:cacheprovider", f"--junitxml=/dev/fd/{report}"),
        f"--nbval-kernel-name={cage.KERNEL}",
        f"--nbval-cell-timeout={limits.cell_seconds}",
        f"--nbval-kernel-startup-timeout={STARTUP_SECONDS}",
    ]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(cage.PACKAGE.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        **cage.switches(),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "JUPYTER_PATH": str(folder / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "run"),
        "JUPYTER_CONFIG_DIR": str(folder / "jupyter"),
    }
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(report,),
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        cage.sweep(token)


def read_report(xml: bytes, name: str, n_cells: int) -> Sitting:
    """Reads a JUnit report.

    Points are earned only if the check was reported exactly once, without failure, error or skip,
    and as many cells were reported as there are.

    Args:
        xml: the report.
        name: of the exercise.
        n_cells: how many code cells were to be run.
    """
    try:
        cells = list(ET.fromstring(xml).iter("testcase"))
    except ET.ParseError:
        return Sitting(False, "the run ended without a report", "", b"")
    of_cell = [{p.get("name"): p.get("value", "") for p in cell.iter("property")} for cell in cells]
    mine = [
        (cell, notes)
        for cell, notes in zip(cells, of_cell, strict=True)
        if notes.get("grade_id") == f"{name}-check"
    ]
    complete = len({cell.get("name") for cell in cells}) == len(cells) == n_cells
    bad = {"failure", "error", "skipped"}
    clean = [cell for cell, _ in mine if not {part.tag for part in cell} & bad]
    passed = complete and len(mine) == len(clean) == 1
    ended = next((notes["ended"] for notes in of_cell if notes.get("ended")), "")
    printed = mine[0][1].get("printed", "") if len(mine) == 1 else ""
    return Sitting(passed, "" if passed else plain(ended), printed, xml)


def plain(text: str, most: int = 300) -> str:
    """A stranger's text on one line: without control characters and not too long."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = "".join(c if c.isprintable() or c.isspace() else "?" for c in text[: 10 * most])
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."
