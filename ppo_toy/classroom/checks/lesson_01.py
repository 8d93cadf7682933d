"""Lesson 01, the objective: the brake of a response, J by hand, the best policy, the gradient."""

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
    logits, ref_logits, rewards = normal(3, *sizes(k, 1, low=3), generator=generator)
    beta, rewards = uniform(0.3, 1.3, generator), rewards + (0, 2, -2, 0)[k]
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


# The best policy of a table.


def _table(generator: Generator, k: int) -> dict:
    ref_logits, rewards = normal(2, *sizes(k, 1, low=3), generator=generator)
    beta = uniform(0.3, 1.3, generator)
    return {"p_ref": ref_logits.softmax(-1), "rewards": rewards, "beta": beta}


def _best_policy(p_ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """From the odds of every pair of words: pi*(u) / pi*(v), summed over u, is 1 / pi*(v)."""
    log_mass = p_ref.log() + rewards / beta
    return 1 / (log_mass.unsqueeze(0) - log_mass.unsqueeze(1)).exp().sum(-1)


BEST_POLICY = Exercise(
    name="01-best-policy",
    draw=_table,
    route=_best_policy,
    differentiate=("rewards",),
    own=("optimum",),
    mistakes={
        "β multiplies the reward; the exponent is R / β": lambda p, r, beta: (
            p.log() + r * beta
        ).softmax(-1),
        "β is missing": lambda p, r, beta: (p.log() + r).softmax(-1),
        "the reference is missing": lambda p, r, beta: (r / beta).softmax(-1),
        "the exponent's sign is wrong: more reward, more probability": lambda p, r, beta: (
            p.log() - r / beta
        ).softmax(-1),
        "it does not sum to 1: divide by Z": lambda p, r, beta: p * (r / beta).exp(),
        "p_ref holds probabilities: take its logarithm before a softmax": lambda p, r, beta: (
            p + r / beta
        ).softmax(-1),
        "β divides the reference too; only the reward is divided": lambda p, r, beta: (
            (p.log() + r) / beta
        ).softmax(-1),
        "this is the greedy policy; with a brake every word keeps a share":
            lambda p, r, beta: torch.eye(len(r), dtype=r.dtype)[r.argmax()],
        "Z carries no gradient: it depends on the rewards too":
            lambda p, r, beta: p * (r / beta).exp() / (p * (r / beta).exp()).sum().detach(),
    },
)  # fmt: skip


# The gradient of J with respect to the logits.


def _anywhere(generator: Generator, k: int) -> dict:
    """The policy is π* in case 1; in case 2 there is a word that it never says."""
    case = _words(generator, k)
    if k == 1:
        case["logits"] = case["ref_logits"] + case["rewards"] / case["beta"]
    if k == 2:
        case["logits"][0] = -800
    return case


def _gradient(logits: Tensor, ref_logits: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Autograd through `_objective`, which is itself another way."""
    theta = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(_objective(theta, ref_logits, rewards, beta), theta)[0]


def _net(x: Tensor, ref: Tensor, r: Tensor, beta: float) -> Tensor:
    return r - beta * log_ratio(x, ref)


def _covariance(p: Tensor, net: Tensor) -> Tensor:
    return p * (net - (p * net).sum())


GRADIENT = Exercise(
    name="01-gradient",
    draw=_anywhere,
    route=_gradient,
    own=("gradient", "exact"),
    mistakes={
        "J is not subtracted: what counts is the net worth above it":
            lambda x, ref, r, beta: x.softmax(-1) * _net(x, ref, r, beta),
        "the factor π(v) is missing":
            lambda x, ref, r, beta: _net(x, ref, r, beta) - x.softmax(-1) @ _net(x, ref, r, beta),
        "this is the gradient of the reward alone; the brake is missing":
            lambda x, ref, r, beta: _covariance(x.softmax(-1), r),
        "the sign is wrong: J is maximised, so its gradient points uphill":
            lambda x, ref, r, b: -_covariance(x.softmax(-1), _net(x, ref, r, b)),
        "β is missing": lambda x, ref, r, beta: _covariance(x.softmax(-1), _net(x, ref, r, 1.0)),
        "the brake pulls the wrong way: it is subtracted":
            lambda x, ref, r, beta: _covariance(x.softmax(-1), _net(x, ref, r, -beta)),
        "the plain mean is subtracted; J is the mean under the policy": lambda x, ref, r, beta: (
            x.softmax(-1) * (_net(x, ref, r, beta) - _net(x, ref, r, beta).mean())
        ),
        "J is subtracted without its brake":
            lambda x, ref, r, beta: x.softmax(-1) * (_net(x, ref, r, beta) - x.softmax(-1) @ r),
    },
)  # fmt: skip

EXERCISES = [BRAKE, OBJECTIVE, BEST_POLICY, GRADIENT]
