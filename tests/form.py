"""What a person has to get through in a notebook, and whether its cells have the common form.

`python tests/form.py notebooks/04_beta.ipynb` prints both.
"""

import ast
import base64
import io
import json
import math
import re
import statistics
import sys
import tokenize
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
RUNS = {"train", "train_on", "backward"}
WIDEST = 860  # pixels: the column of a notebook, and a little for what pokes out


class Cell:
    """A cell with what the rules ask of it."""

    def __init__(self, number, raw):
        self.number, self.source = number, "".join(raw["source"])
        self.code = raw["cell_type"] == "code"
        meta = raw["metadata"]
        tags, jupyter = meta.get("tags", []), meta.get("jupyter", {})
        marks = ("hide-input" in tags, jupyter.get("source_hidden"), meta.get("cellView") == "form")
        self.folded, self.half_folded = all(marks), any(marks) and not all(marks)
        self.hidden = "hide-output" in tags and bool(jupyter.get("outputs_hidden"))
        outputs = raw.get("outputs", [])
        self.shows = bool(outputs)
        self.printed = "".join("".join(out.get("text", "")) for out in outputs)
        self.figures = [
            out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})
        ]
        self.lines = self.source.splitlines()
        self.tree = ast.parse(self.source) if self.code else ast.Module([], [])
        nodes = list(ast.walk(self.tree))
        self.calls = {_called(node) for node in nodes if isinstance(node, ast.Call)}
        names = [node for node in nodes if isinstance(node, ast.Name)]
        self.stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        self.loaded = {node.id for node in names} - self.stored
        self.defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in nodes)

    @property
    def words(self):
        """How many words it has: text, or comments and what is printed."""
        if not self.code:
            return len(self.source.split())
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        comments = " ".join(token.string for token in tokens if token.type == tokenize.COMMENT)
        if self.number == 1:
            comments = ""  # the set-up, the same everywhere
        return len(re.findall(r"\S*[^\W\d_]{2}\S*", f"{comments} {self.printed}"))

    @property
    def draws(self):
        return "show" in self.calls

    @property
    def guards(self):
        """Nothing but assertions that hold what the text says; paper against by-hand is none."""
        asserts = "assert_close" in self.calls or any(
            isinstance(node, ast.Assert) for node in ast.walk(self.tree)
        )
        shown = re.search(r"by_hand|paper", self.source)
        only_ok = all(line.startswith("ok") for line in self.printed.splitlines())
        return asserts and only_ok and not (shown or self.draws or self.defines or self.figures)


