"""What a world, a policy and an environment are, looked at where they enter.

    policy   callable: prompts [B, P], responses [B, t] -> logits [B, t + 1, V]
    world    prompts [n, P], vocabulary, response_length T, end_token, reward; maybe prompt_weights
    env      a Gymnasium vector environment: observations [N, D], Discrete actions, NEXT_STEP

Shapes: B trajectories, P prompt tokens, T response tokens, V vocabulary, n prompts.
"""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Policy = Callable[[Tensor, Tensor], Tensor]

MOODY = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
TWO_ANSWERS = "the {} gives two answers to one question, as dropout does: call its eval()"


class World(NamedTuple):
    """A world that was looked at: what `known` makes of any, and a world itself."""

    prompts: Tensor
    vocabulary: Sequence[str]
    response_length: int
    end_token: int | None
    reward: Callable[[Tensor, Tensor], Tensor] | None
    prompt_weights: Tensor


def known(world: Any) -> World:
    """What a world consists of, prompts as a tensor and with weights; a ValueError names faults."""
    if isinstance(world, World):
        return world
    if isinstance(world, type):
        raise ValueError(f"the world is the class {world.__name__}; give an instance of it")
    for name in ("prompts", "vocabulary", "response_length", "end_token"):
        if not hasattr(world, name):
            raise ValueError(f"the world, a {type(world).__name__}, has no {name}")
    words, length, end = world.vocabulary, world.response_length, world.end_token
    check_vocabulary(words)
    if not isinstance(length, Integral) or length < 1:
        raise ValueError(f"response_length is {length!r}; it must be an integer, 1 or more")
    if end is not None and not (isinstance(end, Integral) and 0 <= end < len(words)):
        raise ValueError(f"end_token is {end!r}; the tokens are 0 to {len(words) - 1}")
    prompts, reward = table_of(world.prompts), getattr(world, "reward", None)
    return World(prompts, words, length, end, reward, prompt_weights(world))


def check_vocabulary(vocabulary: Any, n_tokens: int | None = None) -> None:
    """Raises a ValueError unless there are 2 or more distinct strings, `n_tokens` if given."""
    words = list(vocabulary) if isinstance(vocabulary, Sequence) else []
    if len(set(words)) < len(words) or len(words) < 2 or n_tokens not in (None, len(words)):
        raise ValueError(
            f"vocabulary is {words or vocabulary!r}; it must be "
            f"{n_tokens or max(len(words), 2)} distinct strings"
        )


def table_of(prompts: Any) -> Tensor:
    """Prompts as a tensor of integer tokens, [n, P]; a ValueError for other shapes and types."""
    try:
        table = torch.as_tensor(prompts)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"prompts is {prompts!r}; it must be a table, [n, P]") from None
    whole = not (table.is_floating_point() or table.is_complex() or table.dtype == torch.bool)
    if table.dim() != 2 or not table.numel() or not whole:
        raise ValueError(
            f"prompts has shape {tuple(table.shape)} and type {table.dtype}; it must be [n, P] of "
            "torch.long"
        )
    return table.long()


def prompt_weights(world: Any) -> Tensor:
    """Probability of each prompt, [n], double precision: uniform unless the world says otherwise.

    Weights that are negative, do not sum to 1 or are not one a prompt are a ValueError.
    """
    n = len(world.prompts)
    weights = getattr(world, "prompt_weights", None)
    if weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float64)
    weights = torch.as_tensor(weights, dtype=torch.float64)
    if weights.shape != (n,) or not (weights >= 0).all() or abs(weights.sum().item() - 1) > 1e-6:
        raise ValueError(f"prompt_weights is {weights.tolist()}; it must be {n} that sum to 1")
    return weights


