"""Answers to the exercises of lesson 04 as learners write them."""

import math

import numpy as np
import torch


def kl(p, q):
    return (p * (p / q).log()).sum(dim=-1)


# Exercise 04-left-to-earn: right answers in other styles, then wrong ones with what they are told.


def top_and_gap_as_a_difference(theta, ref, reward, price):
    p = theta.softmax(1)
    top = price * torch.log((ref * torch.exp(reward / price)).sum(1))
    return top, top - ((p * reward).sum(1) - price * kl(p, ref))


def top_and_gap_in_single_precision(logits, p_ref, rewards, beta):
    p, q, r = logits.float().softmax(-1), p_ref.float(), rewards.float()
    tops, gaps = [], []
    for i in range(len(p)):
        mass = q[i] * (r[i] / beta).exp()
        tops.append(beta * mass.sum().log())
        gaps.append(beta * kl(p[i], mass / mass.sum()))
    return torch.stack(tops), torch.stack(gaps)


def top_and_gap_in_logs(logits, p_ref, rewards, beta):
    tilted = p_ref.log() + rewards / beta
    log_z, best = torch.logsumexp(tilted, 1), tilted.log_softmax(1)
    kl = torch.nn.functional.kl_div(best, logits.log_softmax(1), log_target=True, reduction="none")
    return beta * torch.stack([log_z, kl.sum(1)])


def top_and_gap_in_lists(logits, p_ref, rewards, beta):
    tops, gaps = [], []
    for x, q, r in zip(logits.float(), p_ref.float(), rewards.float(), strict=True):
        log_p, most = torch.log_softmax(x, 0), r.max().detach()
        tops.append(most + beta * (q * ((r - most) / beta).exp()).sum().log())
        gaps.append(tops[-1] - log_p.exp() @ (r - beta * (log_p - q.log())))
    return [tops, gaps]


def top(q, r, b):
    return b * (q.log() + r / b).logsumexp(-1)


def best(q, r, b):
    return (q.log() + r / b).softmax(-1)


def worth(x, q, r, b):
    return (x.softmax(-1) * r).sum(-1) - b * kl(x.softmax(-1), q)


WRONG_GAPS = [
    (lambda x, q, r, b: (top(q, r, b), kl(x.softmax(-1), best(q, r, b))), "gap: β is missing"),
    (lambda x, q, r, b: (top(q, r, b), b * kl(x.softmax(-1), q)), "it has to be to π*"),
    (lambda x, q, r, b: (top(q, r, b), b * kl(best(q, r, b), x.softmax(-1))), "are swapped"),
    (lambda x, q, r, b: (top(q, r, b), worth(x, q, r, b) - top(q, r, b)), "sign is wrong"),
    (lambda x, q, r, b: (top(q, r, b), worth(x, q, r, b)), "J itself"),
    (
        lambda x, q, r, b: (top(q, r, b), top(q, r, b) - (x.softmax(-1) * r).sum(-1)),
        "the brake is missing",
    ),
    (lambda x, q, r, b: (top(q, r, b) / b, top(q, r, b) - worth(x, q, r, b)), "J*: β is missing"),
    (
        lambda x, q, r, b: (
            (best(q, r, b) * r).sum(-1),
            b * kl(x.softmax(-1), best(q, r, b)),
        ),
        "this is R*",
    ),
    (
        lambda x, q, r, b: (top(q, r, b), b * kl(x.softmax(-1), best(q, r, b)))[::-1],
        "wrong order",
    ),
    (
        lambda x, q, r, b: (
            top(q, r, b),
            top_and_gap_in_logs(x, q, r, b)[1] - top(q, r, b) + top(q, r, b).detach(),
        ),
        "no gradient to J*",
    ),
    (
        lambda x, q, r, b: (top(q, r, b), b * kl(x.detach().softmax(-1), best(q, r, b))),
        "nan comes of 0 · log 0",
    ),
    (
        lambda x, q, r, b: top_and_gap_in_logs(x.detach(), q, r, b),
        "no gradient reaches logits",
    ),
    (top_and_gap_as_a_difference, "nan comes of"),
    (top_and_gap_in_single_precision, "nan comes of"),
    (lambda *a: top_and_gap_in_logs(*a).clamp(min=0.01), "the value is not right"),
    (lambda *a: top_and_gap_in_logs(*a).clamp(max=1), "the value is not right"),
    (lambda *a: top_and_gap_in_logs(*a).abs(), "take no abs"),
    (lambda *a: top_and_gap_in_logs(*a).relu(), "do not cut it off"),
    (lambda x, q, r, b: top_and_gap_in_logs(x, q, r.sub_(1), b) + 1, "rewards in place"),
    (lambda x, q, r, b: (top(q, r, b)[:2], worth(x, q, r, b)[:2]), "the shape is not right"),
    (lambda x, q, r, b: (top(q, r, b).mean(), worth(x, q, r, b).mean()), "the shape is not right"),
    (lambda x, q, r, b: (top(q, r, b), 0 * top(q, r, b)), "the value is not right"),
]


