"""What a run is about: a model to begin with, its tokenizer, prompts, a reward and a length."""

import hashlib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppo_toy import exact
from ppo_toy.contract import known, rewards_of
from ppo_toy.gpt import TinyGPT
from ppo_toy.in_trl.bridge import from_transformers, text_of, to_transformers, tokenizer, words_of
from ppo_toy.policies import fingerprint


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained on what.

    Attributes:
        model: what training begins with, and the reference: a model of transformers, or the
            folder or name from which it reads one.
        tokenizer: of transformers, with an end token.
        prompts: texts; each is drawn as often as the others.
        reward: called with prompts, responses as texts and responses as lists of tokens; one
            number for each.
        length: the most tokens of a response.
        names: what the run's record says of it.
        judge: exact J, R and KL of a model and a beta, where all responses can be listed.
    """

    model: Any
    tokenizer: Any
    prompts: list[str]
    reward: Callable[[list[str], list[str], list[list[int]]], Sequence[float]]
    length: int
    names: dict[str, Any] = field(default_factory=dict)
    judge: Callable[[Any, float], exact.Evaluation] | None = None

    def rewards(self, prompts: list[str], texts: list[str], ids: list[list[int]]) -> list[float]:
        """Returns R of each response; a ValueError says what is no number for each of them."""
        found = self.reward(prompts, texts, ids)
        try:
            numbers = [float(x) for x in found]
        except (TypeError, ValueError):
            raise ValueError(f"the reward gave {found!r}; numbers are due") from None
        if len(numbers) != len(texts):
            raise ValueError(f"the reward gave {len(numbers)} numbers for {len(texts)} responses")
        for prompt, text, number in zip(prompts, texts, numbers, strict=True):
            if not math.isfinite(number):
                raise ValueError(f"the reward of {text!r}, said to {prompt!r}, is {number}")
        return numbers

    def probe(self) -> None:
        """Raises the ValueError of `rewards`, if an empty response to the first prompts has one."""
        some = self.prompts[:2]
        self.rewards(some, [""] * len(some), [[] for _ in some])


def of_world(world: Any, reference: TinyGPT) -> Task:
    """Returns the task to train a policy of ours in a world of ours.

    Args:
        world: any whose tokens are words; its prompts are drawn as often as one another.
        reference: where training begins, and what the KL is measured to.

    Raises:
        ValueError: the world is none, its tokens are no words or its prompts weigh differently.
    """
    looked_at = known(world)
    words, end = words_of(world)
    weights = looked_at.prompt_weights
    if not torch.allclose(weights, weights.mean()):
        raise ValueError(f"prompt_weights is {weights.tolist()}; TRL draws all prompts alike")
    length = looked_at.response_length
    texts = {text_of(row.tolist(), words): row for row in looked_at.prompts}

    def reward(prompts: list[str], _: list[str], ids: list[list[int]]) -> list[float]:
        # A word that never comes stands for padding only; any token will do there.
        pad = min(end, len(looked_at.vocabulary) - 1)
        rows = torch.tensor([[*row, *[pad] * (length - len(row))] for row in ids])
        return rewards_of(looked_at, torch.stack([texts[x] for x in prompts]), rows).tolist()

    def judge(model: Any, beta: float) -> exact.Evaluation:
        return exact.evaluate(from_transformers(model), reference, world, beta)

    names = {"world": type(world).__name__, "reward": _print_of(looked_at.reward)}
    model, speech = to_transformers(reference, end), tokenizer(words, end)
    return Task(model, speech, list(texts), reward, length, names, judge)


def of_model(model: str, reward: str, prompts: str | Path, length: int) -> Task:
    """Returns the task to train a model of transformers with a reward of one's own.

    Args:
        model: a folder, or the name of a model that transformers finds.
        reward: `module:function`; it gets prompts and responses, two lists of texts, and returns
            a number for each. The module is looked for where the run starts, too.
        prompts: a file of UTF-8 text, a prompt on each line.
        length: the most tokens of a response.

    Raises:
        ValueError: no model, no tokenizer with an end token, no such function or no prompt is
            found; the message names which.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        AutoConfig.from_pretrained(model)
        words = AutoTokenizer.from_pretrained(model, padding_side="left")
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"--model {model}: no model or no tokenizer there: {first}") from None
    if words.eos_token_id is None:
        raise ValueError(f"--model {model}: its tokenizer has no end token (eos_token)")
    function = function_of("--reward", reward)
    texts = _lines(prompts)
    asked = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    names = {"model": model, "reward": f"{reward} {_print_of(function)}", "prompts": asked}
    names["length"] = length
    return Task(model, words, texts, lambda p, y, _: function(p, y), length, names)


def _lines(file: str | Path) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {file}: {error}") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise ValueError(f"--prompts {file}: there is no prompt in it, one on each line")
    return found


def function_of(option: str, name: str) -> Callable[..., Any]:
    """Returns the function that `module:function` names; a ValueError if there is none."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{option} {name}: {error}; it must be module:function") from None
    finally:
        sys.path.remove("")
    if not callable(found):
        raise ValueError(f"{option} {name} is {found!r}; it must be a function")
    return found


def _print_of(reward: Any) -> str:
    """What tells one reward from another: weights, or else the text of the code."""
    if isinstance(reward, nn.Module):
        return fingerprint(reward)
    try:
        text = inspect.getsource(inspect.getmodule(reward) or type(reward))
    except (OSError, TypeError):
        text = getattr(reward, "__qualname__", type(reward).__name__)
    return hashlib.sha256(text.encode()).hexdigest()
