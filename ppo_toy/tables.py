"""Tables in files: columns between tabs, a header, and an error that says where and what to do."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any


def read_table(
    file: Path,
    columns: Sequence[str],
    parse: Callable[..., Any],
    *,
    n_rows: int | None = None,
    command: str = "",
) -> list:
    """Returns what `parse` makes of each row.

    Args:
        file: UTF-8 text, a header and a line for each row.
        columns: what the header has to say.
        parse: called with a row's fields; its ValueError gets the file and the line.
        n_rows: how many rows there must be; one or more if None.
        command: what makes the file again, for the messages; none if empty.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged. Both messages name the file, the line if there is one, and the
            command.
    """
    hint = f"; to make it again: {command}" if command else ""
    try:
        header, *lines = file.read_text(encoding="utf-8").splitlines() or [""]
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing{hint}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}{hint}") from None
    if header.split("\t") != list(columns):
        raise ValueError(f"{file}, line 1: the columns are not {list(columns)}{hint}")
    rows = []
    for number, line in enumerate(lines, start=2):
        fields = line.split("\t")
        try:
            if len(fields) != len(columns):
                raise ValueError(f"{len(fields)} columns where {len(columns)} were due")
            rows.append(parse(*fields))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}{hint}") from None
    if not rows or n_rows not in (None, len(rows)):
        raise ValueError(f"{file} has {len(rows)} rows; {n_rows or 'some'} were due{hint}")
    return rows


def table_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns the text of a file with this header and these rows."""
    return "".join("\t".join(map(str, row)) + "\n" for row in [columns, *rows])


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes all of a file or nothing; text as the same bytes on every system.

    It is written beside its place and moved there when all of it is on the disk, so that whoever
    reads the file, or finds it after a crash, finds the old content or the new.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with beside.open("wb") as opened:
        opened.write(content.encode() if isinstance(content, str) else content)
        opened.flush()
        os.fsync(opened.fileno())
    beside.replace(file)
