"""Names what is wrong with a gradient by what it does, never by reading its code.

A rule (see `rules`) is asked about every batch of two responses that can be drawn, and each
counts with its probability. So the mean gradient is exact, whatever a rule takes from its batch;
what hangs on the size of a batch is seen at two. The gradient due is

    grad J = S - beta * (F + D)
    S = E[sum_t grad log pi(a_t | s_t) * R]                       the reward
    F = E[sum_t grad log pi(a_t | s_t) * sum_{t' > t} KL_t']      the future KL
    D = E[sum_t grad KL_t]                                        the KL's own derivative
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_toy import exact
from ppo_toy.faults import FAULTS as FAULTS
from ppo_toy.faults import PENALTIES, REWARDS
from ppo_toy.policies import TabularPolicy, freeze
from ppo_toy.rules import (
    GroupProblem,
    Problem,
    as_rule,
    batch_gradients,
    expected_gradient,
    random_problem,
)
from ppo_toy.trajectories import enumerate_all, log_probs, per_step_kl, score

Rule, Names, Cases = Callable[..., Tensor], list[str], list[Problem]


class Verdict(NamedTuple):
    """Names from `FAULTS`, the share of the true gradient's length it is off by, and the cosine."""

    faults: tuple[str, ...]
    error: float
    cosine: float


def verdict(rule: Rule, *, loss: bool = False, seed: int = 0, grouped: bool = False) -> Verdict:
    """Says what is wrong with a rule's expected gradient.

    The rule is held against the exact one in random problems: with one prompt, with three of
    unequal weight, and with large rewards and log-ratios. The first in which it differs gives the
    names, the error and the cosine. Reward and penalty are judged one by one.

    Args:
        rule: of either kind in `rules`.
        loss: whether training makes the rule's number smaller, not larger.
        seed: of the problems.
        grouped: whether the responses of a batch answer one prompt, as those of a group do.

    Raises:
        ValueError: the rule cannot be asked; the message says why.
    """
    rule, names = as_rule(rule, loss=loss), []
    several = random_problem(3 * seed, 2, beta=0.6, prompts=range(3))
    far = random_problem(3 * seed + 2, None, beta=0.3, far=12.0)
    others = _pair(seed, 1), _pair(seed, 2)
    for name_faults, *cases in (
        (_faults, *_pair(seed, 0)),
        (lambda *_: _on_prompts(rule, others), several),
        (_by_part, far),
    ):
        cases = [GroupProblem(*case) for case in cases] if grouped else cases
        found = torch.cat([expected_gradient(rule, case).flatten() for case in cases])
        true = torch.cat([exact.gradient(*case)[0].flatten() for case in cases])
        if not _same(found, true):
            names = name_faults(rule, *cases) or ["unknown"]
            break
    error, cosine = (found - true).norm() / true.norm(), torch.cosine_similarity(found, true, dim=0)
    return Verdict(tuple(dict.fromkeys(names)), error.item(), cosine.item())


def _on_prompts(rule: Rule, pairs: Iterable[Cases]) -> Names:
    names = next(filter(None, (_faults(rule, *pair) for pair in pairs)), [])
    return ["prompts treated differently", *names] if names else ["prompts mixed up"]


def _pair(seed: int, prompt: int) -> Cases:
    whole = random_problem(3 * seed, None, beta=0.5, prompts=[prompt])
    return [whole, random_problem(3 * seed + 1, 2, beta=0.8, prompts=[prompt])]


def _same(found: Tensor, due: Tensor | float, tolerance: float = 1e-6) -> bool:
    return bool((found - due).norm() <= tolerance * torch.as_tensor(due).norm().clamp(min=1e-2))


def _faults(rule: Rule, whole: Problem, ending: Problem) -> Names:
    leaks = ["padding leaked"] if _padding_leaks(rule, ending) else []
    if abs(_inverse_temperature(rule, whole) - 1) > 1e-3:  # False for NaN, where no score is
        return [*leaks, "temperature missing"]
    at_home = whole._replace(policy=TabularPolicy(whole.world, whole.reference.logits))
    if not _same(expected_gradient(rule, at_home, factor=0), 0.0):
        return [*leaks, "another reference"]
    return leaks + _by_part(rule, *([whole] if leaks else [whole, ending]))


