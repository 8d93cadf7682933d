"""The same model as Hugging Face's libraries have it, and their trainers timed in turn with ours.

What they would write to the screen, to disk or to a log is switched off, and so is dropout.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ppo_toy.benchmarks.timing import PAIRS, Seconds, now, timed
from ppo_toy.benchmarks.work import CONFIG, N_TOKENS, SETTINGS
from ppo_toy.gpt import TinyGPT

PAD, END = N_TOKENS, N_TOKENS + 1  # known to the tokenizer alone, so that no model can draw them
ROUNDS = 4  # iterations in a row before it is the other's turn
ITERATIONS = (PAIRS + 1) * ROUNDS  # one more, since the first turn is not counted


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what a library prints and warns of from the screen, and the library off the net."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def gpt2_config(activation: str, **settings: Any) -> Any:
    """Returns the sizes of our model as transformers' GPT-2 reads them.

    Args:
        activation: "gelu_new" is GPT-2's own, in eight operations; "gelu" is ours, in one.
        settings: further ones.
    """
    from transformers import GPT2Config, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return GPT2Config(vocab_size=CONFIG.n_tokens_in, n_positions=CONFIG.context,
        n_embd=CONFIG.width, n_layer=CONFIG.layers, n_head=CONFIG.heads,
        activation_function=activation, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=PAD,
        **settings)  # fmt: skip


@torch.no_grad()
def gpt2(policy: TinyGPT, activation: str) -> Any:
    """Returns a GPT-2 with the weights of our policy."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(gpt2_config(activation)).eval()
    # Both list their parameters in the same order; GPT-2 has no bias in the head, and keeps the
    # matrices within a block transposed.
    for (name, theirs), ours in zip(model.named_parameters(), policy.parameters(), strict=False):
        theirs.copy_(ours.t() if ".c_" in name else ours)
    return model


def tokenizer() -> Any:
    """Returns a tokenizer of words that are the tokens' numbers."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {**{str(token): token for token in range(N_TOKENS)}, "<pad>": PAD, "<end>": END}
    tokens = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokens.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def settings(folder: str) -> dict[str, Any]:
    """Returns what TRL's PPO and GRPO have in common: our settings, float32, and no logs."""
    return {
        "output_dir": folder,
        "learning_rate": SETTINGS["learning_rate"],
        "gradient_accumulation_steps": 1,
        "temperature": 1.0,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def in_turn(
    trainer: Any, ours: Callable[[int], None], steps: int = 1
) -> list[tuple[Seconds, Seconds]]:
    """Trains, and gives every few iterations as many to us; returns the seconds of both.

    Args:
        trainer: of TRL, with `ITERATIONS` to go.
        ours: does so many iterations.
        steps: of the trainer, to an iteration.
    """
    from transformers import PrinterCallback, TrainerCallback

    pairs, begun = [], [0.0, 0.0]

    class Turn(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % (steps * ROUNDS) == 0:
                theirs = [(b - a) / ROUNDS for a, b in zip(begun, now(), strict=True)]
                mine = [seconds / ROUNDS for seconds in timed(ours, ROUNDS)[1:]]
                pairs.append((theirs, mine))
                begun[:] = now()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Turn())
    trainer.train()
    return pairs[1:]  # the first turn is the one that loads modules