# Exercise 04-diagnose.


def diagnose_in_loops(betas, kls, rewards):
    missed = []
    for g in range(len(betas)):
        worth = [(r - betas[g] * kl).item() for kl, r in zip(kls, rewards, strict=True)]
        missed.append(max(worth) - worth[g])
    return missed, int(np.argmax(missed))


def diagnose_in_numpy(betas, kls, rewards):
    b, kl, r = (x.numpy().astype(np.float32) for x in (betas, kls, rewards))
    missed = (r - np.outer(b, kl)).max(axis=1) - (r - b * kl)
    return np.array(missed), missed.argmax()


def diagnose_by_differences(betas, kls, rewards):
    more, further = rewards - rewards[:, None], kls - kls[:, None]
    missed = (more - betas[:, None] * further).max(dim=1).values
    return [missed, torch.argsort(missed)[-1]]


def own_worths(b, kl, r):
    worth = r - b * kl
    return worth.max() - worth, (worth.max() - worth).argmax()


def missed(b, kl, r):
    return diagnose_by_differences(b, kl, r)[0]


WRONG_DIAGNOSES = [
    (own_worths, "counted at their own β"),
    (lambda b, kl, r: diagnose_in_loops(torch.ones(len(b)), kl, r), "β is missing"),
    (lambda b, kl, r: (r.max() - r, r.argmin()), "the brake is missing"),
    (lambda b, kl, r: diagnose_in_numpy(-b, kl, r), "sign of the brake"),
    (lambda b, kl, r: diagnose_in_numpy(b, kl.relu(), r), "do not cut it off"),
    (lambda b, kl, r: diagnose_in_numpy(b, kl.abs(), r), "take no abs"),
    (lambda b, kl, r: (-missed(b, kl, r), missed(b, kl, r).argmax()), "the sign is wrong"),
    (lambda b, kl, r: (missed(b, kl, r), missed(b, kl, r).argmin()), "misses least"),
    (lambda b, kl, r: (missed(b, kl, r), missed(b, kl, r).argmax() + 1), "the value is not right"),
    (lambda b, kl, r: (r - b * kl, (r - b * kl).argmin()), "the value is not right"),
    (missed, "the shape is not right"),
    (lambda b, kl, r: diagnose_by_differences(b, kl.clamp_(min=0), r), "kls in place"),
]


# Exercise 04-controller.


def controller_in_loops(price, kls, counts, target, h):
    out = []
    for g in range(len(price)):
        spent = [kls[g, i][counts[g, i]].sum().item() for i in range(kls.shape[1])]
        error = sum(spent) / len(spent) / target - 1
        error = max(-0.2, min(0.2, error))
        out.append(price[g].item() * (1 + error * len(spent) / h))
    return np.array(out)


def controller_by_einsum(beta, kl, mask, kl_target, horizon):
    n = kl.shape[1]
    spent = torch.einsum("gbt,gbt->g", kl.float(), mask.float()) / n
    return beta + beta * torch.clip(spent / kl_target - 1, -0.2, 0.2) * n / horizon


