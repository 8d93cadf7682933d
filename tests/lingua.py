"""A made-up edition of two pages: a language is a folder and a table."""

import re

from ppo_toy.editions.__main__ import main
from ppo_toy.editions.edition import Edition
from ppo_toy.editions.pages import read, texts, write
from ppo_toy.editions.sheets import export, take

TABLE = """
name = "Lingua"
glossary = "Glossaire"
pages = ["0*.ipynb", "exercises/*.ipynb"]
script = '[À-ÿ]'
[[code]]
to = "import check"
adds = "\\nspeak()"
[[style]]
not = ' !'
why = "a blank"
[phrases]
"**Next →**" = "**Apr\u00e8s →**"
"""
GLOSSARY = """
| English | xx | not | remark |
|---|---|---|---|
| reward | récompense / prix | gain | |
| reward model | modèle | | |
"""
OPENING = "# One\n\nA reward of 3 is $R$; see [two](exercises/02.ipynb), [why](why.md) and `run`."
RENDERED = OPENING.replace("A reward of 3 is", "La récompense est 3,").replace("and", "et")


def markdown(name, source):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def coded(name, source):
    return {
        "cell_type": "code", "id": name, "metadata": {}, "execution_count": 1, "source": source,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": ["3\n"]}],
    }  # fmt: skip


def drawn(name, alt):
    return {**coded(name, "draw()"), "metadata": {"alt": alt}}


def save(cells, path):
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    write(notebook, path)


def make(folder):
    """An edition of two pages: one is translated, the other is not there."""
    cells = [markdown("a", OPENING), coded("b", "import check"), markdown("c", "Twice 2 is 4.")]
    cells.append(drawn("f", "A line from 1 to 2."))
    save(cells, folder / "01.ipynb")
    for name in ("exercises", "solutions"):
        save([markdown("d", "# Two")], folder / name / "02.ipynb")
    (folder / "xx").mkdir()
    (folder / "xx" / "edition.toml").write_text(TABLE, encoding="utf-8")
    (folder / "xx" / "glossary.md").write_text(GLOSSARY, encoding="utf-8")
    made = Edition(folder, "xx")
    fill(made, a=RENDERED, c="Deux fois 2 égale 4.", f="Une ligne tirée de 1 à 2.")
    assert main(["xx", "--notebooks", str(folder)]) == 0
    return made


def fill(edition, **translations):
    """As a translator would: below the line of the language, and nowhere else."""
    path = export(edition, "01.ipynb")
    text = path.read_text(encoding="utf-8")
    for name, translation in translations.items():
        pattern = re.compile(rf"(^%%% {name} .*?^%%% xx\n).*?(?=^%%% |\Z)", re.M | re.S)
        text = pattern.sub(lambda m, new=translation: f"{m[1]}{new}\n\n", text)
    path.write_text(text, encoding="utf-8")
    return take(edition, path)


def change(path, name, **new):
    notebook = read(path)
    next(cell for cell in notebook["cells"] if cell["id"] == name).update(new)
    write(notebook, path)


def state(edition, name):
    return next(x.state for x in texts(edition, "01.ipynb") if x.cell == name)
