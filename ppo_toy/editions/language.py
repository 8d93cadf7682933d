"""Whether a translation keeps its language's own rules: its script, style, phrases and glossary.

All of them stand in the language's folder: `edition.toml` and `glossary.md`.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from ppo_toy.editions.compare import CODE, FORMULA, prose
from ppo_toy.editions.edition import GLOSSARY, Edition

EMPHASIS = re.compile(
    r"(?:(?<=([^*]))|^)\*{1,2}(?=[^*\s])([^*\n]*[^*\s])\*{1,2}(?!\*)(?=(.?))", re.M
)


@dataclass(frozen=True)
class Term:
    """A row of the glossary.

    Attributes:
        english: the term.
        pattern: finds it, and its plural.
        chosen: its renderings, the first one being the best; empty where only a rendering is ruled
            out.
        forbidden: what it must not be called.
    """

    english: str
    pattern: re.Pattern
    chosen: tuple[str, ...]
    forbidden: tuple[str, ...]


@cache
def glossary(edition: Edition) -> tuple[Term, ...]:
    """The rows of the edition's glossary: English | chosen, or others | not | remark."""
    text = (edition.folder / GLOSSARY).read_text(encoding="utf-8")
    rows = [[x.strip() for x in line.strip("| ").split("|")] for line in text.splitlines()]
    terms = []
    for row in (row for row in rows if len(row) >= 3 and set(row[0]) - set(":-")):
        chosen, forbidden = (tuple(filter(None, re.split(r"\s*/\s*", x))) for x in row[1:3])
        terms.append(Term(row[0], _finds(row[0]), chosen, forbidden))
    return tuple(terms[1:])  # the first row is the heading


def _finds(term: str) -> re.Pattern:
    plural = rf"{re.escape(term)}(?:s|es)?"
    if term.endswith("y"):
        plural += rf"|{re.escape(term[:-1])}ies"
    return re.compile(rf"(?<![\w-])(?:{plural})(?![\w-])", re.I if term.islower() else 0)


def breaches(edition: Edition, english: str, text: str, allows: list[str]) -> Iterator[str]:
    """One sentence for each rule that a translation breaks, and each leave that it does not need.

    Args:
        edition: whose rules count.
        english: the cell's English text.
        text: the translation.
        allows: names of rules that this cell may break: a term, or the text that a rule finds.
    """
    found = [*_script(edition, english, text), *_style(edition, text)]
    found += [*_phrases(edition, english, text), *_terms(edition, english, text)]
    yield from (said for name, said in found if name not in allows)
    used = {name for name, _ in found}
    yield from (f"allows {name!r}, and need not" for name in allows if name not in used)


def _script(edition: Edition, english: str, text: str) -> Iterator[tuple[str, str]]:
    words = re.findall(r"[A-Za-z]{2,}", prose(english))
    if len(words) > 2 and not re.search(edition.table["script"], prose(text)):
        yield "script", "it is not translated"


def _style(edition: Edition, text: str) -> Iterator[tuple[str, str]]:
    bare = prose(text)
    for before, inside, after in EMPHASIS.findall(FORMULA.sub("$", CODE.sub("`", text))):
        # CommonMark's flanking rules: such stars would stand in the page as stars.
        if (_mark(inside[0]) and not _mark(before)) or (_mark(inside[-1]) and not _mark(after)):
            yield inside, f"emphasis that begins or ends with a mark shows its stars: {inside!r}"
    for rule in edition.table["style"]:
        for found in re.finditer(rule["not"], bare, re.M):
            around = bare[max(found.start() - 8, 0) : found.end() + 8].replace("\n", " ")
            yield found[0], f"{rule['why']}: {found[0]!r} in “{around}”"


def _mark(letter: str) -> bool:
    """Whether it is no letter and no digit: a blank, the end of a line, or a punctuation mark."""
    return not letter or unicodedata.category(letter)[0] in "PSZC"


def _phrases(edition: Edition, english: str, text: str) -> Iterator[tuple[str, str]]:
    for phrase, due in edition.table["phrases"].items():
        if english.count(phrase) != text.count(due):
            yield phrase, f"{phrase!r} is {due!r} here, as often as in the English"


def _terms(edition: Edition, english: str, text: str) -> Iterator[tuple[str, str]]:
    english, bare, covered = prose(english), prose(text), ""
    for term in sorted(glossary(edition), key=lambda x: -len(x.english)):
        # A longer term hides the shorter ones in it.
        english, n = term.pattern.subn(lambda m: re.sub(r"\w", "_", m[0]), english)
        covered += " ".join(term.chosen) * bool(n)
        if n and term.chosen and not any(x.lower() in bare.lower() for x in term.chosen):
            yield term.english, f"{term.english} is {' or '.join(term.chosen)}"
        for wrong in term.forbidden if n else ():
            if wrong in bare and wrong not in covered:
                yield wrong, f"{term.english} is not {wrong} but {' or '.join(term.chosen)}"
