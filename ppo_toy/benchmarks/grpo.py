"""An iteration of `train` against one of TRL's GRPO, 1.16.0.

    pip install trl==1.16.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0

The same on both sides: sizes and first weights, 64 responses of 12 tokens to prompts of 4, a reward
that is a rule, a frozen reference, four Adam steps on the whole batch, a baseline made of other
responses and no value network.

TRL draws 8 responses to each of 8 prompts, estimates the KL from the tokens drawn, reads the batch
once more before the first update, clips the gradient's norm, and turns tokens into text for the
reward. Ours has the exact KL over the vocabulary, and reads the batch once more after the last
update.

What TRL's own costs are is shown by taking them away one after another: gradient checkpointing,
which is its default and computes every forward pass twice to save memory, and GPT-2's approximate
GELU in eight operations.
"""

import tempfile
from typing import Any

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

PACKAGES = ("trl==1.16.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")
GROUP = 8  # responses to one prompt


def main() -> None:
    """Prints one ratio for each variant."""
    world = new_world()
    for name, activation, options in (
        ("TRL's GRPO as shipped / train", "gelu_new", {}),
        ("TRL's GRPO without checkpointing / train", "gelu_new", {"gradient_checkpointing": False}),
        ("TRL's GRPO without checkpointing, GELU in one / train", "gelu",
            {"gradient_checkpointing": False}),
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder, peers.quiet():
            trainer = _trainer(world, activation, folder, **options)
            pairs = peers.in_turn(trainer, lambda n: iterate(world, n), EPOCHS)
        report(name, pairs)


def _trainer(world: Any, activation: str, folder: str, **options: bool) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    # The trainer reads its reference from the folder that the policy was read from.
    peers.gpt2(new_policy(), activation).save_pretrained(folder)
    settings = GRPOConfig(
        per_device_train_batch_size=BATCH,
        steps_per_generation=1,
        num_iterations=EPOCHS,
        num_generations=GROUP,
        max_completion_length=RESPONSE,
        max_steps=EPOCHS * peers.ITERATIONS,
        beta=SETTINGS["beta"],
        epsilon=SETTINGS["clip"],
        model_init_kwargs={"dtype": "float32"},
        **peers.settings(folder),
        **options,
    )
    texts = [" ".join(map(str, prompt)) for prompt in world.prompts.tolist()]
    return GRPOTrainer(
        model=folder,
        reward_funcs=_zeros_written,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=peers.tokenizer(),
    )


def _zeros_written(completion_ids: list[list[int]], **others: Any) -> list[float]:
    return [float(tokens.count(0)) for tokens in completion_ids]
