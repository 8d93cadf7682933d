"""Answers to the exercises of lesson 04 as learners write them."""

import math

import numpy as np
import torch


def kl(p, q):
    return (p * (p / q).log()).sum(dim=-1)


# Exercise 04-left-to-earn: right answers in other styles, then wrong ones with what they are told.


def top_and_gap_as_a_difference(theta, ref, reward, price):
    p = theta.softmax(0)
    top = price * torch.log((ref * torch.exp(reward / price)).sum())
    return top, top - (p @ reward - price * kl(p, ref))


def top_and_gap_in_logs(logits, p_ref, rewards, beta):
    tilted = p_ref.log() + rewards / beta
    log_z, best = torch.logsumexp(tilted, 0), tilted.log_softmax(0)
    kl = torch.nn.functional.kl_div(best, logits.log_softmax(0), log_target=True, reduction="sum")
    return beta * torch.stack([log_z, kl])


def top_and_gap_in_loops(logits, p_ref, rewards, beta):
    log_p, most = torch.log_softmax(logits.float(), 0).tolist(), rewards.max().item()
    listed = list(zip(log_p, p_ref.tolist(), rewards.tolist(), strict=True))
    z = sum(q * math.exp((r - most) / beta) for _, q, r in listed)
    top = most + beta * math.log(z)
    return [top, top - sum(math.exp(x) * (r - beta * (x - math.log(q))) for x, q, r in listed)]


def top(q, r, b):
    return b * (q.log() + r / b).logsumexp(-1)


def best(q, r, b):
    return (q.log() + r / b).softmax(-1)


def worth(x, q, r, b):
    return x.softmax(-1) @ r - b * kl(x.softmax(-1), q)


def gap(x, q, r, b):
    return top_and_gap_in_logs(x, q, r, b)[1]


