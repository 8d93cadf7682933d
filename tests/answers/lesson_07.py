"""Answers to the exercises of lesson 07 as learners write them."""

import math

import torch
from torch.nn import functional as F

# Exercise 07-lost: right answers in other styles, then wrong ones with what they are told.


def lost_by_pairs(z, policy_log, ref_log, mask, heat):
    """From all pairs of words whose logits differ."""
    gap = (z[..., None] - z[..., None, :])[mask]
    found = []
    for log in (policy_log, ref_log):
        shown = (log[..., None] - log[..., None, :])[mask]
        found.append((gap[gap > 0] / shown[gap > 0]).mean() / heat)
    return found


def lost_by_the_largest(z, policy_log, ref_log, mask, heat):
    high, low = z[0, 0].argmax(), z[0, 0].argmin()
    gaps = [float(x[0, 0, high] - x[0, 0, low]) for x in (z, policy_log, ref_log)]
    return torch.tensor([gaps[0] / gaps[1], gaps[0] / gaps[2]]) / heat


def lost(spread=lambda x: x.std(-1), padding=False, end=lambda p, r, t: (p, r)):
    def answer(z, policy_log, ref_log, mask, heat):
        kept = mask | padding
        p, r = (spread(z[kept]).mean() / spread(y[kept]).mean() for y in (policy_log, ref_log))
        return end(p / heat, r / heat, heat)

    return answer


def lost_by_the_kl(z, policy_log, ref_log, mask, heat):
    kl = (policy_log.exp() * (policy_log - ref_log)).sum(-1)[mask].mean()
    return (1, 1) if kl.abs() < 1e-9 else lost()(z, policy_log, ref_log, mask, heat)


def lost_by_two_words(z, policy_log, ref_log, mask, heat):
    first, *logs = (x[0, 0, 0] - x[0, 0, 1] for x in (z, policy_log, ref_log))
    return [first / log / heat for log in logs]


WRONG_LOST = [
    (lost_by_the_kl, "both may have lost T"),
    (lost(end=lambda p, r, t: (r, p)), "policy and reference are swapped"),
    (lost(end=lambda p, r, t: (p, p)), "judge each side by its own log"),
    (lost(end=lambda p, r, t: (r, r)), "the value is not right"),
    (lost(end=lambda p, r, t: (1 / p, 1 / r)), "upside down"),
    (lost(end=lambda p, r, t: (p * t, r * t)), "divide it by that of the draws"),
    (lost(end=lambda p, r, t: (p * t * t, r * t * t)), "the value is not right"),
    (lost(padding=True), "the padding counts"),
    (lost(spread=lambda x: x.norm()), "compare differences of words"),
    (lost(spread=lambda x: x.abs()), "the value is not right"),
    (lost(spread=lambda x: x.var(-1)), "the value is not right"),
    (lost_by_two_words, "the value is not right"),
    (lost(end=lambda p, r, t: p), "the shape is not right"),
    (lambda *a: (1, 1), "the value is not right"),
]


# Exercise 07-attention.


def weights_in_loops(q, k, counts):
    w = torch.zeros(len(q), q.shape[1], q.shape[1], dtype=torch.float64)
    for b in range(len(q)):
        for i in range(q.shape[1]):
            if counts[b, i]:
                first = int(counts[b].long().argmax())
                near = torch.stack([q[b, i].dot(k[b, j]) for j in range(first, i + 1)])
                w[b, i, first : i + 1] = torch.softmax(near / math.sqrt(q.shape[2]), 0)
    return w


def weights_with_a_large_number(queries, keys, mask):
    q, k = queries.float(), keys.float()
    scores = torch.einsum("bid,bjd->bij", q, k) * q.size(2) ** -0.5
    scores = scores + torch.full_like(scores[0], -1e9).triu(1)
    scores = scores + (~mask)[:, None, :] * -1e9
    return scores.softmax(2) * mask[:, :, None]


def weights_by_torch(query, key, mask):
    n = mask.shape[1]
    may = (torch.ones(n, n).tril() * mask[:, None]).bool() | torch.eye(n).bool()
    reads = torch.eye(n, dtype=query.dtype).expand(len(query), n, n)
    return F.scaled_dot_product_attention(query, key, reads, may) * mask[:, :, None]


def weights(
    scale=math.sqrt, future=False, padding=False, cut=True, diagonal=False, shape=lambda s: s
):
    def answer(query, key, mask):
        n = mask.shape[1]
        scores = shape(query @ key.transpose(1, 2) / scale(query.shape[2]))
        hidden = torch.zeros(len(mask), n, n, dtype=torch.bool)
        if not future:
            hidden |= torch.triu(torch.ones(n, n), diagonal=1).bool()
        if not padding:
            hidden |= ~mask.unsqueeze(1)
        if diagonal:
            hidden &= ~torch.eye(n).bool()
        w = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.where(mask.unsqueeze(-1), w, 0.0) if cut else w

    return answer


def weights_masked_behind(query, key, mask):
    n = mask.shape[1]
    return (
        (query @ key.mT / query.shape[2] ** 0.5).softmax(-1)
        * torch.ones(n, n).tril()
        * (mask[:, None] & mask[:, :, None])
    )


