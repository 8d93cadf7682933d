import re
from pathlib import Path

from test_floor_plan import FLOORS, modules, own_imports

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DRAWING = PAGE.split("```text\n")[1].split("```")[0]
STOREYS = [re.findall(r"^[│ ]  (\w+) +\S", part, re.M) for part in re.split("[├└]─", DRAWING)[1:]]


def test_the_drawing_has_the_floors_of_the_package_the_roof_first():
    assert [set(names) for names in STOREYS] == FLOORS[::-1]


def test_in_the_drawing_a_module_imports_only_from_the_lines_below_it():
    order = [name for names in STOREYS for name in names]
    assert len(order) == len(set(order))
    for k, name in enumerate(order):
        used = own_imports(modules()[name]) - {name}
        assert used <= set(order[k + 1 :]), f"{name} uses {used - set(order[k + 1 :])}"


def test_every_file_that_it_names_is_there():
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.S)
    named = re.findall(r"`((?:ppo_toy|tests|notebooks|\.ci)/[\w/.]+)`", prose)
    assert len(named) >= 12
    for name in named:
        assert "NN" in name or "zh" in name or (ROOT / name).exists(), name
    for name in re.findall(r"\b((?:tests|notebooks)/[\w/]+\.\w+)", " ".join(PAGE.split("```"))):
        assert "NN" in name or "/work/" in name or (ROOT / name).exists(), name


def test_the_names_in_code_that_it_mentions_are_there():
    named = {
        "ppo_toy/in_trl/__main__.py": "WORLDS",
        "tests/test_classroom_checks.py": "AXES",
        "ppo_toy/worlds.py": "brackets",
    }
    for file, name in named.items():
        assert f"`{name}`" in PAGE
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), name
