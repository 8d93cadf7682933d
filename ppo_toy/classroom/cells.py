"""A notebook that may hold anything, read as data: no notebook library sees it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbval.plugin import comment_markers

FILE_BYTES = 10 << 20
BRACKETS = 200_000  # that open in a file; a notebook of exercises has some hundreds
ANSWER_BYTES = 100_000
# By which an edition in another language says so, below the import of `check`.
LANGUAGE_LINE = re.compile(r'\n+os\.environ\["PPO_TOY_LANGUAGE"\] = "[\w-]+"\n?\Z')


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Returns the cells of a notebook that may hold anything.

    Raises:
        ValueError: it is no notebook; the message is fit for a report.
    """
    if path.is_symlink() or not path.is_file():
        raise ValueError("it is not a plain file")
    size = path.stat().st_size
    if size > FILE_BYTES:
        raise ValueError(f"it has {size:,} bytes; at most {FILE_BYTES:,} are read")
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if text.count(b"{") + text.count(b"[") > BRACKETS:
        raise ValueError(f"it has too many cells or parts: over {BRACKETS:,} brackets open")
    try:
        content = json.loads(text)
    except UnicodeDecodeError:
        raise ValueError("it is not in UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise ValueError("it is not a notebook of format 4: it has no list of cells")
    return [cell for cell in cells if isinstance(cell, dict)]


def grade_id(cell: dict[str, Any]) -> str | None:
    """The `grade_id` of a cell that may hold anything."""
    metadata = cell.get("metadata")
    of_nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = of_nbgrader.get("grade_id") if isinstance(of_nbgrader, dict) else None
    return name if isinstance(name, str) else None


def find_cells(cells: Sequence[dict[str, Any]], name: str, cell_id: str) -> list[int]:
    """Numbers of the cells with this `grade_id`, else of those without one and with this id."""
    found = [k for k, cell in enumerate(cells) if grade_id(cell) == name]
    return found or [
        k for k, cell in enumerate(cells) if cell.get("id") == cell_id and not grade_id(cell)
    ]


def code(cell: dict[str, Any]) -> str:
    """The source of a code cell, the same in all languages.

    It is empty for any other cell, and for a source that is no text.
    """
    source = cell.get("source") if cell.get("cell_type") == "code" else ""
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    return LANGUAGE_LINE.sub("", source) if isinstance(source, str) else ""


def unusable(source: str) -> str | None:
    """Why a source cannot be run, or None."""
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        return "holds characters that are none"
    if size > ANSWER_BYTES:
        return f"has {size:,} bytes; at most {ANSWER_BYTES:,} are read"
    return None if source.strip() else "is empty, or no code cell"


def without_markers(source: str) -> str:
    """Comments that nbval would obey are emptied; see `nbval.plugin.find_comment_markers`."""
    lines = [
        "#" if line.strip().lstrip("#").strip() in comment_markers else line
        for line in source.split("\n")
    ]
    return "\n".join(lines)
