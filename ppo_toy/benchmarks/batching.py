"""What one batch saves over Python loops: over responses, and over runs."""

import torch

from ppo_toy import exact
from ppo_toy.benchmarks.timing import compare
from ppo_toy.objectives import penalized_objective
from ppo_toy.policies import TabularPolicy
from ppo_toy.training import train
from ppo_toy.trajectories import Trajectories, enumerate_all, per_step_kl, score
from ppo_toy.worlds import TokenBandit, TokenSequence

PACKAGES = ()
RUNS = 64


def main() -> None:
    """Prints what one batch saves over Python loops."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, *[4] * 6, generator=generator, dtype=torch.float64)
    world = TokenSequence.from_table(table)
    reference = TabularPolicy.random(world, generator=generator)
    _train(reference.repeat(2), reference, world)  # the first Adam of a process loads modules
    compare(
        "exact J, R, KL of 4,096 responses: one at a time / as one batch",
        lambda: _evaluate_singly(reference, world),
        lambda: exact.evaluate(reference, reference, world, 0.5),
    )
    bandit = TokenBandit(torch.randn(1, 8, generator=generator, dtype=torch.float64))
    short = TokenSequence.from_table(table[0, 0, 0].unsqueeze(0))
    for name, world in (("bandit, 8 tokens", bandit), ("sequences, 4 tokens x 4", short)):
        reference = TabularPolicy.random(world, generator=generator)
        compare(
            f"{RUNS} runs of 20 steps, {name}: a loop over runs / as one batch",
            lambda reference=reference, world=world: _train_singly(reference, world),
            lambda reference=reference, world=world: _train(
                reference.repeat(RUNS), reference, world
            ),
        )


def _train(policy: TabularPolicy, reference: TabularPolicy, world: TokenBandit) -> None:
    generator = torch.Generator().manual_seed(0)
    train(policy, reference, world, beta=0.5, steps=20, batch_size=32, learning_rate=0.05,
          generator=generator)  # fmt: skip


def _train_singly(reference: TabularPolicy, world: TokenBandit) -> None:
    for _ in range(RUNS):
        _train(TabularPolicy(world, reference.logits), reference, world)


def _evaluate_singly(reference: TabularPolicy, world: TokenSequence) -> float:
    """J by one call for each response, which is what listing without a batch comes to."""
    batch = enumerate_all(reference, world)
    total = 0.0
    for i in range(len(batch.weights)):
        one = Trajectories(*(x[i : i + 1] for x in vars(batch).values()))
        kl = per_step_kl(reference, reference, one)
        total += penalized_objective(score(world, one), kl, 0.5, one.weights).item()
    return total
