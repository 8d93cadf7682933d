"""Our PPO against stable-baselines3's on CartPole-v1, seed by seed in turn.

Needs `pip install stable-baselines3==2.9.2`.
"""

import math
import statistics
from collections.abc import Iterable

import numpy as np
import torch

from ppo_toy.actor_critic import ActorCritic, train_on
from ppo_toy.advantages import gae
from ppo_toy.benchmarks.timing import timed
from ppo_toy.envs import make_vector

PACKAGES = ("stable-baselines3==2.9.2",)

# The settings that rl-baselines3-zoo publishes for PPO on CartPole-v1.
CARTPOLE = {"gamma": 0.98, "learning_rate": 1e-3, "clip": 0.2, "lam": 0.8, "epochs": 20}
N_ENVS, LENGTH, STEPS, SEEDS = 8, 32, 100_000, 5


def main() -> None:
    """Prints speed and steps to a mean return of 475: seed by seed in turn, then as one batch."""
    print(f"largest difference of the two GAEs on random episodes: {_gae_difference():.0e}")
    rows = []
    for seed in range(SEEDS):
        for name, run in (("stable-baselines3", _peer), ("ppo_toy", _ours)):
            (solved,), wall, cpu = timed(run, seed)
            rows.append((solved, wall, cpu))
            print(f"seed {seed}  {name:18}{STEPS / wall:7.0f} steps/s, {STEPS / cpu:7.0f} by CPU "
                f"time   475 reached after {solved} steps")  # fmt: skip
    solved, wall, cpu = timed(_ours, 0, SEEDS)
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
