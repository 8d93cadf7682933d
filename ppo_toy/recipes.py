"""The reference policy, the reward model and the runs of lessons 08 to 11.

Each lesson makes the models anew in seconds, from the same seeds, with the settings that lessons
07 to 09 explain.

    python -m ppo_toy.recipes      trains for three beta and five seeds, two minutes in all, and
                                   writes how far each came to data/rlhf_runs.tsv
"""

import copy
import math

import torch
from torch import Tensor

from ppo_toy import exact
from ppo_toy.data import Pairs, folder, read_corpus, read_preferences
from ppo_toy.gpt import GPTConfig, TinyGPT
from ppo_toy.policies import freeze
from ppo_toy.pretraining import pretrain
from ppo_toy.proximal import Surrogate
from ppo_toy.reviews import LENGTH, PROMPTS, VOCABULARY, WORDS
from ppo_toy.rewards import RewardModel, normalize, tabulated, train_reward_model
from ppo_toy.tables import read_table, table_text, write_text
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
RUNS = "rlhf_runs.tsv"
COLUMNS = ["beta", "seed", "objective", "reward", "kl", "share"]


def reference_policy(seed: int = 0) -> TinyGPT:
    """Returns a small transformer pretrained on the corpus and frozen: pi_ref.

    Args:
        seed: of its initial weights and of the order in which it reads.
    """
    corpus, generator = read_corpus(), torch.Generator().manual_seed(seed)
    model = TinyGPT(CONFIG, generator=generator)
    pretrain(
        model, corpus.prompts, corpus.responses, corpus.mask, generator=generator, **PRETRAINING
    )
    return freeze(model)


def reward_model(reference: TinyGPT, pairs: Pairs, seed: int = 0) -> RewardModel:
    """Returns a reward model learned from the pairs, with mean 0 under the reference, and frozen.

    Args:
        reference: where its weights begin; its mean is taken over responses drawn from there, so
            the exact one is 0 up to a few hundredths.
        pairs: the choices to learn from.
        seed: of the pairs drawn for each update, and of those responses.
    """
    world = ToyReviews()
    model = RewardModel.from_policy(reference, world)
    generator = torch.Generator().manual_seed(seed)
    train_reward_model(pairs, model, generator=generator, **REWARD_TRAINING)
    normalize(model, sample(reference, world, N_NORMALIZING, generator=generator))
    return freeze(model)


def reviews_world(reference: TinyGPT) -> ToyReviews:
    """Returns the reviews with the reward model of all pairs but those held out, as a table."""
    model = reward_model(reference, read_preferences()[:-N_HELD_OUT])
    return tabulated(ToyReviews(reward=model))


def train_policy(reference: TinyGPT, world: ToyReviews, beta: float, seed: int) -> TinyGPT:
    """Returns a copy of the reference, trained with the settings of lesson 09."""
    policy = copy.deepcopy(reference).requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    train(policy, reference, world, beta=beta, generator=generator, **TRAINING)
    return policy


def read_runs() -> Tensor:
    """Returns where the runs that `main` wrote down ended, [15, 6].

    The columns are beta, in reward per nat; the seed; J and R, in reward; KL, in nats; and the
    share, as in `main`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged. Both messages name the file, the line if there is one, and the
            command that makes it again.
    """
    n_rows, command = len(BETAS) * len(SEEDS), "python -m ppo_toy.recipes"
    rows = read_table(folder() / RUNS, COLUMNS, _run, n_rows=n_rows, command=command)
    return torch.tensor(rows, dtype=torch.float64)


def main() -> None:
    """Trains for every beta and seed, and writes the exact J, R and KL of each run.

    `share` is (J - J of the reference) / (J* - J of the reference).
    """
    reference = reference_policy()
    world = reviews_world(reference)
    rows = []
    for beta in BETAS:
        start = exact.evaluate(reference, reference, world, beta).objective
        best = exact.optimum(reference, world, beta).objective
        for seed in SEEDS:
            policy = train_policy(reference, world, beta, seed)
            end = exact.evaluate(policy, reference, world, beta)
            share = (end.objective - start) / (best - start)
            numbers = (end.objective, end.reward, end.kl, share)
            rows.append([beta, seed, *(f"{x:.4f}" for x in numbers)])
            print(*rows[-1], sep="\t")
    write_text(folder() / RUNS, table_text(COLUMNS, rows))


def _run(*fields: str) -> list[float]:
    numbers = [float(field) for field in fields]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{fields} are not all finite numbers")
    return numbers


if __name__ == "__main__":
    main()
