"""An iteration of `train` against one of TRL's PPO, 1.12.0, the last release that has it.

    pip install trl==1.12.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0

The same on both sides: sizes and first weights, 64 prompts of 4 tokens and 12 new ones, a reward
model of the policy's size, a frozen reference, four Adam steps on the whole batch. (With
`num_mini_batches=4` and `gradient_accumulation_steps=4` TRL would take about 5 steps, and not 16.)

TRL does more: it trains a value network beside the policy, estimates and whitens advantages with
it, and computes statistics for a log. We do more in the KL, which is exact, over the vocabulary,
and read the batch once more after the last update for the KL to the old policy.

What TRL's own costs are is shown by taking them away one after another: its two calls of
`gc.collect` in each iteration, and GPT-2's approximate GELU in eight operations.
"""

import contextlib
import gc
import tempfile
from typing import Any
from unittest import mock

from ppo_toy.benchmarks import peers
from ppo_toy.benchmarks.timing import report
from ppo_toy.benchmarks.work import (
    BATCH,
    EPOCHS,
    RESPONSE,
    SETTINGS,
    iterate,
    new_policy,
    new_world,
)

PACKAGES = ("trl==1.12.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")


def main() -> None:
    """Prints one ratio for each variant."""
    world = new_world(learned=True)
    for name, activation, collects in (
        ("TRL's PPO as shipped / train", "gelu_new", True),
        ("TRL's PPO without gc.collect / train", "gelu_new", False),
        ("TRL's PPO without gc.collect, GELU in one / train", "gelu", False),
    ):
        collector = contextlib.nullcontext() if collects else mock.patch.object(gc, "collect")
        with tempfile.TemporaryDirectory() as folder, peers.quiet(), collector:
            pairs = peers.in_turn(_trainer(world, activation, folder), lambda n: iterate(world, n))
        report(name, pairs)


def _trainer(world: Any, activation: str, folder: str) -> Any:
    from datasets import Dataset
    from transformers import GPT2ForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    reward, value = (
        GPT2ForSequenceClassification(peers.gpt2_config(activation, num_labels=1)) for _ in range(2)
    )
    settings = PPOConfig(
        per_device_train_batch_size=BATCH,
        num_mini_batches=1,
        num_ppo_epochs=EPOCHS,
        response_length=RESPONSE,
        total_episodes=BATCH * peers.ITERATIONS,
        num_sample_generations=0,
        kl_coef=SETTINGS["beta"],
        cliprange=SETTINGS["clip"],
        **peers.settings(folder),
    )
    return PPOTrainer(
        args=settings,
        processing_class=peers.tokenizer(),
        model=peers.gpt2(new_policy(), activation),
        ref_model=peers.gpt2(new_policy(), activation),
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": world.prompts.tolist()}),
    )
