"""A rule for the gradient, and every batch that it can meet.

A rule turns one batch into one number that training makes larger. It takes either

    (policy, reference, trajectories, rewards, beta), or
    beta and some of `ARGUMENTS`, by name: (log_probs, ref_log_probs, rewards, mask, beta)

with rewards [B]. It is first asked about all batches side by side, rewards [G, B] along an axis
of runs, and about one after the other unless that gives the same.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppo_toy.policies import Policy, TabularPolicy, freeze
from ppo_toy.trajectories import Trajectories, enumerate_all, log_probs, per_step_kl, score
from ppo_toy.worlds import TokenSequence

# Who asks for the mask gets numbers behind the end, as in any padded batch; for others they are 0.
ARGUMENTS = {
    "log_probs": lambda p, q, b, r: log_probs(p, b),  # [B, T], differentiated
    "old_log_probs": lambda p, q, b, r: log_probs(p, b).detach(),  # [B, T]
    "ref_log_probs": lambda p, q, b, r: log_probs(q, b),  # [B, T]
    "kl": lambda p, q, b, r: per_step_kl(p, q, b),  # [B, T], exact, differentiated
    "logits": lambda p, q, b, r: p(b.prompts, b.tokens)[..., :-1, :],  # [B, T, V], differentiated
    "ref_logits": lambda p, q, b, r: q(b.prompts, b.tokens)[..., :-1, :],  # [B, T, V]
    "prompts": lambda p, q, b, r: b.prompts,  # [B, P]
    "responses": lambda p, q, b, r: b.tokens,  # [B, T]
    "mask": lambda p, q, b, r: b.mask,  # [B, T], True where a token counts
    "rewards": lambda p, q, b, r: r,  # [B]
    "weights": lambda p, q, b, r: b.weights,  # [B], 1 / B each
}


class Problem(NamedTuple):
    """A policy away from its reference, in a world small enough to list."""

    policy: TabularPolicy
    reference: TabularPolicy
    world: Any
    beta: float
    grouped = False


class GroupProblem(Problem):
    """One in which all responses of a batch answer one prompt."""

    grouped = True


def random_problem(
    seed: int, end_token: int | None, beta: float, far: float = 1.0, prompts: Sequence[int] = (0,)
) -> Problem:
    """Returns a world of three tokens with random rewards, and two random policies.

    Rewards and the reference's logits are `far` times wider. Prompts are consecutive tokens, of
    falling weight. Full responses have three steps, or two where there are several prompts.
    """
    numbers = torch.Generator().manual_seed(seed)
    first, n = prompts[0], len(prompts)
    shape = (n, 3, 3) if n > 1 else (n, 3, 3, 3)
    table = far * torch.randn(shape, generator=numbers, dtype=torch.float64)
    rows = TokenSequence.from_table(table, end_token=end_token)
    weights = torch.arange(n, 0, -1, dtype=torch.float64)
    world = SimpleNamespace(**vars(rows), prompt_weights=weights / weights.sum())
    world.prompts = rows.prompts + first
    world.reward = lambda prompts, responses: rows.reward(prompts - first, responses)
    policy, reference = (TabularPolicy.random(world, generator=numbers) for _ in range(2))
    return Problem(policy, freeze(TabularPolicy(world, far * reference.logits)), world, beta)


def as_rule(function: Callable[..., Tensor], *, loss: bool = False) -> Callable[..., Tensor]:
    """Returns a rule of five arguments from either kind, or from a loss, which is made smaller.

    Raises:
        ValueError: the function takes other arguments; logp or logprobs for log_probs will do.
    """
    form = signature(function.forward if isinstance(function, nn.Module) else function)
    names = {own: re.sub(r"log_?p(rob)?s?$", "log_probs", own) for own in form.parameters}
    names = {own: name for own, name in names.items() if name in ARGUMENTS}
    named = {"log_probs", "logits"} & set(names.values())
    try:
        form.bind(**names, beta=0) if named else form.bind(*range(5))
    except TypeError as error:
        raise ValueError(
            f"the rule takes {form}: {error}; it must take (policy, reference, trajectories, "
            f"rewards, beta), or beta and some of {', '.join(ARGUMENTS)}"
        ) from None

    def signed(number: Any) -> Any:
        return -number if loss and isinstance(number, Tensor) else number

    def by_name(policy: Policy, reference: Policy, batch: Trajectories, r: Tensor, beta: float):
        padded = replace(batch, mask=batch.mask | ("mask" in names.values()))
        ask = {**ARGUMENTS, "mask": lambda *_: batch.mask}
        given = [ask[name](policy, reference, padded, r) for name in names.values()]

        def one(*values: Tensor) -> Tensor:
            return signed(function(**dict(zip(names, values, strict=True)), beta=beta))

        if r.dim() == 1:
            return one(*given)
        try:
            return torch.vmap(one, randomness="different")(*given)
        except Exception:  # a branch, a number taken out of a tensor
            return torch.stack([one(*(x[g].clone() for x in given)) for g in range(len(r))])

    return by_name if named else lambda *five: signed(function(*five))


def batch_gradients(
    rule: Callable[..., Tensor], case: Problem, *, size: int = 2, factor: float = 1.0
) -> list[Tensor]:
    """Returns probability [G], surrogate [G] and gradient [G, S, V] of each batch that can occur.

    With N responses there are G = N**size batches of `size`. Rewards are `factor` times larger.

    Raises:
        ValueError: the rule fails, or gives no single number, or one without a finite gradient.
    """
    rule, table = as_rule(rule), TabularPolicy(case.world, case.policy.logits)
    listed = enumerate_all(case.policy, case.world)
    chosen = torch.cartesian_prod(*[torch.arange(len(listed.weights))] * size).view(-1, size)
    p = listed.weights.detach()[chosen].prod(dim=1)
    if case.grouped:
        to = listed.prompts[chosen, 0]
        same = (to == to[:, :1]).all(dim=1)
        of_prompt = p.new_zeros(int(to.max()) + 1).index_add(
            0, listed.prompts[:, 0], listed.weights.detach()
        )
        chosen, p = chosen[same], p[same] / of_prompt[to[same, 0]] ** (size - 1)
    rewards = factor * score(case.world, listed)

    def run(policy: TabularPolicy, rows: Tensor) -> list[Tensor]:
        drawn = (x[rows] for x in (listed.prompts, listed.responses, listed.mask))
        batch = Trajectories(*drawn, weights=torch.full(rows.shape, 1 / size, dtype=p.dtype))
        return _gradient(rule, policy, case.reference, batch, rewards[rows], case.beta)

    found = None
    try:
        found = run(table.repeat(len(chosen)), chosen)
        some = range(1, len(chosen), len(chosen) // 2 + 1)
        pairs = [(x[g], y) for g in some for x, y in zip(found, run(table, chosen[g]), strict=True)]
        alike = all(torch.allclose(*pair, equal_nan=True) for pair in pairs)
    except ValueError:  # written for one batch, or for many only
        alike = found is not None
    if not alike:
        found = [torch.stack(x) for x in zip(*(run(table, rows) for rows in chosen), strict=True)]
    if factor and case.beta and not found[2].any():
        raise ValueError("the rule's number has no gradient: all of it is detached")
    if not (finite := found[1].isfinite().flatten(1).all(dim=1)).all():
        at = chosen[finite.int().argmin()]
        said, to = listed.responses[at].tolist(), listed.prompts[at].tolist()
        raise ValueError(f"the gradient of the batch {said}, said to {to}, is not finite")
    return [p, *found[:2]]


def expected_gradient(rule: Callable[..., Tensor], case: Problem, **options: Any) -> Tensor:
    """Returns the mean of a rule's gradient over all batches, [S, V]; see `batch_gradients`."""
    p, _, gradients = batch_gradients(rule, case, **options)
    return torch.einsum("g,gsv->sv", p, gradients)


def _gradient(rule: Callable[..., Tensor], policy: TabularPolicy, *rest: Any) -> list[Tensor]:
    """The surrogate, its gradient, and 1 if it has one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the spread of one number, of slow ways of torch
            surrogate = rule(policy, *rest)
        shape = getattr(surrogate, "shape", type(surrogate).__name__)
        if shape != policy.runs:
            raise TypeError(f"it gave {shape} for a batch; one number is due, a tensor []")
        attached = surrogate + 0 * policy.logits.sum(dim=(-2, -1))  # a constant has gradient 0
        (gradient,) = torch.autograd.grad(attached.sum(), policy.logits)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"the rule fails (ppo_toy.rules says what it is given), {what}") from error
    return [surrogate.detach(), gradient, torch.full(policy.runs, float(surrogate.requires_grad))]
