"""A learner's own cells: which of them does an answer use?

The text is compiled to a table of names, as Python does before it runs anything; nothing is run.
"""

import re
import symtable
import warnings
from collections.abc import Mapping


def names(source: str) -> tuple[str, set[str], set[str]]:
    """Returns what of a cell can be run, the names that it gives, and those that it wants.

    Lines for IPython are left out where they are no Python; of what is still none, nothing is left.
    """
    for text in (source, re.sub(r"(?m)^\s*[%!?].*$", "", source)):
        try:
            with warnings.catch_warnings(action="ignore"):
                tables = [symtable.symtable(text, "cell", "exec")]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        own = tables[0].get_symbols()
        gives = {x.get_name() for x in own if x.is_assigned() or x.is_imported()}
        wants = {x.get_name() for x in own if x.is_referenced()}
        for table in tables:  # which grows meanwhile
            tables += table.get_children()
            wants |= {x.get_name() for x in table.get_symbols() if x.is_global()}
        return text, gives, wants - gives
    return "", set(), set()


def needed(answer: str, cells: Mapping[int, str]) -> dict[int, str]:
    """Those of the cells, as they can be run, that give what the answer or another wants."""
    read = {k: names(source) for k, source in cells.items()}
    wanted, kept, new = names(answer)[2], set(), {None}
    while new:
        new = {k for k, x in read.items() if x[1] & wanted or "import *" in x[0]} - kept
        kept |= new
        wanted = wanted.union(*(read[k][2] for k in new))
    return {k: read[k][0] for k in sorted(kept)}
