"""Answers to the exercises of lesson 02 as learners write them."""

import math

import numpy as np
import torch


def kl(p, q):
    return (p * (p / q).log()).sum(dim=-1)


def kl_of(a, b):
    return kl(a.softmax(-1), b.softmax(-1))


# Exercise 02-two-penalties: right answers in other styles, then wrong ones with what they are told.


def penalties_without_grad(new, frozen, previous):
    with torch.no_grad():
        q, old = frozen.softmax(1), previous.softmax(1)
    p = new.softmax(1)
    return [
        torch.einsum("sv,sv->s", p, (p / q).log()),
        torch.einsum("sv,sv->s", old, (old / p).log()),
    ]


def penalties_by_torch(logits, ref_logits, old_logits):
    log_p = logits.float().log_softmax(-1)
    log_ref, log_old = (x.detach().float().log_softmax(-1) for x in (ref_logits, old_logits))
    how = {"log_target": True, "reduction": "none"}
    kl_div = torch.nn.functional.kl_div
    return kl_div(log_ref, log_p, **how).sum(-1), kl_div(log_p, log_old, **how).sum(-1)


def penalties_in_a_list_of_lists(theta, theta_ref, theta_old):
    rows = zip(theta, theta_ref.detach(), theta_old.detach(), strict=True)
    both = [(kl_of(x, r), kl_of(o, x)) for x, r, o in rows]
    return [[new for new, _ in both], [old for _, old in both]]


def penalties_stacked(logits, ref_logits, old_logits):
    return torch.stack(penalties_by_torch(logits, ref_logits, old_logits))


WRONG_PENALTIES = [
    (lambda x, r, o: (kl_of(x, r), kl_of(o, x)), "reaches ref_logits and old_logits"),
    (lambda x, r, o: (kl_of(x, r.detach()), kl_of(o, x)), "reaches old_logits: detach"),
    (lambda x, r, o: (kl_of(x, r), kl_of(o.detach(), x)), "reaches ref_logits: detach"),
    (
        lambda x, r, o: (kl_of(r, x), kl_of(o, x)),
        "kl_ref is swapped: the policy stands first; and detach ref_logits and old_logits",
    ),
    (
        lambda x, r, o: (kl_of(x, r), kl_of(x, o)),
        "kl_old is swapped: the old one stands first; and detach",
    ),
    (lambda x, r, o: (kl_of(x, r.detach()), kl_of(x, o.detach())), "the old one stands first"),
    (lambda x, r, o: (kl_of(o.detach(), x), kl_of(x, r.detach())), "wrong order"),
    (lambda x, r, o: (kl_of(x, r).detach(), kl_of(o.detach(), x)), "kl_ref has no gradient"),
    (
        lambda x, r, o: (kl_of(x, r.detach()), kl_of(o, x).numpy(force=True)),
        "kl_old has no gradient",
    ),
    (
        lambda x, r, o: (kl_of(x, r.detach()).detach(), kl_of(o.detach(), x).detach()),
        "no gradient reaches logits",
    ),
    (lambda x, r, o: (kl_of(x, r.detach()).sum(), kl_of(o.detach(), x).sum()), "one number for"),
    (
        lambda x, r, o: (
            kl(x.softmax(0), r.softmax(0).detach()),
            kl(o.softmax(0).detach(), x.softmax(0)),
        ),
        "over the states",
    ),
    (lambda x, r, o: [k[:2] for k in penalties_by_torch(x, r, o)], "the shape is not right"),
    (lambda x, r, o: torch.stack(penalties_by_torch(x, r, o)).T, "the shape is not right"),
    (lambda x, r, o: penalties_by_torch(x, r.zero_(), o), "ref_logits in place"),
    (lambda x, r, o: [k.clamp(max=0.2) for k in penalties_by_torch(x, r, o)], "value is not right"),
    (lambda x, r, o: kl_of(x, r.detach()), "the shape is not right"),
    (lambda x, r, o: print(kl_of(x, r)), "returned None"),
]


# Exercise 02-batch-kl.


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
    total = torch.einsum("bt,bt->", kl_of(logits, ref_logits), mask.double())
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


def pair(steps, mask):
    steps = steps * mask
    return steps.sum() / len(mask), steps.sum() / mask.sum()


