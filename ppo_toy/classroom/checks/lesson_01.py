"""Lesson 01, the objective: the brake of a response, J down to θ, and which β was used."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import KLS, log_ratio, normal, sizes, uniform
from ppo_toy.kl import kl_divergence as _kl

# The brake of a response: beta * sum_t KL(pi || ref).


def _steps(generator: Generator, k: int) -> dict:
    logits, ref_logits = normal(2, *sizes(k, 3), generator=generator)
    ref_logits[0, 0, 0] -= 12 * (k == 2)  # a log-ratio of 12
    logits[0, 0, 0] += 3 * (k == 2)
    return {"logits": logits, "ref_logits": ref_logits, "beta": uniform(0.3, 1.3, generator)}


def _brake(logits: Tensor, ref_logits: Tensor, beta: float) -> Tensor:
    """Word by word, in loops."""
    totals = []
    for response, ref_response in zip(logits, ref_logits, strict=True):
        total = 0
        for step, ref_step in zip(response, ref_response, strict=True):
            z, ref_z = step.exp().sum(), ref_step.exp().sum()
            for v in range(len(step)):
                p, q = step[v].exp() / z, ref_step[v].exp() / ref_z
                total = total + p * torch.log(p / q)
        totals.append(beta * total)
    return torch.stack(totals)


def _pay(kl=_kl, total=lambda kl: kl.sum(-1)):
    return lambda logits, ref_logits, beta: beta * total(kl(logits, ref_logits))


BRAKE = Exercise(
    name="01-brake",
    draw=_steps,
    route=_brake,
    differentiate=("logits",),
    own=("kl_divergence", "kl_of_log_probs", "masked_kl", "per_step_kl"),
    mistakes={text: _pay(kl) for text, kl in KLS.items()}
    | {
        "β is missing": lambda x, ref, b: _pay()(x, ref, 1),
        "the brake is divided by β instead of multiplied": lambda x, ref, b: _pay()(x, ref, 1 / b),
        "the steps are averaged; J has their sum": _pay(total=lambda kl: kl.mean(-1)),
        "all responses are added up; one number for each is wanted": _pay(total=torch.sum),
        "the step axis is still there: add up the steps": _pay(total=lambda kl: kl),
    },
)


# J of a policy over V words, exactly.


def _words(generator: Generator, k: int) -> dict:
    """The policy is π* in case 1; in case 2 there is a word that it never says."""
    logits, ref_logits, rewards = normal(3, *sizes(k, 1, low=3), generator=generator)
    beta, rewards = uniform(0.3, 1.3, generator), rewards + (0, 2, -2, 0)[k]
    if k == 1:
        logits = ref_logits + rewards / beta
    if k == 2:
        logits[0] = -800
    return {"logits": logits, "ref_logits": ref_logits, "rewards": rewards, "beta": beta}


def _objective(logits: Tensor, ref_logits: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J = beta * (log Z - KL(pi || pi*)): the gap to the best policy is a KL."""
    best = ref_logits.log_softmax(-1) + rewards / beta
    return beta * (best.logsumexp(-1) - _kl(logits, best))