WRONG_GAPS = [
    (lambda *z: (top(*z[1:]), gap(*z) / z[3]), "gap: β is missing"),
    (lambda x, q, r, b: (top(q, r, b), b * kl(x.softmax(-1), q)), "it has to be to π*"),
    (lambda x, q, r, b: (top(q, r, b), b * kl(best(q, r, b), x.softmax(-1))), "are swapped"),
    (lambda *z: (top(*z[1:]), -gap(*z)), "its sign is"),
    (lambda x, q, r, b: (top(q, r, b), worth(x, q, r, b)), "J itself"),
    (lambda x, q, r, b: (top(q, r, b), top(q, r, b) - x.softmax(-1) @ r), "the brake is missing"),
    (lambda *z: (top(*z[1:]) / z[3], gap(*z)), "J*: β is missing"),
    (lambda *z: (best(*z[1:]) @ z[2], gap(*z)), "this is R*"),
    (lambda x, q, r, b: top_and_gap_in_logs(x, 0 * q + 1, r, b), "the reference is missing in Z"),
    (lambda x, q, r, b: top_and_gap_in_logs(x, q.exp(), r, b), "the value is not right"),
    (lambda *z: top_and_gap_in_logs(*z).flip(0), "wrong order"),
    (
        lambda x, q, r, b: (top(q, r, b), b * kl(x.softmax(-1), best(q, r, b))),
        "nan comes of 0 · log 0",
    ),
    (top_and_gap_as_a_difference, "nan comes of"),
    (lambda *a: top_and_gap_in_logs(*a).clamp(min=0.01), "the value is not right"),
    (lambda *a: top_and_gap_in_logs(*a).clamp(max=1), "the value is not right"),
    (lambda *a: top_and_gap_in_logs(*a).abs(), "take no abs"),
    (lambda *a: top_and_gap_in_logs(*a).relu(), "do not cut it off"),
    (lambda x, q, r, b: top_and_gap_in_logs(x, q, r.sub_(1), b) + 1, "rewards in place"),
    (lambda *a: top_and_gap_in_logs(*a)[:1], "the shape is not right"),
    (lambda x, q, r, b: (top(q, r, b), 0), "the value is not right"),
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


def with_best(of):
    def answer(b, kl, r):
        missed = of(b, kl, r) - (r - b * kl)
        return missed, missed.argmax()

    return answer


WRONG_DIAGNOSES = [
    (own_worths, "counted at their own β"),
    (lambda b, kl, r: diagnose_in_loops(torch.ones(len(b)), kl, r), "β is missing"),
    (lambda b, kl, r: (r.max() - r, r.argmin()), "the brake is missing"),
    (lambda b, kl, r: diagnose_in_numpy(-b, kl, r), "sign of the brake"),
    (lambda b, kl, r: diagnose_in_numpy(b, kl.relu(), r), "do not cut it off"),
    (lambda b, kl, r: diagnose_in_numpy(b, kl.abs(), r), "take no abs"),
    (lambda b, kl, r: (-missed(b, kl, r), missed(b, kl, r).argmax()), "its sign is"),
    (lambda b, kl, r: (missed(b, kl, r), missed(b, kl, r).argmin()), "misses least"),
    (lambda b, kl, r: (missed(b, kl, r), missed(b, kl, r).argmax() + 1), "the value is not right"),
    (lambda b, kl, r: (r - b * kl, (r - b * kl).argmin()), "the value is not right"),
    (missed, "the shape is not right"),
    (lambda b, kl, r: diagnose_in_numpy(*[x.flip(0) for x in (b, kl, r)]), "the value is not"),
    (with_best(lambda b, kl, r: (r - b * kl[:, None]).amax(1)), "of the same run"),
    (with_best(lambda b, kl, r: (r - (b * kl)[:, None]).amax(1)), "the brake is missing"),
    (with_best(lambda b, kl, r: (r[:, None] - b * kl[:, None]).amax(1)), "with itself at all"),
    (
        with_best(lambda b, kl, r: (r - b[:, None] * kl - 99 * torch.eye(len(b))).amax(1)),
        "where it is the best, it misses 0",
    ),
    (lambda b, kl, r: diagnose_by_differences(b, kl.clamp_(min=0), r), "kls in place"),
]


# Exercise 04-controller.


def controller_in_loops(price, kls, counts, target, h):
    spent = [x[c].sum().item() for x, c in zip(kls, counts, strict=True)]
    error = max(-0.2, min(0.2, sum(spent) / len(spent) / target - 1))
    return price * (1 + error * len(spent) / h)


def controller_by_einsum(beta, kl, mask, kl_target, horizon):
    n = kl.shape[0]
    spent = torch.einsum("bt,bt->", kl.float(), mask.float()) / n
    return beta + beta * torch.clip(spent / kl_target - 1, -0.2, 0.2) * n / horizon


def controller_in_numpy(beta, kl, mask, kl_target, horizon):
    nats = np.where(mask.numpy(), kl.numpy(), 0).sum(axis=1).mean()
    return np.array(beta + beta * np.clip(nats / kl_target - 1, -0.2, 0.2) * len(kl) / horizon)


def controller_that_writes_to_its_arguments(beta, kl, mask, kl_target, horizon):
    kl[~mask] = 0
    return beta * (1 + (kl.sum(1).mean() / kl_target - 1).clamp(-0.2, 0.2) * len(kl) / horizon)


def spent(kl, mask):
    return (kl * mask).sum(1).mean()


def controlled(measure=spent, clip=lambda e: e.clamp(-0.2, 0.2), n=len):
    return lambda b, k, m, c, h: b * (1 + clip(measure(k, m) / c - 1) * n(k) / h)


WRONG_CONTROLLERS = [
    (controlled(lambda k, m: k[m].mean()), "the bug is still there"),
    (controlled(lambda k, m: (k * m).sum() / m.sum()), "the bug is still there"),
    (controlled(lambda k, m: (k * m).mean()), "still runs over steps"),
    (controlled(lambda k, m: (k * m).mean(1).sum()), "averaged over the steps"),
    (controlled(lambda k, m: ((k * m).sum(1) / m.sum(1)).mean()), "a mean of means"),
    (controlled(lambda k, m: k[m].sum()), "the responses are added up, too"),
    (controlled(lambda k, m: (k * m).sum(0).mean()), "averaged over the steps"),
    (controlled(lambda k, m: k.sum(1).mean()), "padding counts"),
    (controlled(lambda k, m: spent(k, m).abs()), "take no abs"),
    (controlled(lambda k, m: spent(k.abs(), m)), "the value is not right"),
    (controlled(lambda k, m: spent(k.relu(), m)), "do not cut it off"),
    (controlled(clip=lambda e: e), "the value is not right"),
    (controlled(clip=lambda e: e.clamp(max=0.2)), "the value is not right"),
    (controlled(clip=lambda e: -e.clamp(-0.2, 0.2)), "the value is not right"),
    (
        lambda b, k, m, c, h: b * (1 + ((spent(k, m) / c - 1) * len(k) / h).clamp(-0.2, 0.2)),
        "the value is not right",
    ),
    (controlled(n=lambda k: 1), "the value is not right"),
    (controlled(n=lambda k: k.shape[1]), "the value is not right"),
    (controlled(n=lambda k: 3), "the value is not right"),
    (
        lambda b, k, m, c, h: b * (1 + (spent(k, m) - c).clamp(-0.2, 0.2) * len(k) / h),
        "the value is not right",
    ),
    (controller_that_writes_to_its_arguments, "changes its argument kl in place"),
    (lambda *a: [controller_in_loops(*a)] * 2, "the shape is not right"),
]


RIGHT = {
    "04-left-to-earn": [top_and_gap_in_logs, top_and_gap_in_loops],
    "04-diagnose": [diagnose_in_loops, diagnose_in_numpy, diagnose_by_differences],
    "04-controller": [
        controller_in_loops,
        controller_by_einsum,
        controller_in_numpy,
    ],
}

WRONG = {
    "04-left-to-earn": WRONG_GAPS,
    "04-diagnose": WRONG_DIAGNOSES,
    "04-controller": WRONG_CONTROLLERS,
}
