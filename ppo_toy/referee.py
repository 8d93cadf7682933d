"""Names what is wrong with a gradient by what it does, never by reading its code.

A rule turns a batch into the number that training makes larger:

    rule(policy, reference, trajectories, rewards, beta) -> surrogate

It is handed every batch of two responses that can be drawn, side by side along the axis of runs
(rewards are [G, 2], the surrogate [G]), and each counts with its probability. The gradient due is

    grad J = S - beta * (F + D)
    S = E[sum_t grad log pi(a_t | s_t) * R]                       the reward
    F = E[sum_t grad log pi(a_t | s_t) * sum_{t' > t} KL_t']      the future KL
    D = E[sum_t grad KL_t]                                        the KL's own derivative
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppo_toy import exact
from ppo_toy.policies import Policy, TabularPolicy, freeze
from ppo_toy.trajectories import Trajectories, enumerate_all, log_probs, per_step_kl, score
from ppo_toy.worlds import TokenSequence

Rule = Callable[[Policy, Policy, Trajectories, Tensor, float], Tensor]
Tensors, Names = list[Tensor], list[str]

FAULTS = {
    "padding leaked": "What the policies say behind the end token changes the gradient.",
    "temperature missing": "Tokens are scored at another temperature than they were drawn at.",
    "another reference": "The penalty alone does not rest at the reference it was given.",
    "reward has no gradient": "Any rewards give the same expected gradient.",
    "reward sign flipped": "The reward is made smaller.",
    "reward divided by spread": "Seven times the reward pulls no harder, so beta is too weak.",
    "advantages whitened": "Seven times the reward and the KL together pull no harder.",
    "own response in the baseline": "A response alone in its batch has nothing left to learn from.",
    "reward behind the end": "A response that ends early does not get its reward.",
    "token mean": "Responses are divided by a number of tokens: short ones count for more.",
    "KL never applied": "Neither the gradient nor the value knows beta.",
    "KL under no_grad": "The value knows beta, the gradient does not.",
    "k1 as loss": "beta adds noise of mean 0, in which there is no reference.",
    "KL as baseline": "A whole batch is charged the same KL, which is a baseline.",
    "KL sign flipped": "The KL is made larger.",
    "KL averaged over tokens": "The KL is a mean over tokens: beta shrinks with the length.",
    "future KL dropped": "No token pays for the KL of the steps that it leads to.",
    "own token dropped": "The derivative of the KL at the token's own step is missing.",
    "own token twice": "The derivative of the KL at the token's own step counts twice.",
    "other direction": "The pull is that of KL(ref || pi), not of KL(pi || ref).",
    "k3 in reward": "The pull is that of KL(pi || ref) less that of KL(ref || pi).",
    "k2 in reward": "Tokens are charged for being rarer than in the reference, too.",
    "k2 times ratio": "A k2 loss has the right direction; the ratio adds the score of k2 to it.",
    "ratio upside down": "A k3 loss with pi / ref for ref / pi: the pull of a chi-square.",
    "beta scaled": "The penalty's direction is right, its coefficient is not beta.",
    "log-ratio clamped": "Right near the reference and wrong far from it.",
    "only scaled": "The direction is right: another learning rate makes up for it.",
    "unknown": "Wrong, and in no way that is listed here.",
}

# Coefficients of F, D, KL(ref || pi), chi-square, and the score of k2 at the own and later steps.
_PENALTIES = {
    (1, 1, 0, 0, 0, 0): [],
    (0, 1, 0, 0, 0, 0): ["future KL dropped"],
    (1, 0, 0, 0, 0, 0): ["own token dropped"],
    (1, 2, 0, 0, 0, 0): ["own token twice"],
    (1, 0, 1, 0, 0, 0): ["other direction"],
    (0, 0, 1, 0, 0, 0): ["other direction", "future KL dropped"],
    (1, 1, -1, 0, 0, 0): ["k3 in reward"],
    (0, 0, 0, 1, 0, 0): ["ratio upside down", "future KL dropped"],
    (0, 0, 0, 0, 1, 1): ["k2 in reward"],
    (0, 1, 0, 0, 1, 0): ["k2 times ratio", "future KL dropped"],
}


class Verdict(NamedTuple):
    """Names from `FAULTS`, the share of the true gradient's length it is off by, and the cosine."""

    faults: tuple[str, ...]
    error: float
    cosine: float


