"""Answers to the exercises of lesson 01 as learners write them."""

import math

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
        j = j + p[v] * reward[v] - price * p[v] * torch.log(p[v] / q[v])
    return j


def objective_by_xlogy(logits, ref_logits, rewards, beta):
    p, q = logits.softmax(0), ref_logits.softmax(0)
    return torch.dot(p, rewards) - beta * (torch.special.xlogy(p, p) - torch.xlogy(p, q)).sum()


def objective_in_two_terms(logits, ref_logits, rewards, beta):
    p = logits.float().softmax(0)
    return (p @ rewards.float() - beta * kl(p, ref_logits.float().softmax(0))).double()


WRONG_OBJECTIVES = [
    (lambda x, q, r, b: x.softmax(0) @ r - kl(x.softmax(0), q.softmax(0)), "β is missing"),
    (lambda x, q, r, b: x.softmax(0) @ r + b * kl(x.softmax(0), q.softmax(0)), "brake is added"),
    (
        lambda x, q, r, b: x.softmax(0) @ r - b * kl(q.softmax(0), x.softmax(0)),
        "arguments are swapped",
    ),
    (
        lambda x, q, r, b: x.softmax(0).detach() @ r - b * kl(x.softmax(0), q.softmax(0)),
        "accelerator carries no gradient",
    ),
    (
        lambda x, q, r, b: x.softmax(0) @ r - b * kl(x.softmax(0), q.softmax(0)).item(),
        "KL carries no gradient",
    ),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b).item(), "no gradient reaches"),
    (lambda x, q, r, b: objective_in_loops(x, q, r.detach(), b), "no gradient reaches rewards"),
    (lambda x, q, r, b: r.mean() - b * kl(x.softmax(0), q.softmax(0)), "averaged over the words"),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b)[None], "shape is not right"),
    (lambda x, q, r, b: -objective_in_loops(x, q, r, b), "its sign is"),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b).abs(), "take no abs"),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b).clamp(min=0), "do not cut it off"),
    (lambda x, q, r, b: objective_in_loops(x, q, r, b) * len(r) / 3, "the value is not right"),
    (lambda x, q, r, b: objective_in_loops(x, q, r.sub_(r.mean()), b), "rewards in place"),
]


# Exercise 01-best-policy.


def best_policy_in_loops(p, reward, price):
    mass = [p[v] * math.e ** (reward[v] / price) for v in range(len(p))]
    return torch.stack([m / sum(mass) for m in mass])


def best_policy_in_a_list(p_ref, rewards, beta):
    top = rewards.max().detach()
    mass = p_ref * torch.exp((rewards - top) / beta)
    return list(mass / torch.einsum("v->", mass))


def best_policy_in_single_precision(p_ref, rewards, beta):
    mass = p_ref.float() * (rewards.float() / beta).exp()
    return mass / mass.sum()


WRONG_BEST_POLICIES = [
    (lambda p, r, b: p * (r * b).exp() / (p * (r * b).exp()).sum(), "the exponent is R / β"),
    (lambda p, r, b: p * (r / b).exp(), "does not sum to 1"),
    (lambda p, r, b: (r / b).softmax(0), "the reference is missing"),
    (lambda p, r, b: (p + r / b).softmax(0), "take its logarithm"),
    (lambda p, r, b: (p.log() - r / b).softmax(0), "sign is wrong"),
    (lambda p, r, b: ((p.log() + r) / b).softmax(0), "β divides the reference too"),
    (lambda p, r, b: (p.log() + r / b).softmax(0).detach(), "no gradient reaches"),
    (lambda p, r, b: (r == r.max()).double(), "greedy"),
    (lambda p, r, b: (p.log() + r / b)[:3].softmax(0), "the shape is not right"),
    (lambda p, r, b: p * (r / b).exp() / (p @ (r / b).exp()) * len(p) / 3, "the value is not"),
    (lambda p, r, b: (p.log() + r / b).softmax(0).numpy(force=True), "no gradient reaches"),
    (lambda p, r, b: p.mul_((r / b).exp()) / p.sum(), "p_ref in place"),
    (lambda p, r, b: (p.log() + r / b).log_softmax(0), "the value is not right"),
]