def controller_as_a_list(beta, kl, mask, kl_target, horizon):
    def step(b, run, counts):
        nats = torch.where(counts, run, 0).sum() / counts.shape[0]
        return b + b * min(0.2, max(-0.2, float(nats / kl_target - 1))) * len(run) / horizon

    return list(map(step, beta, kl, mask))


def controller_that_writes_to_its_arguments(beta, kl, mask, kl_target, horizon):
    kl[~mask] = 0
    beta *= 1 + (kl.sum(2).mean(1) / kl_target - 1).clamp(-0.2, 0.2) * kl.shape[1] / horizon
    return beta


def per_token(beta, kl, mask, kl_target, horizon):
    out = []
    for g in range(len(beta)):
        error = (kl[g][mask[g]].mean() / kl_target - 1).clamp(-0.2, 0.2)
        out.append(beta[g] * (1 + error * kl.shape[1] / horizon))
    return torch.stack(out)


def spent(kl, mask):
    return (kl * mask).sum(2).mean(1)


WRONG_CONTROLLERS = [
    (per_token, "the bug is still there"),
    (
        lambda b, k, m, c, h: (
            b * (1 + ((k * m).mean((1, 2)) / c - 1).clamp(-0.2, 0.2) * k.shape[1] / h)
        ),
        "still runs over steps",
    ),
    (
        lambda b, k, m, c, h: (
            b * (1 + (k.sum(2).mean(1) / c - 1).clamp(-0.2, 0.2) * k.shape[1] / h)
        ),
        "padding counts",
    ),
    (lambda b, k, m, c, h: b * (1 + (spent(k, m) / c - 1) * k.shape[1] / h), "the clip is missing"),
    (
        lambda b, k, m, c, h: b * (1 + ((spent(k, m) / c - 1) * k.shape[1] / h).clamp(-0.2, 0.2)),
        "not its product",
    ),
    (
        lambda b, k, m, c, h: b * (1 - (spent(k, m) / c - 1).clamp(-0.2, 0.2) * k.shape[1] / h),
        "the sign is wrong",
    ),
    (
        lambda b, k, m, c, h: b * (1 + (spent(k, m) / c - 1).clamp(-0.2, 0.2) * len(k) / h),
        "not of runs",
    ),
    (lambda b, k, m, c, h: b * (1 + (spent(k, m) / c - 1).clamp(-0.2, 0.2) / h), "n is missing"),
    (
        lambda b, k, m, c, h: b * (1 + (spent(k, m) - c).clamp(-0.2, 0.2) * k.shape[1] / h),
        "the error is relative",
    ),
    (lambda b, k, m, c, h: b * math.exp(0.1), "the value is not right"),
    (
        lambda b, k, m, c, h: b * (1 + (spent(k, m) / c - 1).clamp(-0.2, 0.2) * 3 / h),
        "the value is not right",
    ),
    (
        lambda b, k, m, c, h: b * (1 + (spent(k, m) / c - 1).clamp(max=0.2) * k.shape[1] / h),
        "the value is not right",
    ),
    (
        lambda b, k, m, c, h: (
            b
            * (1 + (spent(k, m) / m[0].sum() * m[0].numel() / c - 1).clamp(-0.2, 0.2) * len(k) / h)
        ),
        "the value is not right",
    ),
    (lambda b, k, m, c, h: controller_by_einsum(b, k.abs(), m, c, h), "the value is not right"),
    (lambda b, k, m, c, h: controller_in_loops(b, k.relu(), m, c, h), "do not cut it off"),
    (controller_that_writes_to_its_arguments, "changes its argument beta in place"),
    (lambda b, k, m, c, h: controller_in_loops(b, k, m, c, h)[0], "the shape is not right"),
]


RIGHT = {
    "04-left-to-earn": [top_and_gap_in_logs, top_and_gap_in_lists],
    "04-diagnose": [diagnose_in_loops, diagnose_in_numpy, diagnose_by_differences],
    "04-controller": [
        controller_in_loops,
        controller_by_einsum,
        controller_as_a_list,
    ],
}

WRONG = {
    "04-left-to-earn": WRONG_GAPS,
    "04-diagnose": WRONG_DIAGNOSES,
    "04-controller": WRONG_CONTROLLERS,
}
