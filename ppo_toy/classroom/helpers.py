"""A learner's own cells: which of them does an answer need, and what became of the others?

Names are looked up as Python's compiler does, so a helper, an import or an earlier answer is found
wherever an answer uses it. The text is compiled to a table of names and never run here.
"""

import re
import symtable
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppo_toy.classroom.cells import ANSWER_BYTES, without_markers


@dataclass(frozen=True)
class Names:
    """A cell as it can be run, the names that it gives, and those that it wants of others."""

    source: str = ""
    gives: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()


def names(source: str) -> Names:
    """Reads a cell, without its lines for IPython if need be; as nothing if it is no Python."""
    for text in (source, re.sub(r"(?m)^\s*[%!?].*$", "", source)):
        try:
            with warnings.catch_warnings(action="ignore"):
                table = symtable.symtable(text, "cell", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        gives = {x.get_name() for x in table.get_symbols() if x.is_assigned() or x.is_imported()}
        wants, inside = {x.get_name() for x in table.get_symbols() if x.is_referenced()}, [table]
        while inside:
            inside += (part := inside.pop()).get_children()
            wants |= {x.get_name() for x in part.get_symbols() if x.is_global()}
        return Names(text, frozenset(gives), frozenset(wants - gives))
    return Names()


def needed(answer: Names, cells: Mapping[int, Names]) -> list[int]:
    """Numbers of the cells that give a name which the answer, or another such cell, wants."""
    wanted, kept, new = set(answer.wants), set(), {None}
    while new:
        new = {
            k for k, x in cells.items() if x.gives & wanted or "import *" in x.source
        } - kept  # fmt: skip
        kept |= new
        wanted |= {name for k in new for name in cells[k].wants}
    return sorted(kept)


def taken_along(
    answers: Mapping[str, tuple[int, str]], own: Mapping[int, str], added: set[int]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Returns the cells that each answer needs, and remarks on all that were added.

    Args:
        answers: the number of its cell and its source, by the exercise's name.
        own: sources of the learner's own cells, earlier answers among them, by number.
        added: those of them that are no answers.
    """
    read = {k: names(source) for k, source in own.items()}
    helpers, remarks, idle = {}, [], set(added)
    for name, (place, answer) in answers.items():
        chosen = needed(names(answer), {k: x for k, x in read.items() if k < place})
        sources = tuple(without_markers(read[k].source) for k in chosen)
        if sum(map(len, sources)) > ANSWER_BYTES:
            remarks.append(f"{name}: too long to be taken along: {_listed(chosen)}")
        elif chosen:
            helpers[name] = sources
            remarks.append(f"{name}: taken along, since the answer uses it: {_listed(chosen)}")
            idle -= set(chosen)
    unread = {k for k in idle if not read[k].source}
    if unread:
        remarks.append(f"not run, since it is no plain Python: {_listed(unread)}")
    if idle - unread:
        remarks.append(f"not run, since no answer below uses it: {_listed(idle - unread)}")
    return helpers, remarks


def _listed(cells: Sequence[int] | set[int]) -> str:
    shown = ", ".join(str(k + 1) for k in sorted(cells)[:20])
    return f"cell {shown}" + (f" and {len(cells) - 20} more" if len(cells) > 20 else "")
