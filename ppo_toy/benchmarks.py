"""Measures speed as ratios within one run.

    python -m ppo_toy.benchmarks             one batch against Python loops
    python -m ppo_toy.benchmarks cartpole    our PPO against stable-baselines3's on CartPole-v1;
                                             needs `pip install stable-baselines3==2.9.2`

Each pair is timed in turn (A B A B ...) on one thread, and the median ratio of the pairs is
printed; absolute times, which differ from machine to machine, stand beside it.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch

from ppo_toy import exact
from ppo_toy.actor_critic import ActorCritic, train_on
from ppo_toy.advantages import gae
from ppo_toy.envs import make_vector
from ppo_toy.objectives import penalized_objective
from ppo_toy.policies import TabularPolicy
from ppo_toy.training import train
from ppo_toy.trajectories import Trajectories, enumerate_all, per_step_kl, score
from ppo_toy.worlds import TokenBandit, TokenSequence

RUNS = 64
PAIRS = 5


# The settings that rl-baselines3-zoo publishes for PPO on CartPole-v1.
CARTPOLE = {"gamma": 0.98, "learning_rate": 1e-3, "clip": 0.2, "lam": 0.8, "epochs": 20}
N_ENVS, LENGTH, STEPS, SEEDS = 8, 32, 100_000, 5


def main() -> None:
    """Prints one of the two tables."""
    parser = argparse.ArgumentParser(prog="python -m ppo_toy.benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("which", nargs="?", choices=["batching", "cartpole"], default="batching")
    torch.set_num_threads(1)
    if parser.parse_args().which == "cartpole":
        cartpole()
    else:
        batching()


def batching() -> None:
    """Prints what one batch saves over Python loops."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, *[4] * 6, generator=generator, dtype=torch.float64)
    world = TokenSequence.from_table(table)
    reference = TabularPolicy.random(world, generator=generator)
    _train(reference.repeat(2), reference, world)  # the first Adam of a process loads modules
    _report(
        "exact J, R, KL of 4,096 responses: one at a time / as one batch",
        lambda: _evaluate_singly(reference, world),
        lambda: exact.evaluate(reference, reference, world, 0.5),
    )
    bandit = TokenBandit(torch.randn(1, 8, generator=generator, dtype=torch.float64))
    short = TokenSequence.from_table(table[0, 0, 0].unsqueeze(0))
    for name, world in (("bandit, 8 tokens", bandit), ("sequences, 4 tokens x 4", short)):
        reference = TabularPolicy.random(world, generator=generator)
        _report(
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


def cartpole() -> None:
    """Prints speed and steps to a mean return of 475: seed by seed in turn, then as one batch."""
    print(f"largest difference of the two GAEs on random episodes: {_gae_difference():.0e}")
    rows = []
    for seed in range(SEEDS):
        for name, run in (("stable-baselines3", _peer), ("ppo_toy", _ours)):
            (solved,), wall, cpu = _timed(run, seed)
            rows.append((solved, wall, cpu))
            print(f"seed {seed}  {name:18}{STEPS / wall:7.0f} steps/s, {STEPS / cpu:7.0f} by CPU "
                f"time   475 reached after {solved} steps")  # fmt: skip
    solved, wall, cpu = _timed(_ours, 0, SEEDS)
    print(f"{SEEDS} seeds as one batch: {SEEDS * STEPS / wall:.0f} steps/s, "
        f"{SEEDS * STEPS / cpu:.0f} by CPU time   475 reached after {solved} steps")  # fmt: skip
    peer, ours = rows[::2], rows[1::2]
    for k, kind in ((1, "wall"), (2, "CPU")):
        alone = statistics.median(a[k] / b[k] for a, b in zip(peer, ours, strict=True))
        together = sum(row[k] for row in peer) / (wall, cpu)[k - 1]
        print(f"{kind} time: {alone:.2f} x as fast seed by seed, {together:.2f} x as one batch")
    medians = [statistics.median(row[0] for row in rows) for rows in (ours, peer)]
    print(f"median steps to 475: {medians[0] / medians[1]:.2f} x; as one batch "
        f"{statistics.median(solved) / medians[1]:.2f} x")  # fmt: skip


def _timed(run: Callable[..., list[float]], *arguments: int) -> tuple[list[float], float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    solved = run(*arguments)
    return solved, time.perf_counter() - wall, time.process_time() - cpu


def _gae_difference(n: int = 64, length: int = 32) -> float:
    """Our GAE against the peer's on random rows, most of which end somewhere."""
    from gymnasium import spaces
    from stable_baselines3.common.buffers import RolloutBuffer

    numbers = np.random.default_rng(0)
    rewards, values = numbers.normal(size=(2, n, length)).astype(np.float32)
    after = numbers.normal(size=n).astype(np.float32)
    done = numbers.integers(0, 2 * length, n)[:, None] == np.arange(length)
    pair = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
    peer = RolloutBuffer(length, *pair, device="cpu", gae_lambda=0.8, gamma=0.98, n_envs=n)
    peer.rewards, peer.values = rewards.T.copy(), values.T.copy()
    peer.episode_starts[1:] = done.T[:-1]
    peer.compute_returns_and_advantage(torch.from_numpy(after), done[:, -1])
    next_values = np.concatenate([values[:, 1:], after[:, None]], axis=1) * ~done
    mask = torch.from_numpy(np.cumsum(done, axis=1) - done == 0)
    ours = gae(*map(torch.from_numpy, (rewards, values)), mask, gamma=0.98, lam=0.8,
        next_values=torch.from_numpy(next_values))  # fmt: skip
    return (ours - torch.from_numpy(peer.advantages.T))[mask].abs().max().item()


def _ours(seed: int, runs: int = 1) -> list[float]:
    """Steps after which each run reached 475; inf where it did not."""
    env = make_vector("CartPole-v1", runs * N_ENVS)
    generator = torch.Generator().manual_seed(seed)
    model = ActorCritic(4, 2, runs=runs, generator=generator)
    curve = train_on(env, model, steps=STEPS, length=LENGTH, generator=generator, seed=seed,
        **CARTPOLE)  # fmt: skip
    return [_first(curve.steps, returns) for returns in curve.mean_return.T]


def _first(steps: Iterable[int], returns: Iterable[float]) -> float:
    return next((float(s) for s, r in zip(steps, returns, strict=True) if r >= 475), math.inf)


def _peer(seed: int) -> list[float]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Record(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.ep_info_buffer
            self.steps.append(self.num_timesteps)
            self.returns.append(sum(e["r"] for e in buffer) / max(len(buffer), 1))

    record = Record()
    record.steps, record.returns = [], []
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=N_ENVS, seed=seed), n_steps=LENGTH,
        batch_size=N_ENVS * LENGTH, gamma=CARTPOLE["gamma"], gae_lambda=CARTPOLE["lam"],
        n_epochs=CARTPOLE["epochs"], ent_coef=0.0, device="cpu", seed=seed,
        learning_rate=lambda left: left * CARTPOLE["learning_rate"],
        clip_range=lambda left: left * CARTPOLE["clip"])  # fmt: skip
    model.learn(STEPS, callback=record)
    return [_first(record.steps, record.returns)]


def _report(name: str, slow: Callable[[], object], fast: Callable[[], object]) -> None:
    pairs = [(_seconds(slow), _seconds(fast)) for _ in range(PAIRS)]
    ratio = statistics.median(a / b for a, b in pairs)
    slow_ms, fast_ms = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{ratio:6.1f} x   {name}   ({slow_ms:.0f} ms / {fast_ms:.1f} ms)")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
