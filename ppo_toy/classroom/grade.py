"""Grading a class: every submission on its own, several answers at a time."""

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ppo_toy.classroom.cage import Limits, bubblewrap, hide_memory, refuse_visible
from ppo_toy.classroom.examiner import Examiner
from ppo_toy.classroom.gradebook import Gradebook, Record
from ppo_toy.classroom.sitting import plain
from ppo_toy.classroom.splice import Reference
from ppo_toy.classroom.submissions import (
    UNKNOWN,
    HandedIn,
    digest,
    find_submissions,
    not_graded,
)
from ppo_toy.progress import bar


@dataclass(frozen=True)
class Session:
    """How a class is graded.

    Attributes:
        solutions: folder of the references.
        seed: of the hidden cases.
        limits: what an answer may use.
        walled: whether bubblewrap is used.
        jobs: how many answers run at a time.
        lesson: of all submissions; None to find it out for each.
        again: whether what was graded already is graded again.
    """

    solutions: Path
    seed: int
    limits: Limits = Limits()
    walled: bool = True
    jobs: int = 1
    lesson: str | None = None
    again: bool = False


def grade(submissions: Sequence[Path], out: Path, session: Session) -> None:
    """Grades files and folders into the grade book in the folder `out`; prints a line for each.

    Raises:
        ValueError: there is nothing to grade, there are no solutions, the book is of another
            edition of the exercises, two files could be the same student's, solutions or
            submissions could be seen from inside the walls, or a reference does not pass its own
            checks.
    """
    hide_memory()
    paths = sorted(session.solutions.glob("*.ipynb"))
    if not paths:
        raise ValueError(
            f"there is no solution in {session.solutions}; grade from the root of a clone, or say "
            "where the solutions are with --solutions"
        )
    references = {path.stem: Reference.read(path) for path in paths}
    if session.lesson not in {None, *references}:
        raise ValueError(f"there is no lesson {session.lesson!r} in {session.solutions}")
    book = Gradebook(out)
    book.refuse_another_edition({name: x.points for name, x in references.items()})
    found = find_submissions(submissions, references, session.lesson)
    book.left_out = not_graded(submissions, found)
    todo = [x for x in found if session.again or not _is_graded(x, book, references)]
    if session.walled and bubblewrap():
        refuse_visible([session.solutions, out, *submissions])
    with ThreadPoolExecutor(session.jobs) as pool:
        try:
            examiners = _examiners({x.lesson for x in todo}, references, session, pool)
            graded = _graded(todo, examiners, session.jobs, pool)
            for _, (record, reports) in zip(bar(range(len(todo)), "graded"), graded, strict=True):
                book.add(record, reports)
                tqdm.write(_line(record))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    book.publish()
    for path, why in book.left_out.items():
        print(f"not graded: {plain(path)}: {why}", file=sys.stderr)


def _is_graded(handed_in: HandedIn, book: Gradebook, references: Mapping[str, Reference]) -> bool:
    found = digest(handed_in.path, references.get(handed_in.lesson))
    if book.holds(handed_in.student, handed_in.lesson, found):
        return True
    before = book.records.get((handed_in.student, handed_in.lesson))
    if before and Path(before.file).parent != Path(plain(str(handed_in.path))).parent:
        raise ValueError(
            f"{before.file} was graded as {handed_in.student!r}, and {handed_in.path} would take "
            "its place; if it should, say --again"
        )
    return False


def _examiners(
    lessons: set[str], references: Mapping[str, Reference], session: Session, pool: Executor
) -> dict[str, Examiner]:
    known = {**references, UNKNOWN: Reference.of_nothing()}
    examiners = {}
    for name in sorted(lessons):
        examiners[name] = Examiner(known[name], session.seed, session.limits, walled=session.walled)
        examiners[name].verify(pool)
    return examiners


def _graded(
    todo: Sequence[HandedIn], examiners: Mapping[str, Examiner], jobs: int, pool: Executor
) -> Iterator[tuple[Record, dict[str, bytes]]]:
    """Keeps the pool busy without reading more than a few submissions ahead."""
    running: deque = deque()
    for handed_in in todo:
        running.append(examiners[handed_in.lesson].start(handed_in, pool))
        if len(running) > jobs:
            yield running.popleft().finish()
    while running:
        yield running.popleft().finish()


def _line(record: Record) -> str:
    look = record.remarks or any(mark.look_at for mark in record.marks)
    points = f"{record.points:3} of {record.out_of:3}"
    return f"{record.student:30} {record.lesson:20} {points}" + ("   see report" if look else "")
