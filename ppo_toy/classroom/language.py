"""What a check says, in the learner's language.

The notebook names it in an environment variable. A language is a table, `messages/<language>.tsv`:
in each row the English message and its translation, with `{}` where a name, a number or another
message stands ({0}, {1}, ... if their order changes). English needs no table.
"""

import csv
import functools
import os
import re
import textwrap
import unicodedata
from pathlib import Path

from ppo_toy.classroom.variables import LANGUAGE

MESSAGES = Path(__file__).parent / "messages"
NOT_FIRST = "，。；：？！、）」”》"  # of a line


def told(message: str) -> str:
    """A message in the learner's language, line by line; what the table does not know stays."""
    language = os.environ.get(LANGUAGE, "")
    if not (MESSAGES / f"{language}.tsv").is_file():
        return message
    return "\n".join(_told(line, language) for line in message.split("\n"))


def read_table(language: str) -> dict[str, str]:
    """The translations of a language by English message, both with places for what varies."""
    text = (MESSAGES / f"{language}.tsv").read_text(encoding="utf-8")
    rows = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return {row[0]: row[1] for row in rows if len(row) == 2}


@functools.cache
def _patterns(language: str) -> list[tuple[re.Pattern, str]]:
    """What finds each message, and its translation; first what leaves least to the places."""
    rows = sorted(read_table(language).items(), key=lambda row: -len(row[0].replace("{}", "")))
    return [
        (re.compile("(.*?)".join(map(re.escape, english.split("{}")))), translation)
        for english, translation in rows
    ]


def _told(text: str, language: str) -> str:
    for pattern, translation in _patterns(language):
        if found := pattern.fullmatch(text):
            return translation.format(*(_told(part, language) for part in found.groups()))
    return text


def fill(text: str, width: int) -> str:
    """Breaks a text into lines of at most this many columns, of which a wide letter takes two."""
    if not any(map(_is_wide, text)):
        return textwrap.fill(text, width)
    lines, line = [], ""
    for piece in re.findall(r"[^\s⺀-￯]+|.", text):  # a Latin word, a blank or a wide letter
        if _columns(line + piece.rstrip()) > width and piece not in NOT_FIRST:
            lines.append(line.rstrip())
            line = ""
        line += piece
    return "\n".join([*lines, line])


def _is_wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF"


def _columns(text: str) -> int:
    return sum(1 + _is_wide(letter) for letter in text)
