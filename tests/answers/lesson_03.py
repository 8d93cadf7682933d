"""Answers to the exercises of lesson 03 as learners write them."""

import numpy as np
import torch


def kl_of(a, b):
    return (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(dim=-1)


# Exercise 03-batch-gradient: right answers in other styles, then wrong ones with what they're told.


def derivative(make):
    """An answer from a surrogate of theta, the log-probabilities drawn and the other arguments."""

    def answer(theta, theta_ref, drawn, reward, price):
        theta = theta.clone().requires_grad_()
        log_p = theta.log_softmax(-1)[drawn]
        make(theta, log_p, theta_ref, reward, price).backward()
        return theta.grad

    return answer


@derivative
def gradient_by_distributions(theta, log_p, theta_ref, reward, price):
    pi, ref = (torch.distributions.Categorical(logits=x) for x in (theta, theta_ref))
    return (log_p * reward).mean() - price * torch.distributions.kl_divergence(pi, ref)


def gradient_in_numpy(logits, ref_logits, words, rewards, beta):
    p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum() for x in (logits, ref_logits))
    scores = np.eye(len(p))[words.numpy()] - p
    net = np.log(p / q) - p @ np.log(p / q)
    return rewards.numpy() @ scores / len(words) - beta * p * net


def gradient_in_plain_python(logits, ref_logits, words, rewards, beta):
    p, q = logits.softmax(0).tolist(), ref_logits.softmax(0).tolist()
    kl = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    out = [-beta * a * (np.log(a / b) - kl) for a, b in zip(p, q, strict=True)]
    for k, r in zip(words.tolist(), rewards.tolist(), strict=True):
        out = [g + r * ((v == k) - p[v]) / len(words) for v, g in enumerate(out)]
    return out


def gradient_in_single_precision(logits, ref_logits, words, rewards, beta):
    logits, ref_logits, rewards = (x.float() for x in (logits, ref_logits, rewards))
    return gradient_by_distributions(logits, ref_logits, words, rewards, beta)


WRONG_GRADIENTS = [
    (lambda x, lp, q, r, b: r.mean() - b * kl_of(x, q), "the bug is still there"),
    (lambda x, lp, q, r, b: (lp * r).mean(), "the brake is missing"),
    (lambda x, lp, q, r, b: (lp * r).mean() + b * kl_of(x, q), "the brake is added"),
    (lambda x, lp, q, r, b: b * kl_of(x, q) - (lp * r).mean(), "uphill"),
    (lambda x, lp, q, r, b: (lp * r).mean() - kl_of(x, q), "β is missing"),
    (lambda x, lp, q, r, b: (lp * r).sum() - b * kl_of(x, q), "are added up"),
    (
        lambda x, lp, q, r, b: (lp * (r - b * kl_of(x, q)).detach()).mean() - b * kl_of(x, q),
        "must not be in the first term",
    ),
    (lambda x, lp, q, r, b: (lp.exp() * r).mean() - b * kl_of(x, q), "R multiplies probabilities"),
    (lambda x, lp, q, r, b: (lp * (r - r.mean())).mean() - b * kl_of(x, q), "no baseline"),
    (lambda x, lp, q, r, b: (lp * r).mean() - b * kl_of(q, x), "arguments are swapped"),
    (lambda x, lp, q, r, b: (lp * r).mean() - b * b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r).sum() / len(x) - b * kl_of(x, q), "divided by V"),
    (lambda x, lp, q, r, b: (lp * r).mean() - b * lp.mean(), "is no KL"),
    (lambda x, lp, q, r, b: (lp * r).sum() / 4 - b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r.abs()).mean() - b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r.clamp_(0)).mean() - b * kl_of(x, q), "rewards in place"),
]
WRONG_GRADIENTS = [(derivative(make), message) for make, message in WRONG_GRADIENTS]


# Exercise 03-answerable.


def answerable_in_loops(total, kls, price, counts):
    out = [[0.0] * kls.shape[1] for _ in total]
    for i in range(len(total)):
        length = int(counts[i].sum())
        for t in range(length):
            out[i][t] = total[i].item() - price * sum(kls[i, t + 1 : length].tolist())
    return torch.tensor(out)


