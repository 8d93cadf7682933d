"""Answers to the exercises of lesson 01 as learners write them."""

import math
from functools import partial

import numpy as np
import torch


def kl(p, q):
    return (p * (p / q).log()).sum(dim=-1)


# Exercise 01-brake: right answers in other styles, then wrong ones with what they are told.


def brake_in_loops(theta, theta_ref, price):
    out = []
    for b in range(theta.shape[0]):
        total = torch.tensor(0.0)
        for t in range(theta.shape[1]):
            total = total + kl(theta[b, t].softmax(0), theta_ref[b, t].softmax(0))
        out.append(price * total)
    return torch.stack(out)


def brake_in_single_precision(logits, ref_logits, beta):
    p, q = logits.float().softmax(-1), ref_logits.float().softmax(-1)
    return beta * torch.einsum("btv,btv->b", p, p.log() - q.log())


def brake_by_torch(logits, ref_logits, beta):
    divergence = torch.nn.functional.kl_div(
        ref_logits.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none"
    )
    return beta * divergence.sum(dim=(1, 2))


def brake_with_a_guard(logits, ref_logits, beta):
    p, q = torch.softmax(logits, 2), torch.softmax(ref_logits, 2)
    ratio = torch.where(p > 0, p / q, 1)
    return [beta * (a * r.log()).sum() for a, r in zip(p, ratio, strict=True)]


def brake_that_writes_to_its_arguments(logits, ref_logits, beta):
    ref_logits -= ref_logits.logsumexp(-1, keepdim=True)
    log_p = logits.log_softmax(-1)
    return beta * (log_p.exp() * (log_p - ref_logits)).sum((1, 2))


WRONG_BRAKES = [
    (lambda x, r, b: b * kl(r.softmax(-1), x.softmax(-1)).sum(-1), "arguments are swapped"),
    (lambda x, r, b: kl(x.softmax(-1), r.softmax(-1)).sum(-1), "β is missing"),
    (lambda x, r, b: -b * kl(x.softmax(-1), r.softmax(-1)).sum(-1), "KL's sign is wrong"),
    (lambda x, r, b: b * kl(x.softmax(-1), r.softmax(-1)).mean(-1), "steps are averaged"),
    (lambda x, r, b: b * kl(x.softmax(-1), r.softmax(-1)).mean(), "shape is not right"),
    (lambda x, r, b: b * kl(x.softmax(-1), r.softmax(-1)), "step axis is still there"),
    (lambda x, r, b: b * kl(x.softmax(-1), r.softmax(-1)).sum(), "all responses are added up"),
    (lambda x, r, b: b * kl(x.softmax(-1), r.softmax(-1)).sum(0), "shape is not right"),
    (
        lambda x, r, b: b * (kl(x.softmax(-1), r.softmax(-1)) / math.log(2)).sum(-1),
        "the value is not right",
    ),
    (
        lambda x, r, b: b * kl(x.softmax(-1), r.softmax(-1)).sum(-1).detach(),
        "the KL has no gradient: ",
    ),
    (
        lambda x, r, b: (
            b * (x.softmax(-1).detach() * (x.log_softmax(-1) - r.log_softmax(-1))).sum((1, 2))
        ),
        "the KL has no gradient: ",
    ),
    (
        lambda x, r, b: b * (x.softmax(-1) * (x - r)).sum((1, 2)),
        "logits are not log-probabilities",
    ),
    (lambda x, r, b: b * kl(x.softmax(1), r.softmax(1)).sum(-1), "runs over the steps"),
    (lambda x, r, b: b * kl(x.softmax(0), r.softmax(0)).sum(-1), "runs over the responses"),
    (lambda x, r, b: b * kl(x.softmax(-1), r.softmax(-1)).mean(-1) * 3, "the value is not right"),
    (lambda x, r, b: b * kl(x.softmax(-1), r.softmax(-1))[:, :3].sum(-1), "the value is not"),
    (lambda x, r, b: b * kl(x.softmax(-1), r.softmax(-1)).sum(-1)[:2], "the shape is not right"),
    (brake_that_writes_to_its_arguments, "changes its argument ref_logits in place"),
    (lambda x, r, b: b * kl(x.mul_(1).softmax(-1), r.add_(1).softmax(-1)).sum(-1), "ref_logits in"),
    (lambda x, r, b: None, "returned None"),
    (lambda x, r, b: "0.5", "returned a str"),
]


# Exercise 01-objective.


def objective_in_loops(theta, theta_ref, reward, price):
    p, q = theta.exp() / theta.exp().sum(), theta_ref.exp() / theta_ref.exp().sum()
    j = 0
    for v in range(len(p)):
        if p[v] > 0:
            j = j + p[v] * reward[v] - price * p[v] * torch.log(p[v] / q[v])
    return j


def objective_with_a_guard(logits, ref_logits, rewards, beta):
    p, q = logits.softmax(0), ref_logits.softmax(0)
    return torch.dot(p, rewards) - beta * (p * torch.where(p > 0, p / q, 1).log()).sum()


