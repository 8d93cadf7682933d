"""Our loop and TRL's at the settings of lesson 11b, and where five seeds of each ended.

    python -m ppo_toy.in_trl.loops    makes data/trl_runs.tsv again, in a minute or two

Both train in single precision, as the lesson does. A machine that rounds otherwise acts like
another seed.
"""

import copy

import torch
from torch import Tensor

from ppo_toy import recipes
from ppo_toy.data import folder
from ppo_toy.gpt import TinyGPT
from ppo_toy.in_trl import libraries, trainer
from ppo_toy.proximal import Surrogate
from ppo_toy.rewards import tabulated
from ppo_toy.tables import read_table, table_text, write_whole
from ppo_toy.training import Schedule, train
from ppo_toy.worlds import ToyReviews

SETTINGS = {"beta": 1.0, "steps": 30, "batch_size": 256, "learning_rate": 3e-3}
SEEDS = range(5)
FILE, COMMAND = "trl_runs.tsv", "python -m ppo_toy.in_trl.loops"
COLUMNS = ["loop", *recipes.COLUMNS[1:]]


def by_hand(reference: TinyGPT, world: ToyReviews, seed: int) -> TinyGPT:
    """Returns a copy of the reference, trained by `train`, with what TRL does where both can."""
    policy = copy.deepcopy(reference).requires_grad_(True)
    train(policy, reference, world, generator=torch.Generator().manual_seed(seed),
        surrogate=Surrogate("sampled"), schedule=Schedule(anneal=True), **SETTINGS)  # fmt: skip
    return policy


def by_trl(reference: TinyGPT, world: ToyReviews, seed: int) -> TinyGPT:
    """Returns a copy of the reference, trained by TRL's RLOO trainer on the CPU."""
    with libraries.quiet():
        return trainer.train_in_trl(reference, world, seed=seed, **SETTINGS)


LOOPS = {"ppo_toy": by_hand, "TRL": by_trl}


def made(loop: str, seeds: range = SEEDS) -> list[list]:
    """Trains one of `LOOPS` once for each seed and returns the rows that it has in the file."""
    reference = recipes.reference_policy(dtype=torch.float32)
    world = tabulated(ToyReviews(reward=recipes.reward_model(dtype=torch.float32)))
    policies = (LOOPS[loop](reference, world, seed) for seed in seeds)
    ends = recipes.ends(policies, reference, world, SETTINGS["beta"])
    return [[loop, seed, *end] for seed, end in zip(seeds, ends, strict=True)]


def read_runs() -> dict[str, Tensor]:
    """Returns where the runs that are written down ended, five of each loop: [5, 5] by its name.

    The columns are the seed; J and R, in reward; KL, in nats; and the share of the way from the
    reference to J*. Errors are those of `tables.read_table`.
    """
    n_rows = len(LOOPS) * len(SEEDS)
    rows = read_table(folder() / FILE, COLUMNS, _run, n_rows=n_rows, command=COMMAND)
    of_loop = {name: [numbers for loop, numbers in rows if loop == name] for name in LOOPS}
    return {name: torch.tensor(of, dtype=torch.float64) for name, of in of_loop.items()}


def _run(loop: str, *fields: str) -> tuple[str, list[float]]:
    if loop not in LOOPS:
        raise ValueError(f"{loop!r} is not one of the loops: {', '.join(LOOPS)}")
    return loop, recipes.numbers(*fields)


def main() -> None:
    """Makes the file again."""
    if missing := libraries.missing():
        raise SystemExit(f'not installed: {" ".join(missing)}; pip install -e ".[scale]"')
    libraries.refuse_other_versions()
    rows = [row for loop in LOOPS for row in made(loop)]
    write_whole(folder() / FILE, table_text(COLUMNS, rows))
    print(f"{folder() / FILE} is made")


if __name__ == "__main__":
    main()
