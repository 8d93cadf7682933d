"""Answers to the exercises of lesson 02 as learners write them."""

import math

import numpy as np
import torch


def kl(p, q):
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(dim=-1)


def kl_of(a, b):
    log_p = a.log_softmax(-1)
    return (log_p.exp() * (log_p - b.log_softmax(-1))).sum(-1)


# Exercise 02-batch-kl: right answers in other styles, then wrong ones with what they are told.


def batch_in_loops(theta, theta_ref, counts):
    total, n_tokens = 0.0, 0
    for i in range(len(theta)):
        for t in range(theta.shape[1]):
            if counts[i, t]:
                total = total + kl_of(theta[i, t], theta_ref[i, t])
                n_tokens += 1
    return total / len(theta), total / n_tokens


def batch_by_selection(logits, ref_logits, mask):
    kept = kl_of(logits[mask].float(), ref_logits[mask].float())
    return kept.sum() / mask.shape[0], kept.mean()


def batch_stacked(logits, ref_logits, mask):
    total = torch.einsum("bt->", kl_of(logits, ref_logits).masked_fill(~mask, 0))
    return torch.stack([total / logits.size(0), total / mask.sum()])


def batch_in_columns(logits, ref_logits, mask):
    total = 0
    for x, r, m in zip(logits.unbind(1), ref_logits.unbind(1), mask.T, strict=True):
        total += torch.where(m, kl_of(x, r), 0.0).sum()
    return [total / len(mask), total / np.count_nonzero(mask.numpy())]


def batch_that_writes_to_its_arguments(logits, ref_logits, mask):
    ref_logits -= ref_logits.logsumexp(-1, keepdim=True)
    log_p = logits.log_softmax(-1)
    steps = (log_p.exp() * (log_p - ref_logits)).sum(-1).masked_fill(~mask, 0)
    return steps.sum(-1).mean(), steps.sum() / mask.sum()


def hide(steps, mask):
    return torch.where(mask, steps, 0.0)


def pair(steps, mask):
    steps = hide(steps, mask)
    return steps.sum() / len(mask), steps.sum() / mask.sum()


WRONG_BATCHES = [
    (lambda x, r, m: (kl_of(x, r).sum(1).mean(), kl_of(x, r).mean()), "belongs to no response"),
    (
        lambda x, r, m: (kl_of(x, r).sum(1).mean(), kl_of(x, r).sum() / m.sum()),
        "counts in the sum",
    ),
    (
        lambda x, r, m: (hide(kl_of(x, r), m).sum(1).mean(), hide(kl_of(x, r), m).mean()),
        "the divisor counts padding",
    ),
    (
        lambda x, r, m: (
            hide(kl_of(x, r), m).sum(1).mean(),
            (hide(kl_of(x, r), m).sum(1) / m.sum(1)).mean(),
        ),
        "mean of means",
    ),
    (lambda x, r, m: pair(kl_of(x, r), m)[::-1], "wrong order"),
    (lambda x, r, m: pair(kl_of(r, x), m), "arguments are swapped"),
    (lambda x, r, m: pair((x.log_softmax(-1) - r.log_softmax(-1)).sum(-1), m), "not weighted"),
    (lambda x, r, m: pair(torch.nan_to_num(kl_of(x, r)) * 0.99, m), "the value is not right"),
    (lambda x, r, m: [(kl_of(x, r) * m).sum() / n for n in (len(m), m.sum())], "nan comes of 0 ·"),
    (lambda x, r, m: (hide(kl_of(x, r), m).sum(1), pair(kl_of(x, r), m)[1]), "one mean over all"),
    (
        lambda x, r, m: (hide(kl_of(x, r), m).sum(0).mean(), pair(kl_of(x, r), m)[1]),
        "per response: it is divided by T",
    ),
    (
        lambda x, r, m: (hide(kl_of(x, r), m).sum() / x.shape[1], pair(kl_of(x, r), m)[1]),
        "per response: it is divided by T",
    ),
    (
        lambda x, r, m: (hide(kl_of(x, r), m).sum() / x.shape[2], pair(kl_of(x, r), m)[1]),
        "the value is not right",
    ),
    (lambda x, r, m: pair(kl_of(x, r) / math.log(2), m), "the value is not right"),
    (lambda x, r, m: pair(kl(x.softmax(1), r.softmax(1)), m), "over the steps"),
    (lambda x, r, m: pair(kl_of(x[:, :3], r[:, :3]), m[:, :3]), "the value is not right"),
    (lambda x, r, m: [pair(kl_of(x, r), m)[0] * len(m) / 2, pair(kl_of(x, r), m)[1]], "not right"),
    (batch_that_writes_to_its_arguments, "changes its argument ref_logits in place"),
    (lambda x, r, m: pair(kl_of(x, r), m)[0], "the shape is not right"),
]


# Exercise 02-who-drew.


def who_drew_in_loops(theta, theta_ref, h):
    p, q = theta.softmax(0), theta_ref.softmax(0)
    b = p ** (1 / h) / (p ** (1 / h)).sum()
    return sum(b[v] * torch.log(p[v] / q[v]) for v in range(len(p))), kl(p, q)


