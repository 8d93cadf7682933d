"""Student editions and grades: `python -m ppo_toy.classroom --help`."""

import argparse
import sys
from pathlib import Path

from ppo_toy.classroom.release import release


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, OSError) as error:
        print(f"ppo_toy.classroom: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ppo_toy.classroom", description="Student editions and grades."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = commands.add_parser("release", help="make the student editions of all solutions")
    add.add_argument("--solutions", type=Path, default=Path("notebooks/solutions"))
    add.add_argument("--exercises", type=Path, default=Path("notebooks/exercises"))
    add.set_defaults(command=_release)
    return parser


def _release(options: argparse.Namespace) -> int:
    for path in release(options.solutions, options.exercises):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