def _j(p: Tensor, logits: Tensor, ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    return (p * (rewards - beta * log_ratio(logits, ref))).sum()


OBJECTIVE = Exercise(
    name="01-objective",
    draw=_words,
    route=_objective,
    differentiate=("logits", "rewards"),
    own=("penalized_objective", "evaluate", "kl_divergence", "kl_of_log_probs"),
    mistakes={
        "β is missing": lambda x, ref, r, beta: _j(x.softmax(-1), x, ref, r, 1.0),
        "the brake is added; it has to be subtracted":
            lambda x, ref, r, beta: _j(x.softmax(-1), x, ref, r, -beta),
        "the brake is missing": lambda x, ref, r, beta: x.softmax(-1) @ r,
        "the accelerator is missing: no reward in it":
            lambda x, ref, r, beta: _j(x.softmax(-1), x, ref, 0 * r, beta),
        "the KL's arguments are swapped: the policy stands first":
            lambda x, ref, r, beta: x.softmax(-1) @ r - beta * _kl(ref, x),
        "the reward is averaged over the words, not over the policy":
            lambda x, ref, r, beta: r.mean() - beta * _kl(x, ref),
        "the expectation is the reference's, not the policy's":
            lambda x, ref, r, beta: _j(ref.softmax(-1), x, ref, r, beta),
        "β stands before the reward; it is the price of the KL":
            lambda x, ref, r, beta: beta * (x.softmax(-1) @ r) - _kl(x, ref),
        "one number is wanted: add up the words":
            lambda x, ref, r, beta: x.softmax(-1) * (r - beta * log_ratio(x, ref)),
        "the probabilities carry no gradient: they depend on θ too":
            lambda x, ref, r, beta: _j(x.softmax(-1).detach(), x, ref, r, beta),
        "the KL carries no gradient: it depends on θ too":
            lambda x, ref, r, beta: x.softmax(-1) @ r - beta * _kl(x, ref).detach(),
        "the accelerator carries no gradient: it depends on θ too":
            lambda x, ref, r, beta: x.softmax(-1).detach() @ r - beta * _kl(x, ref),
    },
)  # fmt: skip


# Which beta a run was trained with, and what the slip costs.


def _at_a_top(generator: Generator, k: int) -> dict:
    """Two words earn the same in case 1; one should be said and never is in 2; a tiny beta in 3."""
    ref_logits, rewards = normal(2, *sizes(k, 1, low=3), generator=generator)
    used, beta = uniform(0.3, 0.7, generator), uniform(0.9, 1.8, generator)
    if k == 1:
        rewards[1] = rewards[0]
    if k == 2:
        rewards, used, beta = (rewards / 10).round(decimals=2), used / 100, beta * 4
        rewards[0] -= 8
    p = (ref_logits.log_softmax(-1) + rewards / used).softmax(-1)
    beta = 0.001 if k == 3 else beta
    return {"p_ref": ref_logits.softmax(-1), "p": p, "rewards": rewards, "beta": beta}


def _slope(x: Tensor, y: Tensor) -> Tensor:
    """Of the straight line through all the points (x, y)."""
    x = x - x.mean()
    return (x * y).sum() / (x * x).sum()


def _which_beta(p_ref: Tensor, p: Tensor, rewards: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """A line through all words, and the gap as a KL."""
    said = p > 0
    used = _slope((p[said].log() - p_ref[said].log()), rewards[said])
    return used, beta * _kl(p.log(), p_ref.log() + rewards / beta)


def _but(used=lambda x: x, cost=lambda x, p_ref, p, r, beta: x):
    """The right answer but for what becomes of either number."""

    def answer(*given):
        x, y = _which_beta(*given)
        return used(x), cost(y, *given)

    return answer


def _without_reference(p_ref: Tensor, p: Tensor, r: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    ends = torch.stack([r.argmax(), torch.where(p > 0, r, torch.inf).argmin()])
    return _slope(p[ends].log(), r[ends]), _which_beta(p_ref, p, r, beta)[1]


def _best(p_ref: Tensor, r: Tensor, beta: float) -> Tensor:
    return p_ref.log() + r / beta


WHICH_BETA = Exercise(
    name="01-which-beta",
    draw=_at_a_top,
    route=_which_beta,
    own=("optimum", "evaluate", "kl_divergence", "kl_of_log_probs"),
    mistakes={
        "this is 1 / β: reward differs by β times the log-ratio": _but(lambda x: 1 / x),
        "β comes out negative: the log-ratio is log p − log p_ref": _but(lambda x: -x),
        "the reference is missing: it is the log-ratio that grows with the reward":
            _without_reference,
        "the cost is measured with the β of the file, not with the one that was used":
            _but(cost=lambda x, *_: 0 * x),
        "the cost's sign is wrong: J* is the larger one": _but(cost=lambda x, *_: -x),
        "the cost is β times a KL; β is missing": _but(cost=lambda x, q, p, r, beta: x / beta),
        "the cost is β KL(p ‖ π*): the policy that came out stands first":
            _but(cost=lambda x, q, p, r, beta: beta * _kl(_best(q, r, beta), p.log())),
        "this is the brake, β times the KL to the reference; the cost is J* − J":
            _but(cost=lambda x, q, p, r, beta: beta * _kl(p.log(), q.log())),
        "a word that is never said counts in J*: Z runs over all words":
            _but(cost=lambda x, q, p, r, beta: beta * _kl(p.log(), _best(q * (p > 0), r, beta))),
        "this is what the reference misses":
            _but(cost=lambda x, q, p, r, beta: beta * _kl(q.log(), _best(q, r, beta))),
        "this is J*; the cost is J* − J":
            _but(cost=lambda x, q, p, r, beta: beta * _best(q, r, beta).logsumexp(-1)),
    },
)  # fmt: skip

EXERCISES = [BRAKE, OBJECTIVE, WHICH_BETA]