@torch.no_grad()
def answerable_by_a_matrix(rewards, kl, beta, mask):
    after = torch.ones(kl.shape[1], kl.shape[1]).tril(-1).float()  # [t', t]: 1 where t' > t
    return (rewards.float()[:, None] - beta * (kl * mask).float() @ after) * mask


def answerable_as_lists(rewards, kl, beta, mask):
    rows = []
    for r, row, counts in zip(rewards.tolist(), kl.tolist(), mask.tolist(), strict=True):
        n = sum(counts)
        g = [r - beta * sum(row[t + 1 : n]) for t in range(n)]
        rows.append(g + [0.0] * (len(row) - n))
    return rows


def answerable_that_writes_to_its_arguments(rewards, kl, beta, mask):
    rewards, kl = rewards.detach(), kl.detach()
    kl[~mask] = 0
    g = rewards[:, None].repeat(1, kl.shape[1])
    for t in reversed(range(kl.shape[1] - 1)):
        g[:, t] = g[:, t + 1] - beta * kl[:, t + 1]
    g[~mask] = 0
    return g


def from_here_on(k):
    return k.flip(1).cumsum(1).flip(1)


def charged(r, charge, b, m):
    return (r[:, None] - b * charge) * m


WRONG_ANSWERABLES = [
    (
        lambda r, k, b, m: charged(r, from_here_on(k * m) - k * m, b, m),
        "a gradient reaches rewards and kl: detach",
    ),
    (lambda r, k, b, m: charged(r, from_here_on(k * m), b, m).detach(), "own KL is in"),
    (
        lambda r, k, b, m: charged(r, from_here_on(k * m), b, m),
        "only later steps count; and detach rewards and kl",
    ),
    (lambda r, k, b, m: charged(r, (k * m).cumsum(1), b, m).detach(), "the sum ends here"),
    (lambda r, k, b, m: charged(r, (k * m).sum(1)[:, None], b, m).detach(), "all steps"),
    (lambda r, k, b, m: (r[:, None] * m).detach(), "the future KL is missing"),
    (lambda r, k, b, m: charged(r, from_here_on(k) - k, b, m).detach(), "padding counts"),
    (lambda r, k, b, m: charged(r, from_here_on(k * m) - k * m, 1, m).detach(), "β is missing"),
    (lambda r, k, b, m: charged(r, from_here_on(k * m) - k * m, -b, m).detach(), "is added"),
    (lambda r, k, b, m: charged(r, from_here_on(k * m) - k * m, b, 1).detach(), "has to be 0"),
    (
        lambda r, k, b, m: charged(r.detach(), from_here_on(k * m) - k * m, b, m),
        "a gradient reaches kl",
    ),
    (lambda r, k, b, m: charged(r, from_here_on(k * m) - k * m, b, m).detach().sum(1), "the shape"),
    (lambda r, k, b, m: charged(r, k.mean(), b, m).detach(), "the value is not right"),
    (answerable_that_writes_to_its_arguments, "changes its argument kl in place"),
    (lambda *a: answerable_by_a_matrix(*a).abs(), "take no abs"),
    (lambda *a: answerable_by_a_matrix(*a).relu(), "do not cut it off"),
    (lambda *a: answerable_by_a_matrix(*a)[:, :3], "the shape is not right"),
]


# Exercise 03-surrogate.


def surrogate_in_loops(theta, theta_ref, drawn, adv, counts, price):
    total = 0.0
    for i in range(len(theta)):
        for t in range(int(counts[i].sum())):
            log_p = theta[i, t].log_softmax(0)
            total = total + log_p[drawn[i, t]] * adv[i, t].item()
            total = total - price * kl_of(theta[i, t], theta_ref[i, t].detach())
    return total / len(theta)


def surrogate_by_selection(logits, ref_logits, tokens, advantages, mask, beta):
    x, q, chosen = logits[mask].float(), ref_logits[mask].detach().float(), tokens[mask]
    gain = -torch.nn.functional.cross_entropy(x, chosen, reduction="none")
    with torch.no_grad():
        weights = advantages[mask].float()
    return (gain * weights - beta * kl_of(x, q)).sum() / mask.shape[0]


