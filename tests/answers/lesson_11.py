"""Answers to the exercises of lesson 11 as learners write them."""

import numpy as np
import torch
from torch.nn import functional as F

# Exercise 11-bug: right answers in other styles, then wrong ones with what they are told.


def bug_by_a_triangle(log_p, log_ref, reward, price, counts):
    with torch.no_grad():
        k1 = torch.where(counts, log_p - log_ref, 0.0)
        bracket = reward.unsqueeze(1) - price * k1 @ torch.ones_like(k1[0].diag()).tril()
    return torch.einsum("bt,bt->b", torch.where(counts, log_p, 0.0), bracket).mean()


def bug_in_single_precision(log_probs, ref_log_probs, rewards, beta, mask):
    total = 0
    for i in range(len(mask)):
        x, y = log_probs[i][mask[i]].float(), ref_log_probs[i][mask[i]].float()
        for t in range(len(x)):
            total += x[t] * (rewards[i].item() - beta * (x - y)[t:].sum().item())
    return total / len(mask)


def bug(charge, *, loss=lambda k: 0, leak=False, detach=True, end=lambda y: y.sum(1).mean()):
    def answer(x, ref, r, b, m):
        k1 = (x - ref.detach()) * (m | leak)
        charged = charge(k1)
        bracket = r.detach()[:, None] - b * (charged.detach() if detach else charged)
        return end((x * bracket - b * loss(k1)) * m)

    return answer


def back(k):
    return torch.flip(torch.cumsum(torch.flip(k, [1]), 1), [1])


def nothing(k):
    return 0 * k


WRONG_BUG = [
    (bug(nothing, loss=lambda k: k), "still in the loss"),
    (bug(nothing, loss=lambda k: 0.5 * k * k), "k2 in the loss"),
    (bug(nothing, loss=lambda k: torch.exp(-k) - 1 + k), "k3 in the loss"),
    (bug(nothing), "the KL is missing"),
    (bug(back, detach=False), "what is charged is a constant"),
    (bug(lambda k: k), "later log-ratios are not charged"),
    (bug(lambda k: back(k) - k), "own log-ratio is missing"),
    (bug(lambda k: k.sum(1)[:, None]), "earlier ones are charged too"),
    (bug(lambda k: torch.cumsum(k, 1)), "runs from the front"),
    (bug(back, loss=lambda k: k), "once more, in the loss"),
    (bug(lambda k: -back(k)), "the KL is rewarded"),
    (bug(back, leak=True), "log-ratios of the padding are charged"),
    (bug(back, end=lambda y: y.sum()), "responses are added up"),
    (bug(back, end=lambda y: -y.sum(1).mean()), "sign is wrong"),
    (bug(back, end=lambda y: y.mean()), "averaged over [B, T]"),
    (bug(back, end=lambda y: y.sum(1)), "the shape is not right"),
    (lambda x, ref, r, b, m: bug(back)(x, ref, r, 1.0, m), "β is missing"),
    (lambda x, ref, r, b, m: bug(back)(x, ref, r, b, m | True), "the mask is not used"),
    (
        lambda x, ref, r, b, m: (
            ((x * (r[:, None].detach() - b * back((x - ref) * m).detach())) * m)
            .sum(1)
            .div(m.sum(1))
            .mean()
        ),
        "a mean of means",
    ),
    (
        lambda x, ref, r, b, m: (
            ((x * (r[:, None] - b * back((x - ref) * m).detach())) * m).sum(1).mean()
        ),
        "reaches rewards: detach",
    ),
    (
        lambda x, ref, r, b, m: ((x * (r[:, None] - b * back((x - ref) * m))) * m).sum(1).mean(),
        "reaches ref_log_probs and rewards: detach",
    ),
    (
        lambda x, ref, r, b, m: (
            ((x * (r.detach()[:, None] - b * back((x - ref) * m))) * m).sum(1).mean()
        ),
        "reaches ref_log_probs: detach",
    ),
    (
        lambda x, ref, r, b, m: (
            (x * r.detach()[:, None] - b * (x - ref).detach()).masked_fill(~m, 0).sum(1).mean()
        ),
        "the KL has no gradient now: multiply it by the score",
    ),
    (lambda *a: bug(back)(*a).detach(), "no gradient reaches log_probs"),
]


# Exercise 11-rloo.


def rloo_by_the_group_mean(log_p, log_ref, reward, price):
    g = (reward - price * (log_p - log_ref)).detach()
    n = g.shape[-1]
    return torch.mean(log_p * (g - g.mean(-1, keepdim=True)) * n / (n - 1))


def rloo_in_loops(log_probs, ref_log_probs, rewards, beta):
    earned = (rewards - beta * (log_probs - ref_log_probs)).detach().numpy().astype("float32")
    total = 0
    for p in range(len(earned)):
        for i in range(len(earned[p])):
            total = total + log_probs[p, i] * float(earned[p, i] - np.delete(earned[p], i).mean())
    return total / earned.size


