"""A progress bar for whatever takes more than two seconds."""

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm


def bar(steps: Iterable, description: str) -> tqdm:
    """Returns `steps` wrapped in a bar that appears after two seconds and is wiped at the end.

    There is none where `CI` is set, or where the output is neither a terminal nor a notebook.

    Args:
        steps: what is iterated over.
        description: a word or two before the bar.
    """
    in_notebook = type(sys.stdout).__module__.startswith("ipykernel")
    shown = "CI" not in os.environ and (in_notebook or sys.stdout.isatty())
    return tqdm(
        steps, description, file=sys.stdout, leave=False, delay=2, disable=not shown, ncols=90
    )