def surrogate_by_one_hot(logits, ref_logits, tokens, advantages, mask, beta):
    log_p, q = logits.log_softmax(-1), ref_logits.detach()
    hot = torch.nn.functional.one_hot(tokens, logits.shape[-1]).double()
    gain = torch.einsum("btv,btv->bt", log_p, hot) * torch.tensor(advantages.tolist())
    return ((gain - beta * kl_of(logits, q)) * mask).sum(1).mean()


def picked(x, t):
    return x.gather(2, t[:, :, None])[:, :, 0]


def put_together(x, q, t, a, m, b, keep=True, end=lambda y: y.sum() / len(y)):
    if keep:
        q, a = q.detach(), a.detach()
    return end((a * picked(x.log_softmax(2), t) - b * kl_of(x, q)) * m)


WRONG_SURROGATES = [
    (lambda *z: put_together(*z, keep=False), "reaches ref_logits and advantages"),
    (lambda x, q, *z: put_together(x, q.detach(), *z, keep=False), "reaches advantages: "),
    (
        lambda x, q, t, a, *z: put_together(x, q, t, a.detach(), *z, keep=False),
        "reaches ref_logits: ",
    ),
    (lambda *z: -put_together(*z), "the sign is wrong"),
    (lambda *z: put_together(*z[:5], 1.0), "β is missing"),
    (lambda *z: put_together(*z[:5], 0.0), "the KL is missing"),
    (lambda *z: put_together(*z[:5], -z[5]), "the KL is added"),
    (lambda *z: put_together(*z, end=lambda y: y.mean(1).sum()), "divided by T"),
    (lambda *z: put_together(*z, end=lambda y: y.sum(0).mean()), "divided by T"),
    (
        lambda *z: put_together(*z, keep=False, end=lambda y: y.sum() / y.shape[1]),
        "divided by T; divide by B; and detach ref_logits and advantages",
    ),
    (lambda x, *z: put_together(x, *z) * len(x) / x.shape[2], "the value is not right"),
    (lambda *z: put_together(*z) * len(z[4]), "the responses are added up"),
    (lambda *z: put_together(*z) * len(z[4]) / z[4].sum(), "averaged over all tokens"),
    (lambda *z: put_together(*z[:4], z[4] | True, z[5]), "the padding counts"),
    (lambda *z: put_together(*z[:4], z[4] | True, z[5], keep=False), "cut it off; and detach"),
    (lambda *z: put_together(*z).item(), "no gradient reaches logits"),
    (lambda *z: put_together(*z) * 3, "the value is not right"),
    (
        lambda x, q, t, a, m, b: (
            put_together(x, q, t, a, m, 0)
            - b * (picked(x.log_softmax(2) - q.log_softmax(2).detach(), t) * m).sum() / len(m)
        ),
        "this is k1",
    ),
    (
        lambda x, q, t, a, m, b: (
            put_together(x, q, t, a, m, 0) - b * (kl_of(x, q).detach() * m).sum() / len(m)
        ),
        "the KL has no gradient: ",
    ),
    (lambda *z: put_together(*z) * len(z[4]) / 2, "the value is not right"),
    (lambda *z: put_together(*z) * len(z[4]) / z[4].sum() * z[4].shape[1], "over tokens times T"),
    (
        lambda *z: put_together(*z, end=lambda y: (y.sum(1) / z[4].sum(1)).mean()),
        "a mean of means",
    ),
    (
        lambda x, q, t, a, m, b: put_together(x.mT, q.mT, t, a, m, b) if x.shape[1] > 9 else 0.5,
        "the value is not right",
    ),
    (lambda x, q, t, a, m, b: put_together(x, q.mul_(1.1), t, a, m, b), "ref_logits in place"),
    (lambda x, q, t, a, *z: put_together(x, q, t, a.sub_(1), *z), "advantages in place"),
]


RIGHT = {
    "03-batch-gradient": [
        gradient_by_distributions,
        gradient_in_numpy,
        gradient_in_single_precision,
        gradient_in_plain_python,
    ],
    "03-answerable": [
        answerable_in_loops,
        answerable_by_a_matrix,
        answerable_as_lists,
    ],
    "03-surrogate": [surrogate_in_loops, surrogate_by_selection, surrogate_by_one_hot],
}

WRONG = {
    "03-batch-gradient": WRONG_GRADIENTS,
    "03-answerable": WRONG_ANSWERABLES,
    "03-surrogate": WRONG_SURROGATES,
}