def rewards_of(world: Any, prompts: Tensor, responses: Tensor) -> Tensor:
    """R of each response, [B], without gradient; what is true or false counts 1 or 0.

    A ValueError names what is no function, no real number for each, or not finite, and for whom.
    """
    if not callable(reward := getattr(world, "reward", None)):
        raise ValueError(
            f"the world's reward is {reward!r}; it must be a function of prompts [B, P] and "
            "responses [B, T] that returns [B]"
        )
    answer = reward(prompts, responses)
    kind = None if hasattr(answer, "dtype") else torch.float64
    try:
        rewards = torch.as_tensor(answer, device=responses.device, dtype=kind).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"the world's reward gave {answer!r}; numbers [B] are due") from None
    if rewards.is_complex():
        raise ValueError(f"the world's reward gave {rewards.dtype}; real numbers are due")
    if rewards.shape != (len(responses),):
        shape = tuple(rewards.shape)
        raise ValueError(f"the world's reward gave {shape} for {len(responses)} responses")
    if not rewards.isfinite().all():
        at = (~rewards.isfinite()).nonzero()[0].item()
        said = responses[at].tolist()
        if world.end_token in said:
            said = said[: said.index(world.end_token) + 1]
        words = [world.vocabulary[token] for token in said]
        raise ValueError(f"the reward of {words} is {rewards[at].item()}")
    return rewards.long() if rewards.dtype == torch.bool else rewards


def check_logits(name: str, logits: Any, rows: Sequence[int], n_tokens: int | None = None) -> None:
    """Raises a ValueError unless a policy's answer is logits [*rows, V], or [G, *rows, V]."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the {name} gave {kind}; logits are due, a tensor of floats")
    if tuple(rows) not in (logits.shape[:-1], logits.shape[1:-1]):
        due = ", ".join(map(str, rows))
        raise ValueError(f"the {name} gave logits {tuple(logits.shape)}; [{due}, V] was due")
    if n_tokens not in (None, logits.shape[-1]):
        raise ValueError(f"the {name} has {logits.shape[-1]} tokens, the world {n_tokens}")


def check_policies(world: World, **policies: Policy) -> list[Tensor]:
    """Asks each policy, given by name, about the world's first prompt, twice in one batch.

    Returns their answers; one of a wrong shape or another vocabulary, or two of them, is a
    ValueError.
    """
    answers = []
    for name, policy in policies.items():
        check_still(name, policy)
        prompts = world.prompts[:1].repeat(2, 1).to(device_of(policy))
        tokens = prompts.new_zeros(2, min(world.response_length - 1, 1))
        logits = policy(prompts, tokens)
        check_logits(name, logits, (2, tokens.shape[1] + 1), len(world.vocabulary))
        before, runs = logits.shape[:-3], getattr(policy, "runs", ())
        if before != runs:
            raise ValueError(
                f"the {name} gave {list(before)} before [B, t + 1, V]; its `runs` says {runs}"
            )
        one, other = logits.detach().unbind(dim=-3)
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ValueError(TWO_ANSWERS.format(name))
        answers.append(logits)
    return answers


def check_still(name: str, policy: Policy) -> None:
    """Raises a ValueError for what is no policy, and for parts of one that are in train mode."""
    if not (callable(policy) or hasattr(policy, "next_logits")):
        raise ValueError(f"the {name} is {policy!r}; it must be a function of prompts, responses")
    for part in policy.modules() if isinstance(policy, nn.Module) else ():
        if part.training and isinstance(part, MOODY) and getattr(part, "p", 1):
            raise ValueError(TWO_ANSWERS.format(name))


def check_learns(answer: Tensor) -> None:
    """Raises a ValueError unless an answer of the policy's depends on what it may learn."""
    if not answer.requires_grad:
        raise ValueError(
            "the policy's logits carry no gradient: policy.requires_grad_(True) lets it learn, and "
            "nothing may be detached on the way"
        )


def check_env(env: Any, *, runs: int, sizes: tuple[int, int]) -> None:
    """Raises a ValueError unless G runs of a model of sizes (D, A) fit a vector environment."""
    if not hasattr(env, "num_envs"):
        raise ValueError(f"{env} is not a vector environment; envs.make_vector makes one")
    if str(env.metadata.get("autoreset_mode")) != "AutoresetMode.NEXT_STEP":
        raise ValueError(f"autoreset_mode is {env.metadata.get('autoreset_mode')}; use NEXT_STEP")
    if env.num_envs % runs:
        raise ValueError(f"{env.num_envs} environments cannot be shared by {runs} runs")
    seen, actions = env.single_observation_space, env.single_action_space
    if seen.shape != sizes[:1]:
        raise ValueError(f"an observation is {seen}; the model reads {sizes[0]} numbers")
    if type(actions).__name__ != "Discrete" or actions.n != sizes[1]:
        raise ValueError(f"the actions are {actions}; the model has {sizes[1]}")


def device_of(policy: Policy) -> torch.device:
    """The device of a policy's first parameter; the CPU for one without parameters."""
    parameters = policy.parameters() if isinstance(policy, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))
