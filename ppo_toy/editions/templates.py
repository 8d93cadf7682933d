"""The messages that the checks can give, read off their sources.

A message is a string of several words outside docstrings and errors for programmers; where an
f-string has an expression, the message has `{}`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from ppo_toy.faults import FAULTS

CLASSROOM = Path(__file__).parents[1] / "classroom"
SPEAKERS = ("check.py", "exercise.py", "inputs.py", "open_ended.py", "probe.py")
# Of these, and of names and numbers, longer messages are made.
PARTS = {
    "case {}, {}",
    "returned",
    "returned [{}]",
    "{} and {}",
    "number",
    "number, {}",
    "1 number",
    "1 array [{}]",
    "array [{}]",
    "array [{}], {}",
    "nothing",
    "values",
    ": {}",
    "{}, or {}",
    "{}; and {}",
    "lower",
    "higher",
    "policy",
    "reference",
}
# What is no message: labels that are read by the code, and names of faults.
NOT_SAID = {"case {}, {} {}: {}", "gradient of {} [", "ok  {}: {}", "not yet  "}
NOT_SAID |= {", or ", "; and ", "none in this lesson", "only scaled", ", returned", ", returned "}


def templates() -> set[str]:
    """Every message, with `{}` where a name, a number or another message stands."""
    paths = [*(CLASSROOM / name for name in SPEAKERS), *(CLASSROOM / "checks").glob("*.py")]
    found = PARTS | {f"{name} ({said[:-1]})" for name, said in FAULTS.items()}
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found.update(filter(_is_said, _strings(tree)))
    return found


def _is_said(text: str) -> bool:
    if text in NOT_SAID or "\\" in text:
        return False
    words = text.replace("{}", "").split()
    return len(words) > 1 or (len(words) == 1 and "{}" in text and words[0].isalpha())


def _strings(node: ast.AST) -> Iterator[str]:
    """All strings in a tree, f-strings as templates, without those that no learner reads."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(x.value if isinstance(x, ast.Constant) else "{}" for x in node.values)
        for part in node.values:
            yield from [] if isinstance(part, ast.Constant) else _strings(part)
    elif isinstance(node, ast.FormattedValue):
        yield from _strings(node.value)
    elif isinstance(node, ast.Constant):
        yield from [node.value] if isinstance(node.value, str) else []
    elif not _is_for_programmers(node):
        for child in ast.iter_child_nodes(node):
            yield from _strings(child)


def _is_for_programmers(node: ast.AST) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    call = node.exc if isinstance(node, ast.Raise) else None
    error = isinstance(call, ast.Call) and getattr(call.func, "id", "") == "ValueError"
    return docstring or error