def objective_in_two_terms(logits, ref_logits, rewards, beta):
    theta, theta_ref = logits.float(), ref_logits.float()
    log_p, log_q = theta - theta.logsumexp(0), theta_ref - theta_ref.logsumexp(0)
    p = log_p.exp()
    return (p @ rewards.float() - beta * torch.einsum("v,v->", p, log_p - log_q)).double()


def objective_by_xlogy(logits, ref_logits, rewards, beta):
    p, q = logits.softmax(0), ref_logits.softmax(0)
    return torch.dot(p, rewards) - beta * (torch.special.xlogy(p, p) - torch.xlogy(p, q)).sum()


def log_kl(x, q):
    return (x.softmax(0) * (x.log_softmax(0) - q.log_softmax(0))).sum()


WRONG_OBJECTIVES = [
    (lambda x, q, r, b: x.softmax(0) @ r - log_kl(x, q), "β is missing"),
    (lambda x, q, r, b: x.softmax(0) @ r + b * log_kl(x, q), "brake is added"),
    (lambda x, q, r, b: x.softmax(0) @ r - b * log_kl(q, x), "arguments are swapped"),
    (
        lambda x, q, r, b: x.softmax(0).detach() @ r - b * log_kl(x, q),
        "accelerator carries no gradient",
    ),
    (lambda x, q, r, b: x.softmax(0) @ r - b * log_kl(x, q).item(), "KL carries no gradient"),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b).item(), "no gradient reaches"),
    (lambda x, q, r, b: objective_in_loops(x, q, r.detach(), b), "no gradient reaches rewards"),
    (lambda x, q, r, b: r.mean() - b * log_kl(x, q), "averaged over the words"),
    (
        lambda x, q, r, b: sum(r - b * (x.log_softmax(0) - q.log_softmax(0))),
        "the words are not weighted",
    ),
    (lambda x, q, r, b: x.softmax(0) @ r - b * kl(x.softmax(0), q.softmax(0)), "nan comes of 0"),
    (objective_by_xlogy, "the gradient is not right: nan comes of 0"),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b)[None], "shape is not right"),
    (lambda x, q, r, b: -objective_in_loops(x, q, r, b), "its sign is"),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b).abs(), "take no abs"),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b).clamp(min=0), "do not cut it off"),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b) * len(r) / 3, "the value is not right"),
    (lambda x, q, r, b: objective_in_loops(x, q, r.sub_(r.mean()), b), "rewards in place"),
]


# Exercise 01-which-beta.


def which_beta_in_loops(reference, policy, reward):
    words = range(len(policy))
    u, v = next((u, v) for u in words for v in words if reward[u] > reward[v])
    tilt = math.log(policy[u] / reference[u]) - math.log(policy[v] / reference[v])
    return (reward[u] - reward[v]).item() / tilt


def which_beta_in_numpy(p_ref, p, rewards):
    return 1 / np.polyfit(rewards.numpy(), np.log(p.numpy() / p_ref.numpy()), 1)[0]


def which_beta_of(words, p_ref, p, rewards, log=torch.log):
    u, v = words
    log_ratio = log(p / p_ref)
    return (rewards[u] - rewards[v]) / (log_ratio[u] - log_ratio[v])


def which_beta_of_the_ends(p_ref, p, rewards, **how):
    return which_beta_of((rewards.argmax(), rewards.argmin()), p_ref, p, rewards, **how)


WRONG_WHICH_BETAS = [
    (partial(which_beta_of, (0, 1)), "0 / 0"),
    (partial(which_beta_of, (0, -1)), "the value is not right"),
    (lambda *given: 1 / which_beta_in_loops(*given), "this is 1 / β"),
    (lambda q, p, r: which_beta_of_the_ends(p, q, r), "β comes out negative"),
    (lambda q, p, r: which_beta_of_the_ends(1, p, r), "the reference is missing"),
    (partial(which_beta_of_the_ends, log=lambda x: x), "the logarithm is missing"),
    (partial(which_beta_of_the_ends, log=torch.log2), "the logarithm is natural"),
    (lambda q, p, r: max(r) / (p / q)[r.argmax()].log(), "in the difference of two"),
    (lambda q, p, r: torch.mean(r / (p.log() - q.log())), "a mean over words"),
    (lambda *given: round(which_beta_in_loops(*given), 1), "the value is not right"),
    (lambda *given: [which_beta_in_loops(*given)] * 2, "the shape is not right"),
    (lambda q, p, r: which_beta_in_loops(q, p, r.sub_(r.max())), "rewards in place"),
]


RIGHT = {
    "01-brake": [
        brake_in_loops,
        brake_in_single_precision,
        brake_by_torch,
        brake_with_a_guard,
    ],
    "01-objective": [objective_in_loops, objective_in_two_terms, objective_with_a_guard],
    "01-which-beta": [which_beta_in_loops, which_beta_in_numpy, which_beta_of_the_ends],
}

WRONG = {
    "01-brake": WRONG_BRAKES,
    "01-objective": WRONG_OBJECTIVES,
    "01-which-beta": WRONG_WHICH_BETAS,
}