def _called(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


class Notebook:
    """A lesson or a deeper notebook, its measures and its faults."""

    def __init__(self, path):
        self.path = Path(path)
        raw = json.loads(self.path.read_text(encoding="utf-8"))
        self.cells = [Cell(k, raw_cell) for k, raw_cell in enumerate(raw["cells"])]
        self.code = [cell for cell in self.cells if cell.code]
        self.text = "\n\n".join(cell.source for cell in self.cells if not cell.code)
        self.number = self.path.stem.split("_")[0]
        self.deep = self.number[-1].isalpha()
        self.open = [cell for cell in self.code if not cell.folded]
        self.words = sum(cell.words for cell in self.cells)
        self.open_lines = sum(len(cell.lines) for cell in self.open)
        self.minutes = 5 * math.ceil((self.words / 100 + len(self.open)) / 5)

    def measures(self):
        return (
            f"{self.path.stem:22} {self.words:5} words {len(self.code):3} cells "
            f"{self.open_lines:4} open lines {self.minutes:3} minutes"
        )

    def faults(self):
        """One sentence for each rule that is broken, and where."""
        return [*self._budgets(), *self._cells(), *self._order(), *self._links(), *self._lines()]

    def _budgets(self):
        words = 1500 if self.number == "00" else 2500 if self.deep else 2200
        cells, lines, section = (28, 220, 400) if self.deep else (24, 170, 350)
        found = {
            "words": (self.words, words),
            "code cells": (len(self.code), cells),
            "open lines": (self.open_lines, lines),
            "median lines": (statistics.median(len(c.lines) for c in self.open), 8),
            "lines of a cell": (max(len(c.lines) for c in self.open), 20),
            "minutes": (self.minutes, 60 if self.deep else 45),
        }
        for title, length in self._sections():
            found[f"words in {title!r}"] = (length, section)
        yield from (f"{what}: {n} > {most}" for what, (n, most) in found.items() if n > most)

    def _sections(self):
        sections = [["the opening", 0]]
        for cell in self.cells:
            parts = [cell.source] if cell.code else re.split(r"^(?=## )", cell.source, flags=re.M)
            for part in parts:
                if part.startswith("## "):
                    sections.append([part.splitlines()[0], 0])
                sections[-1][1] += cell.words if cell.code else len(part.split())
        return sections

    def _cells(self):
        for k, cell in enumerate(self.code):
            where, setup = f"cell {cell.number}", k == 0
            drawing = cell.draws and len(cell.lines) > 8
            if cell.half_folded:
                yield f"{where} is folded for some hosts only"
            if (
                setup or cell.guards or (drawing and not self._predicted(cell))
            ) and not cell.folded:
                yield f"{where} is set-up, guard or long drawing code, and not folded"
            if cell.folded and not setup:
                if not (cell.guards or drawing):
                    yield f"{where} is folded, and is neither set-up nor guard nor drawing code"
                if cell.calls & RUNS or cell.defines:
                    yield f"{where} is folded, and runs or defines something"
                needed = {n for c in self.code[k + 1 :] for n in c.loaded} & cell.stored
                if needed:
                    yield f"{where} is folded, and later cells need {sorted(needed)}"
            if cell.hidden != (cell.shows and self._after_predict(cell)):
                yield f"{where}: outputs are hidden after *Predict*, and nowhere else"
            for figure in cell.figures:
                width = int.from_bytes(base64.b64decode("".join(figure))[16:20], "big")
                if width > WIDEST:
                    yield f"{where}: a figure of {width} pixels"

    def _after_predict(self, cell):
        before = [c for c in self.cells[: cell.number] if not c.code]
        return bool(before) and "**Predict.**" in before[-1].source.strip().split("\n\n")[-1]

    def _predicted(self, cell):
        """Whether it is the first cell after a prediction."""
        return self._after_predict(cell) and not self.cells[cell.number - 1].code

    def _order(self):
        head, end = self.cells[0].source, self.cells[-1].source
        if f"**{self.minutes} minutes**" not in head:
            yield f"the opening does not say **{self.minutes} minutes**"
        before = 0
        for cell in self.cells:
            if not cell.code and re.search(r"^> ", cell.source, re.M):
                before += len(cell.source.partition("\n> ")[0].split())
                break
            before += cell.words
        if before > self.words / 3:
            yield f"no answer (a line that begins with >) among the first third: {before} words"
        stops = self.text.count("*A good place to stop.*")
        if not self.deep and not (self.number == "00" or 1 <= stops <= 2):
            yield f"{stops} places to stop; one or two are wanted"
        for mark in ("Exercises", "Deeper", "Next"):
            if self._leads_to(mark) and f"**{mark} →**" not in end:
                yield f"the last cell has no **{mark} →**"
        if self._leads_to("Exercises"):
            here = f"](exercises/{self.path.name})"
            for k in (1, 2, 3):
                if f"[Exercise {k}{here}" not in self.text:
                    yield f"no [Exercise {k}{here} where it can be done"
        for cell in self.cells:
            if "**Predict.**" in "".join(cell.source.strip().split("\n\n")[:-1]):
                yield f"cell {cell.number} goes on after its prediction"
        if "## Questions, on paper" not in self.text or re.search("^## Exercises", self.text, re.M):
            yield "the closing questions are called *Questions, on paper*"

    def _leads_to(self, mark):
        if mark == "Exercises":
            return (NOTEBOOKS / "solutions" / self.path.name).exists()
        if mark == "Deeper":
            return not self.deep and any(NOTEBOOKS.glob(f"{self.number}[a-z]_*.ipynb"))
        return True

    def _links(self):
        for _, target in LINK.findall(self.text):
            if "://" not in target and not (self.path.parent / target.split("#")[0]).exists():
                yield f"a dead link: {target}"
        if "arXiv" in LINK.sub("", self.text):
            yield "an arXiv number that is no link"

    def _lines(self):
        for cell in self.code:
            shown = cell.printed.splitlines() + ([] if cell.folded else cell.lines)
            for line in shown:
                if len(line) > 90:
                    yield f"cell {cell.number}: {len(line)} characters: {line[:40]}…"
            if any(line and not line.strip() for line in cell.printed.splitlines()):
                yield f"cell {cell.number}: a printed row of blanks"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        notebook = Notebook(name)
        print(notebook.measures(), *notebook.faults(), sep="\n    ")
