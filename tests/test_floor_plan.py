import ast
from functools import cache
from pathlib import Path

import ppo_toy

PACKAGE = Path(ppo_toy.__file__).parent
FLOORS = [
    {
        "axes",
        "contract",
        "kl",
        "kl_controllers",
        "reviews",
        "tables",
        "data",
        "worlds",
        "enumeration",
        "policies",
        "sampling",
        "gpt",
        "progress",
        "faults",
    },  # fmt: skip
    {
        "trajectories",
        "exact",
        "objectives",
        "advantages",
        "envs",
        "pretraining",
        "rewards",
        "proximal",
    },  # fmt: skip
    {"training", "actor_critic", "plots", "rules", "referee"},
    {"__main__", "benchmarks", "recipes", "in_trl", "classroom", "editions"},
]
# On one floor, these may lean on those; the lists are read in order and hold no circle.
SAME_FLOOR = {
    "kl": {"axes"},
    "kl_controllers": {"axes", "contract"},
    "data": {"reviews", "tables"},
    "worlds": {"contract", "data", "reviews"},
    "enumeration": {"contract"},
    "policies": {"contract", "enumeration"},
    "sampling": {"contract"},
    "exact": {"advantages", "objectives", "trajectories"},
    "rewards": {"trajectories"},
    "proximal": {"advantages", "objectives", "trajectories"},
    "referee": {"rules"},
    "in_trl": {"recipes"},
}
ONLY_THERE = {"gymnasium": {"envs", "benchmarks"}, "matplotlib": {"plots", "__main__"}}


@cache
def modules() -> dict[str, ast.Module]:
    """Each module by its name; a folder of modules stands on one floor and counts as one."""
    trees = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        trees.setdefault(name, ast.Module([], [])).body.extend(tree.body)
    del trees["__init__"]
    return trees


def imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "ppo_toy":
            names |= {f"ppo_toy.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def own_imports(tree: ast.Module) -> set[str]:
    return {name.split(".")[1] for name in imports(tree) if name.startswith("ppo_toy.")}


def test_every_module_has_a_floor_and_a_test_file():
    assert set(modules()) == set.union(*FLOORS)
    tested = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert {name.strip("_") for name in modules()} <= tested


def test_a_module_imports_only_from_floors_below_its_own():
    for floor, names in enumerate(FLOORS):
        below = set.union(set(), *FLOORS[:floor])
        for name in names:
            used = own_imports(modules()[name]) - {name}
            assert used <= below | SAME_FLOOR.get(name, set()), name


def test_training_does_not_know_the_referee_or_the_plots():
    assert not own_imports(modules()["training"]) & {"exact", "plots", "worlds"}


def test_heavy_packages_are_imported_only_where_they_are_used():
    for name, tree in modules().items():
        for package in {module.split(".")[0] for module in imports(tree)} & set(ONLY_THERE):
            assert name in ONLY_THERE[package], f"{name} imports {package}"


def test_the_package_itself_is_a_docstring():
    for path in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert len(tree.body) == 1
        assert ast.get_docstring(tree)


def test_no_module_is_longer_than_250_lines():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path.name
