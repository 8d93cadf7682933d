"""The reference policy, the reward model and the runs of lessons 08 to 11.

Both models lie in `data/`, so that they are the same numbers on every machine, and

    python -m ppo_toy.recipes                  makes both and the table of runs again
    python -m ppo_toy.recipes reference.npz    makes this one again

Lessons 07 to 09 explain the settings. What is made here is made in double precision: in single
precision another instruction set or number of threads rounds otherwise, and 600 updates later the
model is another one.
"""

import copy
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from ppo_toy import exact
from ppo_toy.data import Pairs, asked_for, folder, read_corpus, read_preferences
from ppo_toy.gpt import GPTConfig, TinyGPT
from ppo_toy.policies import freeze
from ppo_toy.pretraining import pretrain
from ppo_toy.proximal import Surrogate
from ppo_toy.reviews import LENGTH, PROMPTS, VOCABULARY, WORDS
from ppo_toy.rewards import RewardModel, normalize, tabulated, train_reward_model
from ppo_toy.tables import read_table, table_text, write_whole
from ppo_toy.training import Schedule, train
from ppo_toy.trajectories import sample
from ppo_toy.worlds import ToyReviews

CONFIG = GPTConfig(len(WORDS), len(VOCABULARY), context=PROMPTS.shape[1] + LENGTH)
PRETRAINING = {"steps": 600, "batch_size": 128, "learning_rate": 5e-3}
REWARD_TRAINING = {"steps": 600, "batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.6}
N_HELD_OUT = 500  # the last pairs of the file, never learned from
N_NORMALIZING = 8192
BETAS, SEEDS = (0.5, 1.0, 2.0), range(5)
TRAINING = {
    "steps": 180,
    "batch_size": 512,
    "learning_rate": 5e-3,
    "epochs": 3,
    "surrogate": Surrogate(penalty="sampled", clip=0.2),
    "schedule": Schedule(anneal=True),
}
REFERENCE, REWARD_MODEL, RUNS = "reference.npz", "reward_model.npz", "rlhf_runs.tsv"
COMMAND = "python -m ppo_toy.recipes"
COLUMNS = ["beta", "seed", "objective", "reward", "kl", "share"]
DOUBLE = torch.float64


def reference_policy(seed: int = 0, *, dtype: torch.dtype | None = None) -> TinyGPT:
    """Returns a small transformer pretrained on the corpus and frozen: pi_ref.

    Args:
        seed: of its initial weights and of the order in which it reads. That of seed 0 is read
            from `data/`; another is trained.
        dtype: of its weights; torch's default if None.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged. Both messages name the file and the command that makes it again.
    """
    if seed:
        return freeze(_pretrained(seed).to(dtype or torch.get_default_dtype()))
    return _read(REFERENCE, TinyGPT(CONFIG, generator=torch.Generator(), dtype=dtype))


def reward_model(
    reference: TinyGPT | None = None,
    pairs: Pairs | None = None,
    seed: int = 0,
    *,
    dtype: torch.dtype | None = None,
) -> RewardModel:
    """Returns a reward model learned from the pairs, with mean 0 under the reference, and frozen.

    Without reference, pairs and seed it is read from `data/`; with any, it is trained.

    Args:
        reference: where its weights begin; its mean is taken over responses drawn from there, so
            the exact one is 0 up to a few hundredths. That of `reference_policy` if None.
        pairs: the choices to learn from; all of `data/` but those held out if None.
        seed: of the pairs drawn for each update, and of those responses.
        dtype: of its weights; that of the reference if None.

    Errors are those of `reference_policy`.
    """
    given = reference is not None or pairs is not None or seed
    reference = reference or reference_policy(dtype=dtype)
    if not given:
        return _read(REWARD_MODEL, RewardModel.from_policy(reference, ToyReviews()))
    model = _learned(reference, pairs or training_pairs(), seed)
    return freeze(model.to(dtype or reference.head.weight.dtype))


def training_pairs() -> Pairs:
    """Returns the pairs that the reward model learns from: all but those held out."""
    return read_preferences()[:-N_HELD_OUT]


def reviews_world() -> ToyReviews:
    """Returns the reviews with the reward model of `data/`, as a table."""
    return tabulated(ToyReviews(reward=reward_model()))


def train_policy(reference: TinyGPT, world: ToyReviews, beta: float, seed: int) -> TinyGPT:
    """Returns a copy of the reference, trained with `TRAINING`, which lesson 09 explains."""
    policy = copy.deepcopy(reference).requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    train(policy, reference, world, beta=beta, generator=generator, **TRAINING)
    return policy


def read_runs() -> Tensor:
    """Returns where the runs that are written down ended, [15, 6].

    The columns are beta, in reward per nat; the seed; J and R, in reward; KL, in nats; and the
    share, (J - J of the reference) / (J* - J of the reference). Errors are those of
    `tables.read_table`.
    """
    n_rows = len(BETAS) * len(SEEDS)
    command = f"{COMMAND} {RUNS}"
    rows = read_table(folder() / RUNS, COLUMNS, numbers, n_rows=n_rows, command=command)
    return torch.tensor(rows, dtype=DOUBLE)


def ends(
    policies: Iterable[Any], reference: TinyGPT, world: ToyReviews, beta: float
) -> Iterator[list[str]]:
    """Yields where each policy ended, to four decimals: J, R, KL and share, as in `read_runs`."""
    start = exact.evaluate(reference, reference, world, beta).objective
    best = exact.optimum(reference, world, beta).objective
    for policy in policies:
        end = exact.evaluate(policy, reference, world, beta)
        share = (end.objective - start) / (best - start)
        yield [f"{x:.4f}" for x in (*end, share)]


def numbers(*fields: str) -> list[float]:
    """Returns the fields of a row as numbers; a ValueError if one is not finite."""
    found = [float(field) for field in fields]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{fields} are not all finite numbers")
    return found


def main(names: list[str]) -> None:
    """Makes the files of these names again; see `data.asked_for`."""
    for name in asked_for(names, MAKERS):
        MAKERS[name]()
        print(f"{folder() / name} is made")


def _make_runs() -> None:
    reference = reference_policy(dtype=DOUBLE)
    world = tabulated(ToyReviews(reward=reward_model(dtype=DOUBLE)))
    rows = []
    for beta in BETAS:
        policies = (train_policy(reference, world, beta, seed) for seed in SEEDS)
        for seed, end in zip(SEEDS, ends(policies, reference, world, beta), strict=True):
            rows.append([beta, seed, *end])
            print(*rows[-1], sep="\t")
    write_whole(folder() / RUNS, table_text(COLUMNS, rows))


MAKERS = {
    REFERENCE: lambda: _write(REFERENCE, _pretrained(seed=0)),
    REWARD_MODEL: lambda: _write(
        REWARD_MODEL, _learned(reference_policy(dtype=DOUBLE), training_pairs(), seed=0)
    ),
    RUNS: _make_runs,
}


def _pretrained(seed: int) -> TinyGPT:
    corpus, generator = read_corpus(), torch.Generator().manual_seed(seed)
    model = TinyGPT(CONFIG, generator=generator, dtype=DOUBLE)
    examples = (corpus.prompts, corpus.responses, corpus.mask)
    pretrain(model, *examples, generator=generator, **PRETRAINING)
    return model


def _learned(reference: TinyGPT, pairs: Pairs, seed: int) -> RewardModel:
    world, generator = ToyReviews(), torch.Generator().manual_seed(seed)
    reference = copy.deepcopy(reference).to(DOUBLE)
    model = RewardModel.from_policy(reference, world)
    train_reward_model(pairs, model, generator=generator, **REWARD_TRAINING)
    normalize(model, sample(reference, world, N_NORMALIZING, generator=generator))
    return model


def _write(name: str, model: nn.Module) -> None:
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    np.savez(folder() / name, **weights)


def _read(name: str, model: nn.Module) -> Any:
    """Returns the model with the weights of the file, frozen."""
    file = folder() / name
    hint = f"; to make it again: {COMMAND} {name}"
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            weights = {key: torch.from_numpy(stored[key]) for key in stored.files}
        for key, ours in model.state_dict().items():
            found = weights.get(key)
            if found is None or found.shape != ours.shape or not found.isfinite().all():
                raise ValueError(f"{key} is not {list(ours.shape)} of finite numbers")
        model.load_state_dict(weights)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing{hint}") from None
    except (ValueError, RuntimeError, TypeError, EOFError, OSError, BadZipFile) as error:
        raise ValueError(f"{file} is damaged: {error}{hint}") from None
    return freeze(model)


if __name__ == "__main__":
    main(sys.argv[1:])