WRONG_BATCHES = [
    (lambda x, r, m: (kl_of(x, r).sum(1).mean(), kl_of(x, r).mean()), "belongs to no response"),
    (
        lambda x, r, m: (kl_of(x, r).sum(1).mean(), kl_of(x, r).sum() / m.sum()),
        "counts in the sum",
    ),
    (
        lambda x, r, m: ((m * kl_of(x, r)).sum(1).mean(), (m * kl_of(x, r)).mean()),
        "the divisor counts padding",
    ),
    (
        lambda x, r, m: (
            (m * kl_of(x, r)).sum(1).mean(),
            ((m * kl_of(x, r)).sum(1) / m.sum(1)).mean(),
        ),
        "mean of means",
    ),
    (lambda x, r, m: pair(kl_of(x, r), m)[::-1], "wrong order"),
    (lambda x, r, m: pair(kl_of(r, x), m), "arguments are swapped"),
    (lambda x, r, m: pair((x.log_softmax(-1) - r.log_softmax(-1)).sum(-1), m), "not weighted"),
    (lambda x, r, m: [k.item() for k in pair(kl_of(x, r), m)], "the KL has no gradient: "),
    (lambda x, r, m: ((m * kl_of(x, r)).sum(1), pair(kl_of(x, r), m)[1]), "one mean over all"),
    (
        lambda x, r, m: ((m * kl_of(x, r)).sum(0).mean(), pair(kl_of(x, r), m)[1]),
        "per response: it is divided by T",
    ),
    (
        lambda x, r, m: ((m * kl_of(x, r)).sum() / x.shape[1], pair(kl_of(x, r), m)[1]),
        "per response: it is divided by T",
    ),
    (
        lambda x, r, m: ((m * kl_of(x, r)).sum() / x.shape[2], pair(kl_of(x, r), m)[1]),
        "the value is not right",
    ),
    (lambda x, r, m: pair(kl_of(x, r) / math.log(2), m), "the value is not right"),
    (lambda x, r, m: pair(kl(x.softmax(1), r.softmax(1)), m), "over the steps"),
    (lambda x, r, m: pair(kl_of(x[:, :3], r[:, :3]), m[:, :3]), "the value is not right"),
    (lambda x, r, m: [pair(kl_of(x, r), m)[0] * len(m) / 2, pair(kl_of(x, r), m)[1]], "not right"),
    (batch_that_writes_to_its_arguments, "changes its argument ref_logits in place"),
    (lambda x, r, m: pair(kl_of(x, r), m)[0], "the shape is not right"),
]


# Exercise 02-dashboard.


def dashboard_in_loops(new, ref, counts):
    sums = [0, 0, 0]
    for p, q in zip(new[counts], ref[counts], strict=True):
        r = torch.exp(q - p)
        for k, value in enumerate((-r.log(), r.log() ** 2 / 2, r - 1 - r.log())):
            sums[k] = sums[k] + value
    return [x / counts.sum() for x in sums]


def dashboard_stacked(log_p, log_q, mask):
    d = torch.where(mask, log_q - log_p, 0.0)
    return torch.stack([-d, d * d / 2, d.expm1() - d]).sum((1, 2)) / mask.sum()


def dashboard_in_single_precision(log_p, log_q, mask):
    d = (log_p.float() - log_q.float()) * mask
    n = mask.sum()
    return d.sum() / n, 0.5 * (d * d).sum() / n, (torch.expm1(-d) + d).sum() / n


def three(p, q, m, k3):
    return (p - q)[m].mean(), ((p - q)[m] ** 2).mean() / 2, k3[m].mean()


def right_k3(p, q):
    return (q - p).exp() - 1 - (q - p)


WRONG_DASHBOARDS = [
    (lambda p, q, m: three(p, q, m, (p - q).exp() - 1 - (p - q)), "the bug is still there"),
    (lambda p, q, m: three(p, q, m, (q - p).exp() - 1 - (p - q)), "its logarithm is upside down"),
    (lambda p, q, m: three(p, q, m, (p - q).exp() - 1 + (p - q)), "the ratio itself"),
    (lambda p, q, m: three(p, q, m, (q - p).exp() + (p - q)), "the −1 is missing"),
    (lambda p, q, m: three(p, q, m | True, right_k3(p, q)), "padding counts"),
    (
        lambda p, q, m: [(x * m).mean() for x in (p - q, (p - q) ** 2 / 2, right_k3(p, q))],
        "divisor",
    ),
    (lambda p, q, m: (-three(p, q, m, p)[0], *three(p, q, m, right_k3(p, q))[1:]), "k1 has the"),
    (
        lambda p, q, m: (p - q)[m].mean() * torch.tensor([1.0, 0, 0]),
        "the value is not right",
    ),
    (
        lambda p, q, m: [x.item() for x in three(p, q, m, right_k3(p, q))],
        "no gradient reaches log_p",
    ),
    (
        lambda p, q, m: [(x * m).sum() / len(m) for x in (p - q, (p - q) ** 2 / 2, right_k3(p, q))],
        "divided by B",
    ),
    (lambda p, q, m: [k.abs() for k in three(p, q, m, right_k3(p, q))], "take no abs"),
    (lambda p, q, m: [k.clamp(min=0) for k in three(p, q, m, right_k3(p, q))], "do not cut it off"),
    (
        lambda p, q, m: [
            ((x * m).sum(1) / m.sum(1)).mean() for x in (p - q, (p - q) ** 2 / 2, right_k3(p, q))
        ],
        "a mean of means",
    ),
    (lambda p, q, m: three(p.masked_fill_(~m, 0), q, m, right_k3(p, q)), "log_p in place"),
    (lambda p, q, m: three(p, q.detach(), m, right_k3(p, q.detach())), "no gradient reaches log_q"),
    (lambda p, q, m: three(p, q, m, right_k3(p, q) * 2), "the value is not right"),
]


