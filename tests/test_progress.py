import io
import sys

import nbformat
import pytest
import tqdm
from nbclient import NotebookClient

from ppo_toy.progress import bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


class NotebookOutput(io.StringIO):
    """What a kernel puts in the place of the standard output: no terminal, but it can show."""

    __module__ = "ipykernel.iostream"


class Clock:
    """Advances by a second whenever it is read, so that no test has to wait."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def output(monkeypatch):
    """Builds an output of a kind and puts it in the place of the standard one."""

    def replace(kind):
        stream = kind()
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(tqdm.std, "time", Clock())
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # no thread outlives the test
    return replace


# By hand


def test_a_bar_is_shown_on_a_terminal(output):
    stream = output(Terminal)
    assert list(bar(range(20), "training")) == list(range(20))
    assert "training" in stream.getvalue()
    assert "20" in stream.getvalue()


CELL = """
import tqdm
from ppo_toy.progress import bar
times = iter(range(1000))
tqdm.std.time = lambda: float(next(times))
print("before")
seen = list(bar(range(20), "training"))
print("after", seen == list(range(20)))
"""


def test_in_a_notebook_one_place_shows_the_bar_and_is_left_empty(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    client, seen = NotebookClient(notebook, kernel_name="python3"), []
    show = client.process_message
    client.process_message = lambda msg, *rest: (
        seen.append(str(msg["content"])),
        show(msg, *rest),
    )[1]
    client.execute()
    outputs = notebook.cells[0].outputs
    printed = "".join(out.get("text", "") for out in outputs)
    assert printed == "before\nafter True\n"
    (place,) = [out for out in outputs if out.output_type == "display_data"]
    assert place.data == {"text/plain": "", "text/html": ""}
    assert any("training" in content and "20" in content for content in seen)


def test_the_bar_is_wiped_at_the_end(output):
    stream = output(Terminal)
    list(bar(range(20), "training"))
    last = stream.getvalue().rstrip("\r").split("\r")[-1]
    assert last.strip() == ""
    assert "\n" not in stream.getvalue()


def test_nothing_is_shown_where_the_output_is_no_terminal(output):
    stream = output(io.StringIO)
    assert list(bar(range(20), "training")) == list(range(20))
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [Terminal, NotebookOutput])
@pytest.mark.parametrize("value", ["true", "1", ""])
def test_nothing_is_shown_where_ci_is_set(kind, value, output, monkeypatch):
    monkeypatch.setenv("CI", value)
    stream = output(kind)
    assert list(bar(range(20), "training")) == list(range(20))
    assert stream.getvalue() == ""


# Edges and errors


def test_what_is_done_within_two_seconds_shows_nothing(output, monkeypatch):
    monkeypatch.setattr(tqdm.std, "time", lambda: 0.0)
    stream = output(Terminal)
    steps = iter(bar(range(1000), "training"))
    assert [next(steps) for _ in range(500)] == list(range(500))
    assert stream.getvalue() == ""


def test_the_bar_appears_once_two_seconds_have_passed(output, monkeypatch):
    now = 0.0
    monkeypatch.setattr(tqdm.std, "time", lambda: now)
    stream = output(Terminal)
    steps = iter(bar(range(1000), "training"))
    next(steps)
    now = 1.9
    next(steps)
    assert stream.getvalue() == ""
    now = 2.5
    next(steps)
    next(steps)
    assert "training" in stream.getvalue()


def test_a_line_is_at_most_ninety_columns(output):
    stream = output(Terminal)
    list(bar(range(20), "training"))
    assert max(len(line) for line in stream.getvalue().split("\r")) <= 90


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_any_iterable_passes_through_in_order(kind, output):
    output(kind)
    assert list(bar((word for word in ["a", "b", "c"]), "words")) == ["a", "b", "c"]
    assert list(bar([], "nothing")) == []


def test_an_error_in_the_loop_comes_through(output):
    output(Terminal)

    def steps():
        yield 1
        raise KeyError("step 2")

    with pytest.raises(KeyError, match="step 2"):
        list(bar(steps(), "training"))