class Problem(NamedTuple):
    """A policy away from its reference, in a world small enough to list."""

    policy: TabularPolicy
    reference: TabularPolicy
    world: Any
    beta: float


def random_problem(seed: int, end_token: int | None, beta: float, far: float = 1.0) -> Problem:
    """Returns three tokens, three steps, random rewards; the reference is `far` times wider."""
    numbers = torch.Generator().manual_seed(seed)
    table = torch.randn(1, 3, 3, 3, generator=numbers, dtype=torch.float64)
    world = TokenSequence.from_table(table, end_token=end_token)
    policy, reference = (TabularPolicy.random(world, generator=numbers) for _ in range(2))
    return Problem(policy, freeze(TabularPolicy(world, far * reference.logits)), world, beta)


def batch_gradients(rule: Rule, case: Problem, *, size: int = 2, factor: float = 1.0) -> Tensors:
    """Returns probability [G], surrogate [G] and gradient [G, S, V] of each batch that can occur.

    Args:
        rule: see the module; refused if it does not give one number for each batch.
        case: with N responses there are G = N**size batches.
        size: responses in a batch.
        factor: multiplies their rewards.
    """
    listed = enumerate_all(case.policy, case.world)
    chosen = torch.cartesian_prod(*[torch.arange(len(listed.weights))] * size).view(-1, size)
    p = listed.weights.detach()[chosen].prod(dim=1)
    rows = (x[chosen] for x in (listed.prompts, listed.responses, listed.mask))
    batches = Trajectories(*rows, weights=torch.full(chosen.shape, 1 / size, dtype=p.dtype))
    runs = TabularPolicy(case.world, case.policy.logits).repeat(len(chosen))
    surrogate = rule(runs, case.reference, batches, factor * score(case.world, batches), case.beta)
    if surrogate.shape != p.shape:
        raise ValueError(f"the rule gave {tuple(surrogate.shape)} for {len(p)} batches")
    attached = surrogate + 0 * runs.logits.sum(dim=(-2, -1))  # a constant has gradient 0
    return [p, surrogate.detach(), torch.autograd.grad(attached.sum(), runs.logits)[0]]


def expected_gradient(rule: Rule, case: Problem, **options: Any) -> Tensor:
    """Returns the mean of a rule's gradient over all batches, [S, V]; see `batch_gradients`."""
    p, _, gradients = batch_gradients(rule, case, **options)
    return torch.einsum("g,gsv->sv", p, gradients)


def verdict(rule: Rule, *, seed: int = 0) -> Verdict:
    """Runs a rule on three random problems and says what is wrong with its expected gradient."""
    whole = random_problem(3 * seed, None, beta=0.5)
    ending = random_problem(3 * seed + 1, 2, beta=0.8)
    far = random_problem(3 * seed + 2, None, beta=0.3, far=12.0)
    found = [expected_gradient(rule, case).flatten() for case in (whole, ending, far)]
    true = [exact.gradient(*case)[0].flatten() for case in (whole, ending, far)]
    if not torch.cat(found).isfinite().all():
        raise ValueError("the rule's gradient is not finite")
    near = torch.cat(found[:2]), torch.cat(true[:2])
    faults = [] if _same(found[2], true[2]) else ["log-ratio clamped"]
    if not _same(*near):
        faults = _faults(rule, whole, ending) or ["unknown"]
    error = (near[0] - near[1]).norm() / near[1].norm()
    cosine = torch.cosine_similarity(*near, dim=0)
    return Verdict(tuple(dict.fromkeys(faults)), error.item(), cosine.item())


def _same(found: Tensor, due: Tensor | float, tolerance: float = 1e-6) -> bool:
    return bool((found - due).norm() <= tolerance * torch.as_tensor(due).norm().clamp(min=1e-2))


def _faults(rule: Rule, whole: Problem, ending: Problem) -> Names:
    leaks = ["padding leaked"] if _padding_leaks(rule, ending) else []
    if abs(_inverse_temperature(rule, whole) - 1) > 1e-3:  # False for NaN, where no score is
        return [*leaks, "temperature missing"]
    at_home = whole._replace(policy=TabularPolicy(whole.world, whole.reference.logits))
    if not _same(expected_gradient(rule, at_home, factor=0), 0.0):
        return [*leaks, "another reference"]
    cases = [whole] if leaks else [whole, ending]
    mute = [expected_gradient(rule, case, factor=0) for case in cases]
    gain = [expected_gradient(rule, c) - g for c, g in zip(cases, mute, strict=True)]
    pull = [-g / case.beta for g, case in zip(mute, cases, strict=True)]
    parts = [_parts(case) for case in cases]
    faults, scale = _reward_faults(rule, whole, gain, [p[0] for p in parts])
    if not {"advantages whitened", "own response in the baseline"} & set(faults):
        faults = faults + _penalty_faults(rule, whole, pull, [p[1:] for p in parts], scale)
    return leaks + faults or (["only scaled"] if scale != 1 else [])


