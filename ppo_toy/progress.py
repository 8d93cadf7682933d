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
    file = _Place() if in_notebook else sys.stdout
    return tqdm(steps, description, file=file, leave=False, delay=2, disable=not shown, ncols=90)


class _Place:
    """A place in a notebook's output that shows the line written last, and in the end nothing.

    A row of blanks, with which a bar is wiped from a terminal, would be saved with the notebook.
    """

    def __init__(self) -> None:
        self.handle = None

    def write(self, text: str) -> None:
        line = text.strip()
        shown = {"text/plain": line} if line else {"text/plain": "", "text/html": ""}
        if self.handle:
            self.handle.update(shown, raw=True)
        elif line:
            from IPython.display import display

            self.handle = display(shown, raw=True, display_id=True)

    def flush(self) -> None:
        """Nothing waits."""
