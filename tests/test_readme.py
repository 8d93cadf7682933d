import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", range(2))
def test_the_examples_print_what_their_comments_say(number):
    code = re.findall(r"```python\n(.*?)```", README, re.S)[number]
    promised = re.findall(r"^# (.+)$", code, re.M)
    assert promised
    printed = io.StringIO()
    torch.set_default_dtype(torch.float32)  # as a reader has it
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().splitlines() == promised


def test_the_test_of_ones_own_loss_passes_and_fails_as_it_says():
    after = README.split("## Your own loss before the referee")[1]
    code = re.search(r"```python\n(.*?)```", after, re.S).group(1)
    test = code[code.index("from ppo_toy.referee") :]
    assert len(test.strip().splitlines()) == 5
    names, without_flips = {}, {}
    exec(code, names)
    names["test_my_loss_has_the_gradient_of_the_objective"]()
    exec(code.replace(".flip(1)", ""), without_flips)
    with pytest.raises(AssertionError):
        without_flips["test_my_loss_has_the_gradient_of_the_objective"]()
    found = names["verdict"](without_flips["my_loss"], loss=True)
    assert f"the test fails: `{' + '.join(found.faults)}`" in README


def test_the_test_command_stands_where_ci_looks_for_it():
    after = README.split("<!-- the test command -->\n```bash\n")
    assert len(after) == 2
    command = after[1].splitlines()[0]
    assert command.startswith("python3 -m venv .venv && ")
    assert command.endswith("python -m pytest")


def test_the_tree_names_every_module():
    package = Path(__file__).parents[1] / "ppo_toy"
    tree = README.split("```text\n")[1].split("```")[0]
    named = set(re.findall(r"^    (\w+) ", tree, re.M))
    paths = [path.relative_to(package) for path in package.rglob("*.py")]
    assert named == {path.parts[0].removesuffix(".py") for path in paths} - {"__init__"}


def test_in_the_tree_a_module_imports_only_from_the_lines_above_it():
    tree = README.split("```text\n")[1].split("```")[0]
    order = re.findall(r"^    (\w+) ", tree, re.M)
    for k, name in enumerate(order):
        package, used = Path(__file__).parents[1] / "ppo_toy", set()
        for path in [package / f"{name}.py", *(package / name).glob("*.py")]:
            source = path.read_text(encoding="utf-8") if path.exists() else ""
            used |= set(re.findall(r"from ppo_toy\.(\w+)[\w.]* import", source)) - {name}
            for names in re.findall(r"from ppo_toy import ([\w, ]+)", source):
                used |= set(names.split(", ")) - {name}
        assert used <= set(order[:k]), f"{name} uses {used - set(order[:k])}"
