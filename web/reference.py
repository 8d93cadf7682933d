"""The package's pages, from the docstrings: one for each module on CONTRIBUTING's floor plan."""

import importlib.util
import re
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = ("trl", "transformers", "accelerate", "datasets", "tokenizers", "stable_baselines3")
UNPACKED = re.compile(r"(?<=[\[ ])\*(?=\w)")  # as in [*rows, V]; no emphasis begins there
SECTION = re.compile(r"(Args|Arguments|Returns|Raises|Yields|Attributes|Examples?|Note):$")


def modules() -> dict[str, str]:
    """Each module of the floor plan, from the ground up, and the line that says what it is."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    plan = text.split("```text\n")[1].split("```")[0]
    return dict(reversed(re.findall(r"^(?:│| ) +(\w+) +(.+)$", plan, re.M)))


def write_pages(app) -> None:
    """Writes a page for each module, and the list of them."""
    folder = Path(app.srcdir) / "package"
    folder.mkdir(exist_ok=True)
    for name in modules():
        (folder / f"{name}.rst").write_text(page(name), encoding="utf-8")
    rows = "\n".join(f"   * - :doc:`{name}`\n     - {what}" for name, what in modules().items())
    entries = "\n".join(f"   {name}" for name in modules())
    text = INDEX.format(rows=rows, entries=entries)
    (folder / "index.rst").write_text(text, encoding="utf-8")


INDEX = dedent("""\
    The package
    ===========

    What the lessons build by hand stands, tested, in ``ppo_toy``. A module imports only from those
    above it in this list. Every public name says shapes, units, errors and its source.

    .. list-table::
       :widths: 22 78
       :class: package

    {rows}

    .. toctree::
       :hidden:

    {entries}
    """)


def page(name: str) -> str:
    """One module; of a folder of modules, each under a heading of its own."""
    title = "python -m ppo_toy" if name == "__main__" else name
    parts = [f"{title}\n{'=' * len(title)}\n", f".. automodule:: ppo_toy.{name}\n"]
    inside = sorted((ROOT / "ppo_toy" / name).glob("*.py"))
    for path in inside:
        if path.stem not in ("__init__", "__main__"):
            parts.append(f"{path.stem}\n{'-' * len(path.stem)}\n")
            parts.append(f".. automodule:: ppo_toy.{name}.{path.stem}\n")
    return "\n".join(parts)


def plain_blocks(app, what, name, obj, options, lines: list[str]) -> None:
    """Makes each indented block of a docstring, an equation or a table in plain text, literal.

    Nothing is literal under one of Google's headings, where indenting is the form.
    """
    out, inside, before = [], False, ""
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            inside = bool(SECTION.match(line))
        if indented and not inside and not before:
            started = next((old for old in reversed(out) if old), "")
            if not started.startswith("    "):
                out += [".. code-block:: text", ""]
        out.append(UNPACKED.sub(r"\\*", line))
        before = line
    lines[:] = out


def skip_bare_fields(app, what, name, obj, skip, options) -> bool | None:
    """Leaves out a tuple's fields without words of their own: the class has said what they are."""
    return True if (getattr(obj, "__doc__", "") or "").startswith("Alias for field") else None


def setup(app) -> dict:
    """Connects all to Sphinx; the pages are written before any is read."""
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    app.connect("config-inited", lambda app, config: config.autodoc_mock_imports.extend(missing))
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", plain_blocks, priority=100)
    app.connect("autodoc-skip-member", skip_bare_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