def rloo(base=None, *, price=lambda b: b, detach=True, spread=False, end=torch.mean):
    def answer(x, ref, r, b):
        g = r.detach() - price(b) * (x - ref.detach())
        a = g - (base(g) if base else (g.sum(1, keepdim=True) - g) / (g.shape[1] - 1))
        a = a / a.std(1, keepdim=True, correction=0) if spread else a
        return end(x * (a.detach() if detach else a))

    return answer


def rloo_of(earned):
    def answer(x, ref, r, b):
        g = earned(r, b, x - ref)
        return (x * (g - (g.sum(1, keepdim=True) - g) / (g.shape[1] - 1))).mean()

    return answer


def rloo_without_the_others_kl(x, ref, r, b):
    baseline = (r.sum(1, keepdim=True) - r) / (r.shape[1] - 1)
    return (x * (r - b * (x - ref) - baseline).detach()).mean()


def rloo_with_k1_as_loss(x, ref, r, b):
    baseline = (r.sum(1, keepdim=True) - r) / (r.shape[1] - 1)
    return (x * (r - baseline).detach() - b * (x - ref.detach())).mean()


WRONG_RLOO = [
    (rloo(lambda g: g.mean(1, keepdim=True)), "own response is in the baseline"),
    (rloo(lambda g: (g.sum(1, keepdim=True) - g) / g.shape[1]), "n - 1 others"),
    (rloo(torch.zeros_like), "the baseline is missing"),
    (rloo(lambda g: -(g.sum(1, keepdim=True) - g) / (g.shape[1] - 1)), "baseline is added"),
    (rloo(lambda g: (g.sum() - g) / (g.numel() - 1)), "others are those of the same row"),
    (rloo(lambda g: (g.sum(0) - g) / 1), "the value is not right"),
    (rloo_without_the_others_kl, "only rewards are in the baseline"),
    (rloo_with_k1_as_loss, "the log-ratio is in the loss"),
    (rloo(detach=False), "what is charged is a constant: detach the log-ratios"),
    (rloo_of(lambda r, b, k: r - b * k), "reaches ref_log_probs and rewards: detach"),
    (rloo_of(lambda r, b, k: r - b * k.detach()), "reaches rewards: detach"),
    (rloo_of(lambda r, b, k: r.detach() - b * k), "reaches ref_log_probs: detach"),
    (rloo(price=lambda b: 0), "the KL is missing"),
    (rloo(price=lambda b: -b), "the KL is added"),
    (rloo(price=lambda b: 1), "β is missing"),
    (rloo(spread=True), "does not divide by a spread"),
    (rloo(end=torch.sum), "responses are added up"),
    (rloo(end=lambda y: -y.mean()), "sign is wrong"),
    (rloo(end=lambda y: y.mean(1)), "the shape is not right"),
    (lambda *a: rloo()(*a).item(), "no gradient reaches log_probs"),
]


# Exercise 11-dpo.


def dpo_in_loops(log_p, log_ref, counts, price):
    total = 0
    for n in range(log_p.shape[1]):
        (won, lost) = ((log_p[k, n] - log_ref[k, n].detach())[counts[k, n]].sum() for k in (0, 1))
        total = total - torch.sigmoid(price * (won - lost)).log()
    return total / log_p.shape[1]


def dpo_in_single_precision(log_probs, ref_log_probs, mask, beta):
    policy = torch.where(mask, log_probs.float(), 0).sum(2)
    reference = torch.where(mask, ref_log_probs.float(), 0).sum(2).detach()
    margin = beta * ((policy[0] - policy[1]) - (reference[0] - reference[1]))
    return F.binary_cross_entropy_with_logits(margin, torch.ones(len(margin)))


def dpo(
    loss=lambda d, b: -F.logsigmoid(b * d), *, ratio=torch.sub, tokens=torch.sum, end=torch.mean
):
    def answer(x, ref, m, b):
        both = tokens(ratio(x, ref.detach()) * m, -1)
        return end(loss(both[0] - both[1], b))

    return answer


def dpo_without_a_detach(log_probs, ref_log_probs, mask, beta):
    x = torch.where(mask, log_probs - ref_log_probs, 0.0).sum(-1)
    return -F.logsigmoid(beta * (x[0] - x[1])).mean()


def dpo_as_softplus(policy, reference, mask, beta):
    won, lost = (beta * (policy - reference) * mask).sum(dim=2)
    return F.softplus(lost - won).sum() / len(won)


def dpo_as_a_softmax(log_probs, ref_log_probs, mask, beta):
    margins = torch.einsum("cnt,cnt->nc", log_probs - ref_log_probs, mask.double()) * beta
    return F.cross_entropy(margins, torch.zeros(len(margins)).long())


def dpo_pair_by_pair(log_probs, ref_log_probs, mask, beta):
    losses = []
    for n in range(mask.shape[1]):
        d = [(log_probs[k, n] - ref_log_probs[k, n])[mask[k, n]].sum() for k in range(2)]
        losses.append(torch.log1p(torch.exp(-beta * (d[0] - d[1]))))
    return sum(losses) / len(losses)


def dpo_of_means(x, ref, m, b):
    both = ((x - ref.detach()) * m).sum(-1) / m.sum(-1)
    return -F.logsigmoid(b * (both[0] - both[1])).mean()


