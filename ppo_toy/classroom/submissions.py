"""What was handed in: which files, whose, and for which lesson."""

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppo_toy.classroom.cells import FILE_BYTES, grade_id, read_cells
from ppo_toy.classroom.splice import Reference

UNKNOWN = "unknown"
COPY = re.compile(r"( ?\(\d+\)|-Copy\d*)+$")  # what a browser or Jupyter adds to a copy's name
NAME_BYTES = 60  # a file's name has room for 255


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
    else stands in the name (`ada_01_objective.ipynb`), but for what a browser or Jupyter adds to a
    copy; else the folder (`ada/01_objective.ipynb`, `ada/01_objective/01_objective.ipynb`).

    Args:
        paths: files and folders.
        references: by name.
        lesson: of all files, if given.

    Raises:
        ValueError: a path does not exist, there is no notebook, or files of different folders
            tell the same student.
    """
    found: dict[tuple[str, str], HandedIn] = {}
    places: dict[tuple[str, str, bool], Path] = {}
    for path in _notebooks(paths):
        name = lesson or _lesson(path, references)
        student, place, named_by_file = _student(path, name)
        first = found.setdefault((student, name), HandedIn(student, name, path))
        if places.setdefault((student, name, named_by_file), place) != place:
            raise ValueError(
                f"{first.path} and {path} would both be {student!r}; let files, or the folders "
                "that they lie in, bear the students' names"
            )
        if first.path != path:
            first.others.append(path)
    if not found:
        raise ValueError(f"there is no notebook in {', '.join(map(str, paths))}")
    return list(found.values())


def digest(path: Path, reference: Reference | None) -> str:
    """Changes with the file, the reference and its checks; a file too large goes by its size."""
    mixed = hashlib.sha256(reference.digest.encode() if reference else b"")
    if path.is_file() and not path.is_symlink():
        size = path.stat().st_size
        try:
            mixed.update(path.read_bytes() if size <= FILE_BYTES else str(size).encode())
        except OSError as error:
            mixed.update(str(error).encode())
    return mixed.hexdigest()


def safe_name(name: str) -> str:
    """A name that is fit for a file and a table, different for different names."""
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._-")
    safe = safe.encode("utf-8", "replace")[:NAME_BYTES].decode("utf-8", "ignore") or "unnamed"
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


def _student(path: Path, lesson: str) -> tuple[str, Path, bool]:
    """The student, the folder that holds what is theirs, and whether the file's name tells."""
    rest = COPY.sub("", path.stem).replace(lesson, "").strip("_- .")
    if rest:
        return safe_name(rest), path.absolute().parent, True
    folder = next(parent for parent in path.absolute().parents if parent.name != lesson)
    return safe_name(folder.name), folder, False