def who_drew_in_numpy(logits, ref_logits, temperature):
    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    p, q, b = map(softmax, (logits.numpy(), ref_logits.numpy(), logits.numpy() / temperature))
    with np.errstate(all="ignore"):
        return b @ np.log(p / q), p @ np.log(p / q)


def shown(x, r, b):
    return (b.softmax(0) * (x.log_softmax(0) - r.log_softmax(0))).sum()


def who_drew_with_a_guard(logits, ref_logits, temperature):
    p, q = logits.softmax(0), ref_logits.softmax(0)
    b = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    return np.array([torch.where(p > 0, w * (p / q).log(), 0.0).sum().item() for w in (b, p)])


def who_drew_in_logs(logits, ref_logits, temperature):
    return torch.stack([shown(logits, ref_logits, logits / h) for h in (temperature, 1)])


WRONG_SAMPLERS = [
    (who_drew_in_loops, "nan comes of 0 · log 0"),
    (who_drew_in_numpy, "nan comes of 0 · log 0"),
    (lambda *a: who_drew_in_logs(*a).abs(), "take no abs"),
    (lambda *a: who_drew_in_logs(*a).clamp(min=0), "do not cut it off"),
    (lambda x, r, t: who_drew_in_logs(x, r, min(t, 1)), "the value is not right"),
    (lambda x, r, t: who_drew_in_logs(x[:3], r[:3], t), "the value is not right"),
    (lambda x, r, t: (shown(x, r, x * t), kl_of(x, r)), "it has to divide"),
    (lambda x, r, t: (shown(x, r, x), kl_of(x, r)), "shown: b draws, not the policy scored"),
    (lambda x, r, t: (kl_of(x / t, r / t), kl_of(x, r)), "only the sampler"),
    (lambda x, r, t: (kl_of(x / t, r), kl_of(x, r)), "what is scored is the policy"),
    (lambda x, r, t: (-shown(x, r, x / t), kl_of(x, r)), "wrong way round"),
    (lambda *a: who_drew_in_logs(*a).flip(0), "wrong order"),
    (lambda x, r, t: (shown(x, r, x / t), kl_of(x / t, r / t)), "there is no temperature in it"),
    (lambda x, r, t: (shown(x, r, x / t), kl_of(r, x)), "are swapped"),
    (lambda x, r, t: (shown(x, r, x) / t, kl_of(x, r)), "do not add up to 1"),
    (lambda x, r, t: shown(x, r, x / t), "the shape is not right"),
]


# Exercise 02-which-fault.


def fault_by_distance(logits, ref_logits, k1, k3):
    p, q = logits.softmax(-1), ref_logits.softmax(-1)
    d = logits.log_softmax(-1) - ref_logits.log_softmax(-1)

    def means(weights, d, d_of_k3):
        k3 = torch.exp(-d_of_k3) - 1 + d_of_k3
        return torch.stack([(weights * k).sum() for k in (d, k3)])

    shown = torch.tensor([k1, k3])
    told = [means(p, d, d), means(p, -d, -d), means(p, d, -d), means(q, d, d)]
    return min(range(4), key=lambda i: (told[i] - shown).abs().max())


def fault_by_rules(x, r, one, three):
    p, q = x.softmax(0), r.softmax(0)
    if math.isclose(one, kl(p, q), abs_tol=1e-3):
        return torch.tensor(0 if abs(three - one) < 2e-3 else 2)
    return torch.tensor(1 if math.isclose(-one, kl(p, q), abs_tol=1e-3) else 3)


WRONG_FAULTS = [
    (lambda x, r, *k: 1 if k[0] < 0 else fault_by_rules(x, r, *k), "look at both"),
    (lambda x, r, *k: [0, 1, 0, 3][fault_by_distance(x, r, *k)], "k1 alone does not tell"),
    (lambda x, r, *k: [0, 1, 1, 3][fault_by_distance(x, r, *k)], "k3 alone does not tell"),
    (lambda x, r, *k: [0, 2, 1, 3][fault_by_distance(x, r, *k)], "2 only k3"),
    (lambda x, r, *k: fault_by_distance(x, r, *k) + 1, "count from 1"),
    (lambda x, r, *k: 0, "the value is not right"),
    (lambda x, r, *k: fault_by_distance(r, x, *k), "the value is not right"),
    (lambda x, r, *k: fault_by_distance(x.zero_(), r, *k), "logits in place"),
    (lambda x, r, *k: [fault_by_distance(x, r, *k)] * 2, "the shape is not right"),
]


RIGHT = {
    "02-batch-kl": [batch_in_loops, batch_by_selection, batch_stacked, batch_in_columns],
    "02-who-drew": [who_drew_with_a_guard, who_drew_in_logs],
    "02-which-fault": [fault_by_distance, fault_by_rules],
}

WRONG = {
    "02-batch-kl": WRONG_BATCHES,
    "02-who-drew": WRONG_SAMPLERS,
    "02-which-fault": WRONG_FAULTS,
}