def _parts(case: Problem) -> Tensor:
    """S and the six parts of `_PENALTIES`, [7, S, V]: expected scores times a constant each."""
    listed = enumerate_all(case.policy, case.world)
    log_p = log_probs(case.policy, listed)
    k1 = (log_p - log_probs(case.reference, listed)).detach()
    kl = per_step_kl(case.policy, case.reference, listed).detach()
    reward = score(case.world, listed).unsqueeze(1)
    later_kl, later_k2 = (x.flip(-1).cumsum(-1).flip(-1) - x for x in (kl, k1**2 / 2))
    charges = (reward, later_kl, k1, 1 - (-k1).exp(), k1.exp(), k1**2 / 2, later_k2)
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


def _reward_faults(rule: Rule, whole: Problem, gain: Tensors, due: Tensors) -> tuple[Names, float]:
    """What is wrong with the reward's part, and its length, NaN where that makes no sense."""
    free = whole._replace(beta=0.0)
    if _same(once := expected_gradient(rule, free), 0.0):
        return ["reward has no gradient"], 1.0
    if _same(expected_gradient(rule, free, factor=7), once, 0.1):
        larger = expected_gradient(rule, whole._replace(beta=7 * whole.beta), factor=7)
        both = _same(larger, expected_gradient(rule, whole), 0.1)
        return ["advantages whitened" if both else "reward divided by spread"], torch.nan
    if _same(expected_gradient(rule, free, size=1), 0.0):
        return ["own response in the baseline"], torch.nan
    scale = round((gain[0].flatten() @ due[0].flatten() / due[0].norm() ** 2).item(), 6)
    if not _same(gain[0], scale * due[0], 1e-4):
        return ["unknown"], torch.nan
    faults = ["reward sign flipped"] if scale < 0 else []
    if not all(_same(g, scale * d, 1e-4) for g, d in zip(gain, due, strict=True)):
        faults.append("reward behind the end" if abs(scale) == 1 else "token mean")
    return faults, abs(scale)


def _penalty_faults(rule: Rule, whole: Problem, pull: Tensors, due: Tensors, scale: float) -> Names:
    if _same(pull[0], 0.0):
        return _why_no_brake(rule, whole)
    shares = torch.linalg.lstsq(due[0].flatten(1).T, pull[0].flatten()).solution
    for key, names in _PENALTIES.items():
        pattern = shares.new_tensor(key)
        size = (shares @ pattern / pattern.square().sum()).item()
        if _same(size * pattern, shares, 1e-4):
            flipped = ["KL sign flipped"] if size < 0 else []
            mixed = [size * torch.einsum("k,ksv->sv", pattern, d) for d in due]
            if not all(_same(m, p, 1e-4) for m, p in zip(mixed, pull, strict=True)):
                return [*flipped, "KL averaged over tokens" if scale == 1 else "token mean", *names]
            if not abs(abs(size) - scale) > 1e-4:
                return [*flipped, *names]
            # A KL shared by all n of a batch acts by the own share alone, 1/n of it.
            alone = expected_gradient(rule, whole, factor=0, size=1) / -whole.beta
            shared = _same(alone, 2 * pull[0])
            return [*flipped, "KL as baseline" if shared else "beta scaled", *names]
    return ["unknown"]


def _why_no_brake(rule: Rule, case: Problem) -> Names:  # single batches tell them apart
    even = freeze(TabularPolicy(case.world))
    cases = (case, case._replace(reference=even), case._replace(beta=2 * case.beta))
    value, gradient = zip(*(batch_gradients(rule, c, factor=0)[1:] for c in cases), strict=True)
    if not _same(gradient[1], gradient[0]):
        return ["KL as baseline"]
    if not _same(gradient[2], gradient[0]):
        return ["k1 as loss"]
    return ["KL never applied" if _same(value[2], value[0]) else "KL under no_grad"]
