"""A pytest plugin that fails what nbval alone would pass in silence; only the grader loads it.

nbval notices a dead kernel only after the cell's timeout, waits for a cell that swallows the
interrupt, passes a cell that raised if its traceback was suppressed, and keeps whatever is printed.
Here each of these ends the kernel and fails the cell at once.
"""

import ctypes
import functools
import os
import re
import resource
import sys
import time
from collections import deque
from pathlib import Path
from queue import Empty
from typing import Any

import nbval.kernel
import nbval.plugin
import pytest
from jupyter_client.manager import KernelManager
from nbval.plugin import IPyNbCell

from ppo_toy.classroom.cage import PROCESSES, hide_memory

POLL_SECONDS = 0.1
SETUP_SECONDS = 60  # for the reference's own cells before an answer, which import torch
OUTPUT_BYTES = 1 << 20  # of all cells together
MEMORY_BYTES = 3 << 30  # address space of pytest itself, beyond what it begins with
SOCKET = re.compile(r"k-\d|kernel\.json")  # what lies in the folder of sockets by right
PR_SET_CHILD_SUBREAPER = 36


class AnswerError(Exception):
    """What ended a cell, in words for the report."""


class WatchedKernel(nbval.kernel.RunningKernel):
    """A kernel that is watched while it runs, talked to over sockets in the folder `run`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Starts the kernel; see nbval."""
        self.waiting: deque = deque()
        self.received = 0
        self.patience = 0.0
        self.ename = ""
        self.status = self.error = None
        super().__init__(*args, **kwargs)

    def await_reply(self, msg_id: str, timeout: float | None = None) -> None:
        """Waits for the reply to a request; ends the kernel if it is late or says too much."""
        timeout = max(timeout, self.patience)
        deadline = time.monotonic() + timeout
        self.status = self.error = None
        while True:
            self._drain()
            self._watch()
            try:
                message = self.get_message("shell", timeout=POLL_SECONDS)
            except Empty:
                if not self.is_alive():
                    self._end("the kernel died")
                if time.monotonic() > deadline:
                    self._end(f"it ran longer than {timeout:g} seconds")
                continue
            if message["parent_header"].get("msg_id") == msg_id:
                self.status = message["content"]["status"]
                self.ename = message["content"].get("ename", "")
                return

    def hidden_error(self) -> str:
        """Names the error of which the reply knows and nothing was published."""
        return f"it raised an error and hid it: {self.ename}"

    def get_message(self, stream: str, timeout: float | None = None) -> dict:
        """Returns the next message of a channel."""
        if stream == "iopub" and self.waiting:
            return self.waiting.popleft()
        message = super().get_message(stream, timeout=timeout)
        return self._weighed(message) if stream == "iopub" else message

    def _drain(self) -> None:
        """Takes what was published so far, so that a flood is seen while it comes."""
        while True:
            try:
                self.waiting.append(self._weighed(self.kc.get_iopub_msg(timeout=0)))
            except Empty:
                return

    def _watch(self) -> None:
        """Ends a kernel that does what nothing else forbids it, or not to root."""
        if any(not SOCKET.fullmatch(x.name) or x.is_dir() for x in os.scandir("run")):
            self._end("it wrote into the folder of the kernel's sockets")
        if _tasks(os.getpid()) > PROCESSES:
            self._end(f"it started more than {PROCESSES} processes and threads")

    def _weighed(self, message: dict) -> dict:
        self.received += 100 + len(str(message["content"]))
        if self.received > OUTPUT_BYTES:
            self._end(f"it printed more than {OUTPUT_BYTES:,} bytes")
        content = message["content"]
        if message["msg_type"] == "error":
            self.error = f"{content['ename']}: {content['evalue']}"
        return message

    def _end(self, why: str) -> None:
        if self.is_alive():
            self.stop()
        raise AnswerError(why)


def _tasks(process: int) -> int:
    """Counts the threads of a process and of all below it, until there are too many (Linux)."""
    waiting, n = [str(process)], 0
    while waiting and n <= PROCESSES:
        for children in Path("/proc", waiting.pop(), "task").glob("*/children"):
            try:
                waiting += children.read_text().split()
            except OSError:
                continue  # it ended meanwhile
            n += 1
    return n


def address_space() -> int:
    """Bytes that this process has mapped: a gigabyte or five, by the build of torch; 0 unknown."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


def pytest_configure(config: pytest.Config) -> None:
    """Puts the watched kernel in place of nbval's and closes this process to others."""
    hide_memory()
    if sys.platform == "linux":  # whatever a kernel leaves becomes a child, and is counted
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    allowed = address_space() + MEMORY_BYTES
    if most == resource.RLIM_INFINITY or most > allowed:
        resource.setrlimit(resource.RLIMIT_AS, (allowed, most))
    run = Path.cwd() / "run"
    nbval.kernel.KernelManager = functools.partial(
        KernelManager,
        transport="ipc",
        ip=str(run / "k"),
        connection_file=str(run / "kernel.json"),
    )
    nbval.plugin.RunningKernel = WatchedKernel


def pytest_collection_finish(session: pytest.Session) -> None:
    """Removes the notebook, with the expected outputs in it, before any answer runs."""
    for path in {item.path for item in session.items}:
        path.unlink(missing_ok=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Fails a cell whose reply was not "ok", and notes for the report what came of it."""
    if not isinstance(item, IPyNbCell):
        return (yield)
    kernel = item.parent.kernel
    kernel.patience = 0.0 if _grade_id(item) else SETUP_SECONDS
    ended = ""
    try:
        result = yield
        if kernel.status != "ok":
            raise AnswerError(kernel.hidden_error())
        return result
    except AnswerError as error:
        ended = str(error)
        raise
    finally:
        if kernel.status == "error" and not kernel.error and not ended:
            ended = kernel.hidden_error()
        printed = [part.text for part in item.test_outputs or [] if part.get("name") == "stdout"]
        item.user_properties += [
            ("grade_id", _grade_id(item)),
            ("printed", "".join(printed)),
            ("ended", ended or kernel.error or ""),
        ]


def _grade_id(item: IPyNbCell) -> str:
    return item.cell.metadata.get("nbgrader", {}).get("grade_id", "")