def _by_part(rule: Rule, *cases: Problem) -> Names:
    """Judges the reward's part and the penalty's."""
    faults, scale = _reward_faults(rule, cases)
    if not {"advantages whitened", "own response in the baseline"} & set(faults):
        faults = faults + _penalty_faults(rule, cases, scale)
    return faults or (["only scaled"] if scale != 1 else [])


def _match(table: dict, found: list[Tensor], due: list[Tensor]) -> tuple[Names, float, bool]:
    """Which mixture of parts all of `found` are, or the first: names, how many times, if all."""
    first = (["unknown"], torch.nan, True)
    for key, names in table.items():
        mixed = [torch.einsum("k,ksv->sv", x.new_tensor(key), x) for x in due]
        size = ((found[0] * mixed[0]).sum() / mixed[0].square().sum()).item()
        fits = [_same(x, size * y, 1e-4) for x, y in zip(found, mixed, strict=True)]
        if all(fits):
            return names, round(size, 6), True
        if fits[0] and first[2]:
            first = names, round(size, 6), False
    return first


def _parts(case: Problem) -> Tensor:
    """Expected scores times a constant each, [4 + 7, S, V]: those of `REWARDS`, `PENALTIES`."""
    listed = enumerate_all(case.policy, case.world)
    log_p, mask = log_probs(case.policy, listed), listed.mask
    k1 = (log_p - log_probs(case.reference, listed)).detach()
    kl, other = (per_step_kl(*pair, listed).detach() for pair in (case[:2], case[1::-1]))
    later = [x.flip(-1).cumsum(-1).flip(-1) - x for x in (kl, other, k1**2 / 2)]
    full, last = mask[:, -1:], mask.cumsum(-1) == mask.sum(-1, keepdim=True)
    charges = [score(case.world, listed)[:, None] * x for x in (mask, full, last, last & full)]
    charges += [later[0], k1, 1 - (-k1).exp(), later[1], k1.exp(), k1**2 / 2, later[2]]
    means = [(listed.weights.detach() @ (log_p * charge)).sum() for charge in charges]
    gradients = [torch.autograd.grad(x, case.policy.logits, retain_graph=True)[0] for x in means]
    return torch.stack(gradients)


def _padding_leaks(rule: Rule, case: Problem) -> bool:
    listed = enumerate_all(case.policy, case.world)
    reached = case.policy.rows(listed.prompts, listed.tokens)[:, :-1][listed.mask]
    behind = torch.ones_like(case.policy.logits).index_fill(0, reached, 0)
    others = [TabularPolicy(case.world, p.logits * (1 + behind)) for p in case[:2]]
    other = case._replace(policy=others[0], reference=freeze(others[1]))
    return not _same(batch_gradients(rule, other)[2], batch_gradients(rule, case)[2])


def _inverse_temperature(rule: Rule, case: Problem) -> float:
    # Batch 13, a a a and b b b, passes state 1, after an a, once. The score there is 1[v = a]
    # less pi(v), so that the entries of b and c stand to each other as pi(b) to pi(c).
    gradient = batch_gradients(rule, case._replace(beta=0.0))[2][13, 1]
    _, b, c = case.policy.logits.detach()[1]
    return ((gradient[1] / gradient[2]).log() / (b - c)).item()


def _alone(rule: Rule, case: Problem, **options: float) -> Tensor:
    try:
        return expected_gradient(rule, case, size=1, **options)
    except ValueError:  # no others for a baseline, no spread
        return torch.full_like(case.policy.logits, torch.nan)


