"""What was handed in: which files, whose, and for which lesson."""

import hashlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppo_toy.classroom.cells import FILE_BYTES, grade_id, read_cells
from ppo_toy.classroom.splice import Reference

UNKNOWN = "unknown"
# What Colab, a browser, Jupyter or a desktop adds to a copy's name.
COPY = re.compile(
    r"^((copy of|kopie von|copie de|c[oó]pia de) )+|(\s*(\(\d+\)|[ -]copy ?\d*))+$", re.I
)
# What people add behind a lesson's name that is no name of theirs.
VERSION = re.compile(
    r"[\W_]+(final|done|submission|solved|solutions?|answers?|new|v?\d+)(?![^\W_])", re.I
)
NAME_BYTES = 60  # a file's name has room for 255


@dataclass
class HandedIn:
    """A file to be graded.

    Attributes:
        student: whose it is; fit for a file's name.
        lesson: name of the reference, or UNKNOWN.
        path: the file.
        others: copies of it, and files of no known lesson, which are not graded.
        remarks: what a person should know of its name, and of the others.
    """

    student: str
    lesson: str
    path: Path
    others: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def find_submissions(
    paths: Sequence[Path], references: Mapping[str, Reference], lesson: str | None = None
) -> list[HandedIn]:
    """Returns what is to be graded among files, and notebooks in folders.

    The lesson stands in the file's name, else the exercises in the file tell. The student is the
    folder (`ada/01_objective.ipynb`, `ada/01_objective/01_objective.ipynb`). In the one folder that
    the caller names, beside a file that he names, and where files bear several names, it is what
    else stands in the file's name (`ada_01_objective.ipynb`). Of a file and copies beside it, the
    file is graded.

    Args:
        paths: files and folders.
        references: by name.
        lesson: of all files, if given.

    Raises:
        ValueError: a path does not exist or is a link, there is no notebook, or two files could be
            the same student's for the same lesson.
    """
    notebooks = {path for path, why in _look(paths) if not why}
    if not notebooks:
        raise ValueError(f"there is no notebook in {', '.join(map(str, paths))}")
    claims = [
        (path, *_claim(path, references, lesson))
        for path in sorted(notebooks, key=lambda path: (_is_copy(path), len(path.parts), path))
    ]
    several = {path.parent.absolute() for path in paths if not path.is_dir()}
    several |= _folders_of_several(claims) | ({paths[0].absolute()} if len(paths) == 1 else set())
    found: dict[tuple[str, str], HandedIn] = {}
    for path, name, folder, said in claims:
        student = said if said and folder in several else folder.name
        student = unicodedata.normalize("NFC", student)
        new = HandedIn(safe_name(student), name, path)
        if said and _key(said) != _key(student):
            new.remarks.append(f"its name says {said!r}; its folder says whose it is")
        first = found.setdefault((_key(student), name), new)
        if first is not new:
            _put_aside(path, first)
    for path, name, _, said in claims:
        other = found.get((_key(said), name))
        if other and path not in (other.path, *other.others):
            _refuse(other, path)
    return list(found.values())


def not_graded(paths: Sequence[Path], found: Sequence[HandedIn]) -> dict[str, str]:
    """Why each file and empty folder that was handed in is not graded, by its path."""
    why = {str(path): why for path, why in _look(paths) if why}
    return why | {str(other): f"{x.path.name} is graded" for x in found for other in x.others}


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


def _look(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Every file and empty folder, and why it is not to be graded; nothing if it is."""
    for path in paths:
        for link in (x for x in (path, *path.parents[:2]) if x.is_symlink()):
            raise ValueError(f"{link} is a link to {link.resolve()}; say that folder, if it counts")
        if not path.exists():
            raise ValueError(f"there is no file or folder {path}")
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        try:
            is_folder = path.is_dir() and not path.is_symlink()
            if path not in paths and (path.name.startswith(".") or path.name == "__MACOSX"):
                yield path, "it is hidden"
            elif path.is_symlink() and path.suffix.lower() != ".ipynb":
                yield path, "it is a link"
            elif is_folder and (inside := sorted(path.iterdir())):
                waiting += inside
            elif is_folder:
                yield path, "an empty folder"
            else:
                is_notebook = path in paths or path.suffix.lower() == ".ipynb"
                yield path, "" if is_notebook else "it is no notebook"
        except OSError as error:
            yield path, f"it cannot be read: {error.strerror}"


def _claim(
    path: Path, references: Mapping[str, Reference], lesson: str | None
) -> tuple[str, Path, str]:
    """A file's lesson, the folder that could be its student's, and what else its name says."""
    stem = COPY.sub("", path.stem)
    named = [name for name in references if _written(name).search(stem)]
    name = lesson or max(named, key=len, default=None) or _lesson_inside(path, references)
    before, _, after = _written(name).sub("\0", stem, count=1).partition("\0")
    said = (before + VERSION.sub("", after)).strip("_- .")
    parents = path.absolute().parents
    folder = next((x for x in parents if not _written(name).fullmatch(x.name)), parents[0])
    return name, folder, said


def _is_copy(path: Path) -> bool:
    return COPY.search(path.stem) is not None


def _folders_of_several(claims: Sequence[tuple[Path, str, Path, str]]) -> set[Path]:
    """Folders in which files of one lesson bear different names."""
    named = {(folder, name, said) for _, name, folder, said in claims if said}
    counted = Counter((folder, name) for folder, name, _ in named if name != UNKNOWN)
    return {folder for (folder, _), n in counted.items() if n > 1}


def _put_aside(path: Path, first: HandedIn) -> None:
    """Notes a copy beside the file that counts."""
    if path.parent != first.path.parent or not _is_copy(path) or _is_copy(first.path):
        _refuse(first, path)
    first.others.append(path)
    first.remarks.append(f"not graded: {path}")


def _refuse(first: HandedIn, path: Path) -> None:
    if first.lesson != UNKNOWN:
        raise ValueError(
            f"{first.path} and {path} would both be {first.student!r}; let files, or the folders "
            "that they lie in, bear the students' names, and leave one for a student and a lesson"
        )


def _written(lesson: str) -> re.Pattern:
    """A lesson's name as people write it: in any case, with blanks or dashes for underscores."""
    return re.compile(r"(?<!\d)" + "[ _-]".join(map(re.escape, lesson.split("_"))), re.I)


def _lesson_inside(path: Path, references: Mapping[str, Reference]) -> str:
    try:
        ids = {grade_id(cell) for cell in read_cells(path)}
    except (ValueError, OSError):
        return UNKNOWN
    shared = {name: len(ids & set(reference.questions)) for name, reference in references.items()}
    best = max(shared, key=shared.get, default=None)
    return best if best and shared[best] else UNKNOWN


def _key(name: str) -> str:
    """The same for names that could be one person's: in any case, with any dashes or accents."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(words) or name
