"""What was handed in: which files, whose, and for which lesson."""

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppo_toy.classroom.splice import FILE_BYTES, Reference, grade_id, read_cells

UNKNOWN = "unknown"


@dataclass
class HandedIn:
    """A file to be graded.

    Attributes:
        student: whose it is; fit for a file's name.
        lesson: name of the reference, or UNKNOWN.
        path: the file.
        others: files of the same student for the same lesson, which are not graded.
    """

    student: str
    lesson: str
    path: Path
    others: list[Path] = field(default_factory=list)


def find_submissions(
    paths: Sequence[Path], references: Mapping[str, Reference], lesson: str | None = None
) -> list[HandedIn]:
    """Returns what is to be graded among files, and notebooks in folders.

    The lesson stands in the file's name, else the exercises in the file tell. The student is what
    else stands in the name (`ada_01_objective.ipynb`), else the folder (`ada/01_objective.ipynb`,
    `ada/01_objective/01_objective.ipynb`).

    Args:
        paths: files and folders.
        references: by name.
        lesson: of all files, if given.

    Raises:
        ValueError: a path does not exist, or there is no notebook.
    """
    found: dict[tuple[str, str], HandedIn] = {}
    for path in _notebooks(paths):
        name = lesson or _lesson(path, references)
        student = _student(path, name)
        first = found.setdefault((student, name), HandedIn(student, name, path))
        if first.path != path:
            first.others.append(path)
    if not found:
        raise ValueError(f"there is no notebook in {', '.join(map(str, paths))}")
    return list(found.values())


def digest(path: Path, reference: Reference | None) -> str:
    """Changes with the file, the reference and its checks; a file too large goes by its size."""
    mixed = hashlib.sha256(reference.digest.encode() if reference else b"")
    if path.is_file() and not path.is_symlink():
        small = path.stat().st_size <= FILE_BYTES
        mixed.update(path.read_bytes() if small else str(path.stat().st_size).encode())
    return mixed.hexdigest()


def safe_name(name: str) -> str:
    """A name that is fit for a file and a table, different for different names."""
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._-")[:60] or "unnamed"
    return safe if safe == name else f"{safe}-{zlib.crc32(name.encode('utf-8', 'replace')):08x}"


def _notebooks(paths: Sequence[Path]) -> list[Path]:
    found = set()
    for path in paths:
        if path.is_dir():
            found |= {p for p in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
        elif path.exists() or path.is_symlink():
            found.add(path)
        else:
            raise ValueError(f"there is no file or folder {path}")
    return sorted(found, key=lambda path: (len(path.parts), path))


def _lesson(path: Path, references: Mapping[str, Reference]) -> str:
    named = [name for name in references if name in path.stem]
    if named:
        return max(named, key=len)
    try:
        ids = {grade_id(cell) for cell in read_cells(path)}
    except (ValueError, OSError):
        return UNKNOWN
    shared = {name: len(ids & set(reference.questions)) for name, reference in references.items()}
    best = max(shared, key=shared.get, default=None)
    return best if best and shared[best] else UNKNOWN


def _student(path: Path, lesson: str) -> str:
    rest = path.stem.replace(lesson, "").strip("_- .")
    folders = [part for part in path.absolute().parts[:-1] if part != lesson]
    return safe_name(rest or folders[-1])
