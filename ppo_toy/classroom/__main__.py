"""Student editions and grades: `python -m ppo_toy.classroom --help`."""

import argparse
import math
import os
import secrets
import sys
from pathlib import Path

SOLUTIONS = Path("notebooks/solutions")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, OSError) as error:
        print(f"ppo_toy.classroom: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ppo_toy.classroom", description="Student editions and grades."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = commands.add_parser("release", help="make the student editions of all solutions")
    add.add_argument("--solutions", type=Path, default=SOLUTIONS, metavar="FOLDER")
    add.add_argument("--exercises", type=Path, default=Path("notebooks/exercises"))
    add.set_defaults(command=_release)
    _add_grade(commands.add_parser("grade", help="grade files and folders into a grade book"))
    return parser


def _add_grade(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("submissions", type=Path, nargs="+", help="notebooks, or folders of them")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the grade book")
    add("--solutions", type=Path, default=SOLUTIONS, metavar="FOLDER",
        help=f"the references (default: {SOLUTIONS})")  # fmt: skip
    add("--lesson", metavar="NAME", help="of all submissions, like 01_objective (default: as the "
        "file's name or its exercises say)")  # fmt: skip
    add("--jobs", type=int, default=os.cpu_count(), help="answers at a time (default: one a core)")
    add("--again", action="store_true", help="grade also what was graded before")
    add("--seed", type=int, help="of the hidden cases (default: a random one)")
    add("--cell-seconds", type=float, default=20.0, help="time for one cell (default: 20)")
    add("--memory", type=float, default=3.0, help="GiB for a process, beside what importing "
        "torch takes (default: 3)")  # fmt: skip
    add("--without-bubblewrap", action="store_true", help="do not use it even where it works")
    parser.set_defaults(command=_grade)


def _release(options: argparse.Namespace) -> None:
    from ppo_toy.classroom.release import release

    for path in release(options.solutions, options.exercises):
        print(path)


def _grade(options: argparse.Namespace) -> None:
    if sys.platform == "win32":
        raise ValueError("grading needs Linux or macOS; on Windows, use WSL")
    from ppo_toy.classroom.cage import Limits, bubblewrap
    from ppo_toy.classroom.grade import Session, grade
    from ppo_toy.classroom.gradebook import NOT_WALLED
    from ppo_toy.classroom.plugin import address_space

    if options.jobs < 1:
        raise ValueError(f"--jobs is {options.jobs}; it must be 1 or more")
    for name, value in (("memory", options.memory), ("cell-seconds", options.cell_seconds)):
        if not 0 < value < math.inf:
            raise ValueError(f"--{name} is {value:g}; it must be a number above 0")
    walled = not options.without_bubblewrap and bubblewrap() is not None
    if not walled:
        print(NOT_WALLED, file=sys.stderr)
    memory = address_space() + int(options.memory * 2**30)
    session = Session(
        solutions=options.solutions,
        seed=secrets.randbits(62) if options.seed is None else options.seed,
        limits=Limits(cell_seconds=options.cell_seconds, memory=memory),
        walled=walled,
        jobs=options.jobs,
        lesson=options.lesson,
        again=options.again,
    )
    grade(options.submissions, options.out, session)


if __name__ == "__main__":
    raise SystemExit(main())