# Exercise 01-gradient.


def gradient_by_autograd(theta, theta_ref, reward, price):
    theta = theta.clone().requires_grad_()
    objective_in_loops(theta, theta_ref, reward, price).backward()
    return theta.grad


def gradient_by_jacobian(theta, theta_ref, reward, price):
    def j(x):
        log_p = torch.log_softmax(x, 0)
        return (log_p.exp() * (reward - price * (log_p - theta_ref.log_softmax(0)))).sum()

    return torch.func.grad(j)(theta).tolist()


def gradient_in_plain_python(logits, ref_logits, rewards, beta):
    log_p, log_q = ((x - x.logsumexp(0)).tolist() for x in (logits, ref_logits))
    f = [r - beta * (a - b) for r, a, b in zip(rewards.tolist(), log_p, log_q, strict=True)]
    p = [math.exp(a) for a in log_p]
    j = sum(a * b for a, b in zip(p, f, strict=True))
    return tuple(a * (b - j) for a, b in zip(p, f, strict=True))


def gradient_with_a_guard(logits, ref_logits, rewards, beta):
    p, q = logits.softmax(0).numpy(), ref_logits.softmax(0).numpy()
    f = rewards.numpy() - beta * np.log(np.where(p > 0, p / q, 1))
    return p * (f - p @ f)


def gradient_in_numpy(logits, ref_logits, rewards, beta):
    p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum() for x in (logits, ref_logits))
    with np.errstate(all="ignore"):
        f = rewards.numpy() - beta * np.log(p / q)
    with np.errstate(all="ignore"):
        return p * (f - p @ f)


WRONG_GRADIENTS = [
    (lambda x, q, r, b: -gradient_by_autograd(x, q, r, b), "sign is wrong"),
    (lambda x, q, r, b: gradient_by_autograd(x, q, r, 1.0), "β is missing"),
    (lambda x, q, r, b: gradient_by_autograd(x, q, r, 0.0), "the brake is missing"),
    (lambda x, q, r, b: gradient_by_autograd(x, q, r, -b), "wrong way"),
    (lambda x, q, r, b: gradient_by_autograd(x, q, r, b) / x.softmax(0), "factor π(v) is missing"),
    (lambda x, q, r, b: gradient_by_autograd(x, q, r, b) / len(x), "the value is not right"),
    (gradient_by_autograd, "nan comes of 0 · log 0"),
    (gradient_in_numpy, "nan comes of 0 · log 0"),
    (lambda *a: gradient_by_jacobian(*a)[:3], "the shape is not right"),
    (lambda *a: np.abs(gradient_by_jacobian(*a)), "take no abs"),
    (lambda *a: np.array(gradient_by_jacobian(*a)).clip(min=0), "do not cut it off"),
    (
        lambda x, q, r, b: x.softmax(0) * (r - b * (x.softmax(0) / q.softmax(0)).log()),
        "J is not subtracted",
    ),
]


RIGHT = {
    "01-brake": [
        brake_in_loops,
        brake_in_single_precision,
        brake_by_torch,
        brake_with_a_guard,
    ],
    "01-objective": [objective_in_loops, objective_in_two_terms, objective_by_xlogy],
    "01-best-policy": [
        best_policy_in_loops,
        best_policy_in_single_precision,
        best_policy_in_a_list,
    ],
    "01-gradient": [gradient_by_jacobian, gradient_in_plain_python, gradient_with_a_guard],
}

WRONG = {
    "01-brake": WRONG_BRAKES,
    "01-objective": WRONG_OBJECTIVES,
    "01-best-policy": WRONG_BEST_POLICIES,
    "01-gradient": WRONG_GRADIENTS,
}