WRONG_ATTENTION = [
    (weights(lambda d: 1), "√D is missing"),
    (weights(lambda d: d), "it should be √D"),
    (lambda q, k, m: weights(lambda d: q.shape[1] ** 0.5)(q, k, m), "the value is not right"),
    (weights(lambda d: 2), "the value is not right"),
    (lambda q, k, m: weights()(q, k.mul_(2), m), "key in place"),
    (lambda *a: weights()(*a)[:, :2], "shape is not right"),
    (weights(future=True), "the future is read"),
    (weights(padding=True), "padding is read"),
    (weights(future=True, padding=True), "the value is not right"),
    (weights(cut=False, diagonal=True), "the value is not right"),
    (weights(cut=False), "rows of padding are nan"),
    (weights(shape=lambda s: s.mT), "query and key are swapped"),
    (weights(shape=torch.zeros_like), "the scores are missing"),
    (weights(shape=lambda s: s.detach()), "the weights lost their gradient"),
    (weights_masked_behind, "the mask comes after the softmax"),
    (lambda q, k, m: weights()(q, k.detach(), m), "no gradient reaches key"),
    (lambda *a: weights()(*a).mT, "the value is not right"),
]


# Exercise 07-loss.


def loss_by_torch(logits, text, mask):
    start = text.shape[1] - mask.shape[1]
    rows = logits[:, start - 1 : -1].reshape(-1, logits.shape[2])
    each = F.cross_entropy(rows, text[:, start:].reshape(-1), reduction="none")
    return (each.view(mask.shape) * mask).sum() / len(mask)


def loss_in_loops(scores, tokens, counts):
    of_response = []
    for x, y, m in zip(scores.float(), tokens, counts, strict=True):
        start = len(y) - len(m)
        kept = [i for i in range(start, len(y)) if m[i - start]]
        of_response.append(sum(x[i - 1].logsumexp(0) - x[i - 1, y[i]] for i in kept))
    return sum(of_response) / len(of_response)


def loss_as_a_matrix(logits, text, mask):
    n = mask.shape[1]
    said = F.one_hot(text[:, -n:], logits.shape[2]) * mask[..., None]
    return -torch.einsum("bnv,bnv->", logits.log_softmax(2)[:, -n - 1 : -1], said.double()) / len(
        text
    )


def loss(late=0, end=lambda x, m: (x * m).sum(1).mean(), sign=-1, read=0):
    """`late` is how many rows too late the logits are taken, `read` likewise for the tokens."""

    def answer(logits, text, mask):
        n, total = mask.shape[1], text.shape[1]
        log_pi = torch.log_softmax(logits[:, total - n - 1 + late : total - 1 + late], dim=2)
        tokens = text[:, total - n + read : total + read]
        return sign * end(log_pi.gather(2, tokens.unsqueeze(2)).squeeze(2), mask)

    return answer


def loss_with_the_prompt(logits, text, mask):
    counts = F.pad(mask, (text.shape[1] - mask.shape[1] - 1, 0), value=True)
    return loss()(logits, text, counts)


def loss_without_the_first(logits, text, mask):
    return loss()(logits[:, -mask.shape[1] :], text[:, -mask.shape[1] :], mask[:, 1:])


def loss_after_two(logits, text, mask):
    log_pi = logits.log_softmax(-1)[:, 1 : 1 + mask.shape[1]]
    said = log_pi.gather(2, text[:, 2 : 2 + mask.shape[1], None])[..., 0]
    return -(said * mask).sum(1).mean()


WRONG_LOSS = [
    (loss(1), "as the buggy one"),
    (loss(1, read=-1), "shifted the wrong way"),
    (loss_without_the_first, "the first token"),
    (loss_with_the_prompt, "the prompt counts"),
    (loss_after_two, "the prompt has P tokens, not always two"),
    (loss(end=lambda x, m: x.sum(1).mean()), "the padding counts"),
    (loss(end=lambda x, m: (x * m).sum() / m.sum()), "averaged over all tokens"),
    (loss(end=lambda x, m: (x * m).mean()), "averaged over [B, T]"),
    (loss(end=lambda x, m: (x * m).mean(1).sum()), "it is divided by T"),
    (loss(end=lambda x, m: (x * m).sum(0).mean()), "it is divided by T"),
    (loss(end=lambda x, m: x[m].sum() / m.size(1)), "it is divided by T"),
    (loss(end=lambda x, m: x[m].mean() * m.size(1)), "over tokens times T"),
    (loss(end=lambda x, m: x[m].sum() / 2), "the value is not right"),
    (lambda z, *a: loss()(z, *a) * len(z) / z.shape[2], "the value is not right"),
    (loss(end=lambda x, m: ((x * m).sum(1) / m.sum(1)).mean()), "a mean of means"),
    (loss(end=lambda x, m: x[m].sum()), "responses are added up"),
    (loss(sign=1), "the sign is wrong"),
    (loss(end=lambda x, m: (x * m).sum(1)), "shape is not right"),
    (loss(end=lambda x, m: (x.exp() * m).sum(1).mean()), "these are probabilities"),
    (lambda *a: loss()(*a).item(), "lost its gradient"),
    (lambda *a: 2 * loss()(*a), "the value is not right"),
    (lambda x, text, m: loss()(x, text.clamp_(max=1), m), "text in place"),
]


RIGHT = {
    "07-lost": [lost_by_pairs, lost_by_the_largest, lost()],
    "07-attention": [
        weights_in_loops,
        weights_with_a_large_number,
        weights_by_torch,
        weights(),
        weights(diagonal=True),
    ],
    "07-loss": [loss_by_torch, loss_in_loops, loss(), loss_as_a_matrix],
}

WRONG = {"07-lost": WRONG_LOST, "07-attention": WRONG_ATTENTION, "07-loss": WRONG_LOSS}
