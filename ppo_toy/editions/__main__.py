"""Keeps the edition in another language: `python -m ppo_toy.editions --help`."""

import argparse
import sys
from pathlib import Path

from ppo_toy.editions.edition import Edition, find_editions
from ppo_toy.editions.faults import drawing_faults, faults
from ppo_toy.editions.pages import DONE, link_back, refresh, texts
from ppo_toy.editions.sheets import export, take

HELP = """Without an option: takes over code, outputs and cells from the English notebooks, puts
the links between both, and says what is missing or stale. A PAGE is a number (03: lesson and
exercises) or a path like exercises/03_policy_gradient.ipynb."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m ppo_toy.editions", description=HELP)
    parser.add_argument("language", help="folder of the edition in the folder of the notebooks")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="FOLDER")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--sheet", nargs="+", metavar="PAGE", help="write sheets for a translator")
    one.add_argument("--write", nargs="+", metavar="SHEET", type=Path, help="take sheets over")
    one.add_argument("--check", nargs="*", metavar="PAGE", help="list faults; exit 1 if any")
    options = parser.parse_args(arguments)
    try:
        known = find_editions(options.notebooks)
        if options.language not in known:
            raise ValueError(f"no edition {options.language!r}; known: {', '.join(known)}")
        return _run(known[options.language], options)
    except (ValueError, OSError) as error:
        print(f"ppo_toy.editions: {error}", file=sys.stderr)
        return 2


def _run(edition: Edition, options: argparse.Namespace) -> int:
    if options.sheet:
        for page in edition.selected(options.sheet):
            print(export(edition, page))
        return 0
    if options.write:
        return _tell({page: faults(edition, page) for page in map(_take(edition), options.write)})
    if options.check is not None:
        pages = edition.selected(options.check) if options.check else edition.pages
        told = {page: faults(edition, page) for page in pages}
        return _tell(told | ({} if options.check else {"drawings": drawing_faults(edition)}))
    for page in edition.written:
        refresh(edition, page)
        link_back(edition.notebooks, page)
    for page in edition.pages:
        states = [x.state for x in texts(edition, page)]
        n, due = states.count(DONE), [x for x in texts(edition, page) if x.state != DONE]
        print(f"{page}: {n} of {len(states)} cells", *(f"{x.cell} {x.state}" for x in due))
    return 0


def _take(edition: Edition):  # noqa: ANN202
    return lambda path: take(edition, path)


def _tell(told: dict[str, list[str]]) -> int:
    for page, sentences in told.items():
        print(f"{page}: {len(sentences) or 'no'} fault{'s' * (len(sentences) != 1)}")
        print(*(f"  {said}\n" for said in sentences), sep="", end="")
    return 1 if any(told.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
