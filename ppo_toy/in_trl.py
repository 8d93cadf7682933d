"""The same run in TRL, for those who outgrow one machine: our policy and world, its loop.

    pip install -e ".[scale]"
    python -m ppo_toy.in_trl                                    one process
    torchrun --nproc-per-node 2 -m ppo_toy.in_trl               two, which share every batch

The tiny GPT becomes a GPT-2 of transformers with the same weights, TRL's RLOO trainer trains it
with our world as the reward, and what comes out becomes a tiny GPT again, which `exact` judges.
Nothing is downloaded.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from ppo_toy import exact, recipes, reviews
from ppo_toy.gpt import TinyGPT
from ppo_toy.rewards import tabulated
from ppo_toy.worlds import ToyReviews

PACKAGES = ("trl", "transformers", "accelerate", "datasets")
MODEL_TYPE = "ppo_toy_tiny_gpt"
NEVER = -1e4  # the logit of a prompt token as a response token: its probability is exactly 0


def missing() -> list[str]:
    """Returns which of the packages that this module needs are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def _classes() -> tuple[type, type]:
    """GPT-2 with a bias in its head, which ours has, and its config; known to transformers."""
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    class TinyGPTConfig(GPT2Config):
        model_type = MODEL_TYPE
        # TRL asks for it where the model is not one of transformers' own.
        auto_map: ClassVar[dict] = {}

    class TinyGPTForCausalLM(GPT2LMHeadModel):
        config_class = TinyGPTConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
            self.post_init()

    AutoConfig.register(MODEL_TYPE, TinyGPTConfig, exist_ok=True)
    AutoModelForCausalLM.register(TinyGPTConfig, TinyGPTForCausalLM, exist_ok=True)
    return TinyGPTConfig, TinyGPTForCausalLM


def _pairs(policy: TinyGPT, model: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each of our parameters with the part of GPT-2's that it becomes, laid out alike."""
    for ours, (name, theirs) in zip(policy.parameters(), model.named_parameters(), strict=True):
        # Both list their parameters in the same order; GPT-2 keeps matrices in a block transposed,
        # and its head has a row for the prompt tokens too.
        yield ours, theirs.t() if ".c_" in name and theirs.dim() == 2 else theirs[: len(ours)]


@torch.no_grad()
def to_transformers(policy: TinyGPT) -> Any:
    """Returns a transformers model that gives every response the probability that the policy does.

    Args:
        policy: without a value head; its response tokens come first in its vocabulary.

    Raises:
        ValueError: the policy has a value head, for which GPT-2 has no place.
    """
    sizes = policy.config
    if sizes.value_head:
        raise ValueError("value_head is True; transformers' GPT-2 has no place for one")
    config_class, model_class = _classes()
    config = config_class(vocab_size=sizes.n_tokens_in, n_positions=sizes.context,
        n_embd=sizes.width, n_layer=sizes.layers, n_head=sizes.heads, activation_function="gelu",
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=reviews.END, pad_token_id=reviews.END)  # fmt: skip
    model = model_class(config).eval()
    model.lm_head.weight.zero_()
    model.lm_head.bias.fill_(NEVER)
    for ours, theirs in _pairs(policy, model):
        theirs.copy_(ours)
    return model


@torch.no_grad()
def from_transformers(model: Any, like: TinyGPT) -> TinyGPT:
    """Returns a policy of the sizes of `like` with the weights of the model."""
    policy = TinyGPT(like.config, generator=torch.Generator())
    for ours, theirs in _pairs(policy, model):
        ours.copy_(theirs)
    return policy


def tokenizer() -> Any:
    """Returns a tokenizer of the reviews' words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    end = reviews.WORDS[reviews.END]
    words = {word: token for token, word in enumerate(reviews.WORDS)}
    tokens = Tokenizer(WordLevel(words, unk_token=end))
    tokens.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token=end, eos_token=end, padding_side="left"
    )


def train_in_trl(
    reference: TinyGPT,
    world: Any,
    *,
    beta: float,
    steps: int,
    batch_size: int,
    learning_rate: float,
    group: int = 8,
    epochs: int = 1,
    seed: int = 0,
) -> TinyGPT:
    """Returns a policy that TRL's RLOO trainer made out of the reference.

    RLOO takes the sampled log-ratio of the whole response from its reward, form (B) of lesson 03,
    and compares each response with the others of its group, which answer the same prompt.

    Args:
        reference: where training starts, and what the KL is measured to.
        world: `ToyReviews`, with any reward.
        beta: coefficient of the KL, reward per nat.
        steps: batches.
        batch_size: responses of a batch, over all processes together.
        learning_rate: of Adam; falls linearly to 0.
        group: responses to one prompt in a batch.
        epochs: updates made from one batch.
        seed: of everything that TRL draws.
    """
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    def reward(prompts: list[str], completion_ids: list[list[int]], **others: Any) -> list[float]:
        padded = [ids + [reviews.END] * (reviews.LENGTH - len(ids)) for ids in completion_ids]
        encoded = torch.tensor([reviews.encode_prompt(prompt) for prompt in prompts])
        return world.reward(encoded, torch.tensor(padded)).tolist()

    with tempfile.TemporaryDirectory() as folder:
        # The trainer reads its reference from the folder that the policy was read from.
        to_transformers(reference).save_pretrained(folder)
        settings = RLOOConfig(
            output_dir=folder, beta=beta, max_steps=steps * epochs, num_iterations=epochs,
            learning_rate=learning_rate, num_generations=group, temperature=1.0, seed=seed,
            per_device_train_batch_size=batch_size // int(os.environ.get("WORLD_SIZE", 1)),
            gradient_accumulation_steps=1, steps_per_generation=1,
            max_completion_length=reviews.LENGTH, model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False, use_cpu=True, bf16=False, report_to="none",
            logging_strategy="no", save_strategy="no", disable_tqdm=True)  # fmt: skip
        texts = [reviews.decode(prompt) for prompt in world.prompts]
        trainer = RLOOTrainer(
            model=folder, reward_funcs=reward, args=settings, processing_class=tokenizer(),
            train_dataset=Dataset.from_dict({"prompt": texts * batch_size}),
        )  # fmt: skip
        trainer.train()
        return from_transformers(trainer.accelerator.unwrap_model(trainer.model), reference)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what the libraries print and warn of from the screen, and the libraries off the net."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from transformers import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


def main() -> None:
    """Trains, and prints which process this is; the first one also how far it came."""
    parser = argparse.ArgumentParser(prog="python -m ppo_toy.in_trl", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=256)
    arguments = parser.parse_args()
    if missing():
        raise SystemExit(f'not installed: {" ".join(missing())}; pip install -e ".[scale]"')
    torch.set_num_threads(1)
    rank, n_processes = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    reference = recipes.reference_policy()
    world = ToyReviews(reward=recipes.reward_model())
    with quiet():
        policy = train_in_trl(reference, world, learning_rate=3e-3, **vars(arguments))
    # In one piece, so that the lines of two processes do not mix.
    print(f"process {rank + 1} of {n_processes} is done\n", end="", flush=True)
    if rank == 0:
        reached = exact.evaluate(policy, reference, tabulated(world), arguments.beta)
        print(f"J {reached.objective:.3f}   R {reached.reward:.3f}   KL {reached.kl:.3f}   (exact)")


if __name__ == "__main__":
    main()