WRONG_DPO = [
    (dpo(lambda d, b: F.logsigmoid(b * d)), "sign is wrong"),
    (dpo(lambda d, b: -F.logsigmoid(-b * d)), "two responses are swapped"),
    (dpo(ratio=lambda x, ref: ref - x), "two responses are swapped"),
    (dpo(ratio=lambda x, ref: x), "the reference is missing"),
    (dpo(ratio=torch.add), "the reference is added"),
    (dpo(ratio=torch.div), "the value is not right"),
    (dpo(lambda d, b: -F.logsigmoid(d)), "β is missing"),
    (dpo(lambda d, b: -F.logsigmoid(d / b)), "β divides"),
    (dpo(lambda d, b: -b * F.logsigmoid(d)), "β belongs inside"),
    (dpo(lambda d, b: -torch.sigmoid(b * d)), "logarithm is missing"),
    (dpo(lambda d, b: -b * d), "σ is missing"),
    (dpo_of_means, "tokens are averaged"),
    (dpo(tokens=torch.mean), "padding and all"),
    (dpo(lambda d, b: -F.logsigmoid(b * b * d)), "β is squared"),
    (dpo(end=lambda y: y.sum() / 3), "the value is not right"),
    (lambda x, ref, m, b: dpo()(x, ref.mul_(m), m, b), "ref_log_probs in place"),
    (dpo(end=torch.sum), "pairs are added up"),
    (dpo(end=lambda y: y), "the shape is not right"),
    (lambda x, ref, m, b: dpo()(x, ref, torch.ones_like(m), b), "the padding counts"),
    (lambda *a: dpo()(*a).detach(), "no gradient reaches log_probs"),
]


# Exercise 11-grpo.


def grpo_in_numpy(rewards, beta):
    r = rewards.numpy()
    centred, s = r - r.mean(axis=1, keepdims=True), r.std(axis=1)
    return np.divide(centred, s[:, None], out=np.zeros_like(r), where=s[:, None] > 0), beta * s


def grpo_in_loops(reward, price):
    advantages, prices = torch.zeros(reward.shape), []
    for p, row in enumerate(reward.float()):
        s = ((row**2).mean() - row.mean() ** 2).clamp(min=0).sqrt()
        if row.min() < row.max():
            advantages[p] = (row - row.mean()) / s
        prices.append(price * s.item())
    return advantages, torch.tensor(prices)


def grpo(correction=0, *, center=True, empty=0.0, s=None, b=lambda b, s: b * s):
    def answer(r, beta):
        spread = s(r) if s else r.std(1, keepdim=True, correction=correction)
        a = ((r - r.mean(1, keepdim=True)) if center else r) / spread
        a[(r == r[:, :1]).all(1)] = empty
        return a, b(beta, spread.expand(len(r), 1).flatten())

    return answer


WRONG_GRPO = [
    (grpo(1), "divides by n here"),
    (grpo(empty=torch.nan), "0, not nan"),
    (grpo(center=False), "mean is not subtracted"),
    (grpo(b=lambda b, s: torch.full_like(s, b)), "β times s, not β"),
    (grpo(b=lambda b, s: b / s), "this divides"),
    (grpo(b=lambda b, s: s), "β times s, not s"),
    (grpo(b=lambda b, s: b * s.mean()), "own coefficient"),
    (grpo(b=lambda b, s: b * s[:, None]), "the shape is not right"),
    (grpo(b=lambda b, s: b * s**2), "returned 2 of 2 at"),
    (lambda r, b: ((a := grpo()(r, b))[0] * a[1][:, None] / b, a[1]), "not divided by s"),
    (lambda r, b: grpo(s=lambda r: r.std(1, keepdim=True, correction=0) + 1e-4)(r, b), "not right"),
    (
        lambda r, b: (
            (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True, correction=0) + 1e-6),
            b * r.std(1, correction=0),
        ),
        "divide by s alone",
    ),
    (grpo(s=lambda r: r.std(correction=0)), "each group has its own s"),
    (
        lambda r, b: ((r - r.mean()) / r.std(correction=0), b * r.std(correction=0).expand(len(r))),
        "its own mean and s",
    ),
    (lambda r, b: grpo()(r, b)[0], "yours 1 array [4, 5]"),
]


RIGHT = {
    "11-bug": [bug_by_a_triangle, bug_in_single_precision, bug(back)],
    "11-rloo": [rloo_by_the_group_mean, rloo_in_loops, rloo()],
    "11-dpo": [
        dpo_in_loops,
        dpo_in_single_precision,
        dpo(),
        dpo_without_a_detach,
        dpo_as_softplus,
        dpo_as_a_softmax,
        dpo_pair_by_pair,
    ],
    "11-grpo": [grpo_in_numpy, grpo_in_loops, grpo()],
}

WRONG = {
    "11-bug": WRONG_BUG,
    "11-rloo": WRONG_RLOO,
    "11-dpo": WRONG_DPO,
    "11-grpo": WRONG_GRPO,
}
