"""Lesson 01, the objective: the brake of a response, J down to θ, and which β was used."""

import math

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
        "the words are not weighted: each counts with its probability under the policy":
            lambda x, ref, r, beta: (r - beta * log_ratio(x, ref)).sum(),
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


# Which beta a run was trained with.


def _at_a_top(generator: Generator, k: int) -> dict:
    """The first two words earn the same in case 1, the first and the last in case 2."""
    ref_logits, rewards = normal(2, *sizes(k, 1, low=3), generator=generator)
    used = uniform(0.1, 0.2, generator) if k == 3 else uniform(0.4, 2.5, generator)
    if k in (1, 2):
        rewards[1 if k == 1 else -1] = rewards[0]
        rewards[2 if k == 1 else 1] = rewards[0] + 0.5  # never all the same
    p = (ref_logits.log_softmax(-1) + rewards / used).softmax(-1)
    return {"p_ref": ref_logits.softmax(-1), "p": p, "rewards": rewards}


def _which_beta(p_ref: Tensor, p: Tensor, rewards: Tensor) -> Tensor:
    """The slope of a straight line through all words."""
    x = (p / p_ref).log()
    x = x - x.mean()
    return (x * rewards).sum() / (x * x).sum()


def _slope(x: Tensor, rewards: Tensor) -> Tensor:
    """Of the reward, from the worst word to the best."""
    best, worst = rewards.argmax(), rewards.argmin()
    return (rewards[best] - rewards[worst]) / (x[best] - x[worst])


WHICH_BETA = Exercise(
    name="01-which-beta",
    draw=_at_a_top,
    route=_which_beta,
    own=("optimum", "evaluate"),
    mistakes={
        "this is 1 / β: reward differs by β times the log-ratio":
            lambda *given: 1 / _which_beta(*given),
        "β comes out negative: the log-ratio is log p − log p_ref":
            lambda *given: -_which_beta(*given),
        "the reference is missing: it is the log-ratio that grows with the reward":
            lambda q, p, r: _slope(p.log(), r),
        "the logarithm is missing: reward differs by β times the log-ratio":
            lambda q, p, r: _slope(p / q, r),
        "the logarithm is natural: β is a price per nat":
            lambda *given: math.log(2) * _which_beta(*given),
        "log Z is in each log-ratio; it goes away in the difference of two":
            lambda q, p, r: r.max() / (p / q).log()[r.argmax()],
        "each word has log Z in it, and a mean over words does not remove it":
            lambda q, p, r: (r / (p / q).log()).mean(),
    },
)  # fmt: skip

EXERCISES = [BRAKE, OBJECTIVE, WHICH_BETA]
