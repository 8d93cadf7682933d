import importlib
import inspect
import pkgutil
import re

import pytest
from form import NOTEBOOKS, Notebook
from test_form import LESSONS

import ppo_toy

SHEET = (NOTEBOOKS / "notation.md").read_text(encoding="utf-8")
OURS, THEIRS = (
    [re.split(r"\s*\|\s*", line.strip("| ")) for line in block.splitlines()]
    for block in SHEET.split("\n\n")
    if block.startswith("|")
)


def public(thing):
    """Names of its public members and parameters, those of its members too."""
    names = set()
    for name, member in inspect.getmembers(thing):
        own = (getattr(member, "__module__", None) or "ppo_toy").startswith("ppo_toy")
        if name.startswith("_") or not own:
            continue
        names.add(name)
        if callable(member) and not isinstance(member, type):
            names |= set(inspect.signature(member).parameters)
        if inspect.isclass(member):
            within = public(member) | set(inspect.signature(member).parameters)
            names |= within | {f"{name}.{x}" for x in within}
    return names


def test_each_name_of_ours_is_a_public_function_parameter_or_attribute():
    modules = [m.name for m in pkgutil.iter_modules(ppo_toy.__path__) if m.name != "__main__"]
    names = set().union(*(public(importlib.import_module(f"ppo_toy.{m}")) for m in modules))
    used = [name for row in OURS for name in re.findall("`([^`]+)`", row[3] if row[3:] else "")][1:]
    assert len(used) > 35
    assert [name for name in used if name not in names] == []


def test_every_row_fills_the_columns_and_no_symbol_stands_twice():
    assert OURS[0][3:] + THEIRS[0][1:] == ["`ppo_toy`", "TRL 1.16.0", "verl", "OpenRLHF"]
    symbols = []
    for head, _, *rows in (OURS, THEIRS):
        rows = [row for row in rows if not row[0].startswith("**")]
        assert all(len(row) == len(head) for row in rows)
        symbols.append([row[0] for row in rows])
        assert len(set(symbols[-1])) == len(rows) > 30
    assert symbols[1] == [symbol for symbol in symbols[0] if symbol in symbols[1]]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_lessons_opening_links_to_it(path):
    assert "](notation.md)" in Notebook(path).cells[0].source


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_symbols_of_a_lessons_own_table_are_in_it(path):
    tables = re.findall(r"^(?:\| )?symbol \|.*\n.*\n((?:.+\|.*\n)+)", Notebook(path).text, re.M)
    for row in "".join(tables).splitlines():
        symbols = re.findall(r"\$([^$]+)\$", row.strip("| ").split("|")[0])
        assert symbols
        assert [symbol for symbol in symbols if symbol not in SHEET] == []
