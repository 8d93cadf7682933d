"""Whether a translation says the same in all that is no prose: formulas, code, numbers, links."""

import re
from collections import Counter
from collections.abc import Callable, Iterator

FORMULA = re.compile(r"\$\$.+?\$\$|(?<![\\$])\$[^$\n]+\$", re.S)
FENCE = re.compile(r"^```.*?^```", re.S | re.M)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*|[½⅓⅔¼¾⅛]")
IN_WORDS = re.compile(r"\\text\{[^{}]*\}")  # words in a formula, which may be translated
STAND_IN = "x"  # for a formula or code: what stands there counts as a Latin word


def formulas(text: str) -> list[str]:
    """All formulas, without the words in them."""
    return [IN_WORDS.sub(r"\\text{}", x) for x in FORMULA.findall(CODE.sub("", text))]


def code_spans(text: str) -> list[str]:
    """All code: what stands in backticks, and whole blocks."""
    return FENCE.findall(text) + CODE.findall(FORMULA.sub("", FENCE.sub("", text)))


def links(text: str) -> list[str]:
    """Where all links and images lead."""
    return [target for _, target in LINK.findall(text)]


def numbers(text: str) -> list[str]:
    """All numbers in digits, outside formulas, code and targets of links."""
    return NUMBER.findall(prose(text))


def headings(text: str) -> list[str]:
    """The level of each heading."""
    return re.findall(r"^(#+) ", FENCE.sub("", text), re.M)


def rows(text: str) -> list[str]:
    """How many cells each row of a table has."""
    bare = CODE.sub(STAND_IN, FORMULA.sub(STAND_IN, text))
    return [f"row of {x.count('|') - 1}" for x in re.findall(r"^\|.*\|\s*$", bare, re.M)]


def items(text: str) -> list[str]:
    """The marks of all items of lists, and of quotations."""
    return re.findall(r"^ *(?:[-*+]|\d+\.|>) ", FENCE.sub("", text), re.M)


def tags(text: str) -> list[str]:
    """All HTML tags."""
    return re.findall(r"</?[a-z]+[^<>]*>", CODE.sub("", FORMULA.sub("", text)))


LOOKS: dict[str, Callable[[str], list[str]]] = {
    "formula": formulas,
    "code": code_spans,
    "link": links,
    "number": numbers,
    "heading": headings,
    "table": rows,
    "list": items,
    "tag": tags,
}


def prose(text: str) -> str:
    """The text as words: formulas and code become STAND_IN, links their words, no emphasis."""
    text = FORMULA.sub(STAND_IN, CODE.sub(STAND_IN, FENCE.sub("", text)))
    text = LINK.sub(r"\1", text)
    text = re.sub(r"<[^<>]+>", "\n", text)
    return re.sub(r"\*+", "", text)


def differences(english: str, text: str) -> Iterator[str]:
    """One sentence for each kind of thing that is not the same in both."""
    for kind, look in LOOKS.items():
        before, after = Counter(look(english)), Counter(look(text))
        lost, new = (before - after), (after - before)
        if lost or new:
            told = [f"{what} {_shown(x)}" for what, x in (("lost", lost), ("new", new)) if x]
            yield f"{kind}: {'; '.join(told)}"


def _shown(counted: Counter) -> str:
    return ", ".join(" ".join(x.split()) for x in counted.elements())