# Exercise 02-who-drew.


def who_drew_in_loops(theta, theta_ref, tau):
    p, q = theta.softmax(0), theta_ref.softmax(0)
    b, c = (x ** (1 / tau) / (x ** (1 / tau)).sum() for x in (p, q))
    shown = sum(b[v] * torch.log(p[v] / q[v]) for v in range(len(p)))
    return shown, kl(p, q), kl(b, c)


def who_drew_in_numpy(logits, ref_logits, temperature):
    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    x, r = logits.numpy(), ref_logits.numpy()
    p, q, b, c = (softmax(y) for y in (x, r, x / temperature, r / temperature))
    with np.errstate(all="ignore"):
        return b @ np.log(p / q), p @ np.log(p / q), b @ np.log(b / c)


def shown(x, r, b):
    return (b.softmax(0) * (x.log_softmax(0) - r.log_softmax(0))).sum()


def who_drew_with_a_guard(logits, ref_logits, temperature):
    p, q = logits.softmax(0), ref_logits.softmax(0)
    b, c = (x ** (1 / temperature) / (x ** (1 / temperature)).sum() for x in (p, q))

    def mean(w, x, y):
        return torch.where(x > 0, w * (x / y).log(), 0.0).sum().item()

    return np.array([mean(b, p, q), mean(p, p, q), mean(b, b, c)])


def who_drew_in_logs(logits, ref_logits, temperature):
    found = []
    for of, tau in ((temperature, 1), (1, 1), (temperature, temperature)):
        x, r = (y / tau - (y / tau).logsumexp(0) for y in (logits, ref_logits))
        found.append((torch.softmax(logits / of, 0) * (x - r)).sum())
    return torch.stack(found)


WRONG_SAMPLERS = [
    (who_drew_in_loops, "nan comes of 0 · log 0"),
    (who_drew_in_numpy, "nan comes of 0 · log 0"),
    (lambda *a: who_drew_in_logs(*a).abs(), "take no abs"),
    (lambda *a: who_drew_in_logs(*a).clamp(min=0), "do not cut it off"),
    (lambda x, r, t: who_drew_in_logs(x, r, min(t, 1)), "the value is not right"),
    (lambda x, r, t: who_drew_in_logs(x[:3], r[:3], t), "the value is not right"),
    (lambda x, r, t: (shown(x, r, x * t), kl_of(x, r), kl_of(x * t, r * t)), "it has to divide"),
    (
        lambda x, r, t: (shown(x, r, x / t), kl_of(x, r), kl_of(x / t, r)),
        "reference is tempered too",
    ),
    (lambda x, r, t: (shown(x, r, x), kl_of(x, r), kl_of(x / t, r / t)), "shown: b draws"),
    (lambda x, r, t: (kl_of(x / t, r / t), kl_of(x, r), kl_of(x / t, r / t)), "only the sampler"),
    (lambda x, r, t: (-shown(x, r, x / t), kl_of(x, r), kl_of(x / t, r / t)), "wrong way round"),
    (lambda x, r, t: (kl_of(x, r), shown(x, r, x / t), kl_of(x / t, r / t)), "wrong order"),
    (lambda x, r, t: (shown(x, r, x / t), kl_of(r, x), kl_of(r / t, x / t)), "are swapped"),
    (lambda x, r, t: (shown(x, r, x / t), kl_of(x, r)), "the shape is not right"),
    (
        lambda x, r, t: (shown(x, r, x / t), kl_of(x, r), kl_of(x / t, r / t) * t),
        "the value is not right",
    ),
]


RIGHT = {
    "02-two-penalties": [
        penalties_without_grad,
        penalties_by_torch,
        penalties_in_a_list_of_lists,
        penalties_stacked,
    ],
    "02-batch-kl": [batch_in_loops, batch_by_selection, batch_stacked, batch_in_columns],
    "02-dashboard": [dashboard_in_loops, dashboard_in_single_precision, dashboard_stacked],
    "02-who-drew": [who_drew_with_a_guard, who_drew_in_logs],
}

WRONG = {
    "02-two-penalties": WRONG_PENALTIES,
    "02-batch-kl": WRONG_BATCHES,
    "02-dashboard": WRONG_DASHBOARDS,
    "02-who-drew": WRONG_SAMPLERS,
}