def _reward_faults(rule: Rule, cases: Cases) -> tuple[Names, float]:
    """What is wrong with the reward's part, and its length, NaN where that makes no sense."""
    whole, free = cases[0], cases[0]._replace(beta=0.0)
    if _same(once := expected_gradient(rule, free), 0.0):
        return ["reward has no gradient"], 1.0
    gain = [expected_gradient(rule, c) - expected_gradient(rule, c, factor=0) for c in cases]
    scale = next(filter(None, map(_clip, cases, gain)), 0.0)
    names = ["reward clipped"] if scale else []
    if not scale and _same(expected_gradient(rule, free, factor=7), once, 0.1):
        if _same(_alone(rule, free, factor=7), alone := _alone(rule, free), 0.1) and alone.any():
            return ["unknown"], torch.nan  # a sign, a rank: not the spread of a batch
        larger = expected_gradient(rule, whole._replace(beta=7 * whole.beta), factor=7)
        both = _same(larger, expected_gradient(rule, whole), 0.1)
        return ["advantages whitened" if both else "reward divided by spread"], torch.nan
    if _same(_alone(rule, free), 0.0):
        return [*names, "own response in the baseline"], torch.nan
    if not scale:
        names, scale, ending = _match(REWARDS, gain, [_parts(case)[:4] for case in cases])
        if not ending:
            names, scale = (["token mean"], scale) if abs(scale) != 1 else (["unknown"], torch.nan)
    return ["reward sign flipped"] * (scale < 0) + names, abs(scale)


def _clip(case: Problem, gain: Tensor) -> float:
    """The factor by which rewards between two bounds count, if others count as a bound; or 0."""
    # A gain has room for one number a response: sorted by reward, these rise between the bounds.
    listed = enumerate_all(case.policy, case.world)
    one_each = torch.eye(len(listed.weights), dtype=gain.dtype)
    (mass,) = torch.autograd.grad(
        listed.weights, case.policy.logits, one_each, is_grads_batched=True
    )
    rewards, order = score(case.world, listed).sort()
    earned = torch.linalg.lstsq(mass.flatten(1).T, gain.flatten()).solution[order]
    slopes = earned.diff() / rewards.diff()
    scale = slopes[k := slopes.abs().argmax()]
    rise = (earned / scale) - (earned / scale).min()
    low = rewards[k] - rise[k]
    inside = (slopes / scale > 1 - 1e-4).sum()
    bounded = _same(rise, rewards.clamp(low, low + rise.max()) - low, 1e-4)
    return round(scale.item(), 6) if bounded and 1 < inside < len(slopes) else 0.0


def _penalty_faults(rule: Rule, cases: Cases, scale: float, near: bool = False) -> Names:
    pull = [expected_gradient(rule, case, factor=0) / -case.beta for case in cases]
    if _same(pull[0], 0.0):
        return _why_no_brake(rule, cases[0])
    names, size, ending = _match(PENALTIES, pull, [_parts(case)[4:] for case in cases])
    if names == ["unknown"] and not near:
        names = _penalty_faults(rule, [_near(case) for case in cases], scale, near=True)
        return names if "unknown" in names else ["log-ratio clamped", *names]
    names, size = ["KL sign flipped"] * (size < 0) + names, abs(size)
    if not ending:  # fits where all responses have one length
        shorter = size < (1 if math.isnan(scale) else scale) - 1e-4
        mean = "KL averaged over tokens" if shorter and scale > 0 else "token mean"
        return [mean if shorter or scale < 1 else "unknown", *names]
    if not abs(size - scale) > 1e-4:
        return names
    # A KL shared by all n of a batch acts by the own share alone, 1/n of it.
    shared = _same(_alone(rule, cases[0], factor=0) / -cases[0].beta, 2 * pull[0])
    return ["KL as baseline" if shared else "beta scaled", *names]


def _near(case: Problem) -> Problem:
    logits = torch.lerp(case.policy.logits, case.reference.logits, 0.01)
    return case._replace(reference=freeze(TabularPolicy(case.world, logits)))


def _why_no_brake(rule: Rule, case: Problem) -> Names:  # single batches tell them apart
    even = freeze(TabularPolicy(case.world))
    cases = (case, case._replace(reference=even), case._replace(beta=2 * case.beta))
    value, gradient = zip(*(batch_gradients(rule, c, factor=0)[1:] for c in cases), strict=True)
    if not _same(gradient[1], gradient[0]):
        return ["KL as baseline"]
    if not _same(gradient[2], gradient[0]):
        return ["k1 as loss"]
    return ["KL never applied" if _same(value[2], value[0]) else "KL under no_grad"]
