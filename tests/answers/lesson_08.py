"""Answers to the exercises of lesson 08 as learners write them."""

import numpy as np
import torch
from torch.nn import functional as F

# Exercise 08-votes: right answers in other styles, then wrong ones with what they are told.


def votes_in_loops(a, b, how_often):
    shares = []
    for i in range(a.shape[1]):
        wins = sum(1 for k in range(a.shape[0]) if a[k, i] > b[k, i])
        losses = sum(1 for k in range(a.shape[0]) if a[k, i] < b[k, i])
        shares.append(0.5 if wins + losses == 0 else wins / (wins + losses))
    best = sum(w * max(p, 1 - p) for w, p in zip(how_often.tolist(), shares, strict=True))
    twice = sum(w * (p * p + (1 - p) ** 2) for w, p in zip(how_often.tolist(), shares, strict=True))
    return [torch.tensor(shares), best, twice]


def votes_in_numpy(worth_a, worth_b, weights):
    sign = np.sign((worth_a - worth_b).numpy())
    voters = np.abs(sign).sum(axis=0)
    p = 0.5 + 0.5 * sign.sum(axis=0) / np.maximum(voters, 1)
    w = weights.numpy()
    return p, w @ np.maximum(p, 1 - p), w @ (1 - 2 * p * (1 - p))


def votes_in_single_precision(worth_a, worth_b, weights):
    prefer = torch.stack([worth_a > worth_b, worth_b > worth_a]).sum(1).float()
    p = prefer / prefer.sum(0)
    p[p.isnan()] = 0.5
    weights = weights.float()
    return p[0], (p.amax(0) * weights).sum(), torch.einsum("sn,sn,n->", p, p, weights)


def votes_in_lists(worth_a, worth_b, weights):
    d = (worth_a - worth_b).T.tolist()
    shares = [[x > 0 for x in row if x] for row in d]
    p = [sum(row) / len(row) if row else 0.5 for row in shares]
    w = weights.tolist()
    best = [max(x, 1 - x) for x in p]
    same = [1 - 2 * x * (1 - x) for x in p]
    return p, *(sum(a * b for a, b in zip(w, y, strict=True)) for y in (best, same))


def votes(ties="drop", ceiling=None, both=None, mean=torch.dot, empty=0.5):
    def answer(a, b, w):
        n_a, n_b, n = (a > b).sum(0).double(), (a < b).sum(0).double(), a.shape[0]
        p = {"drop": n_a / (n_a + n_b), "half": (n_a + (n - n_a - n_b) / 2) / n, "b": n_a / n}[ties]
        p = p.nan_to_num(empty)
        top = ceiling(p) if ceiling else torch.maximum(p, 1 - p)
        return p, mean(w, top), mean(w, both(p) if both else p**2 + (1 - p) ** 2)

    return answer


def votes_of_the_mean(a, b, w):
    p, _, same = votes()(a, b, w)
    first = a.sum(0) > b.sum(0)
    return p, (w * first * p + w * ~first * (1 - p)).sum(), same


def votes_with_one_majority_for_all(a, b, w):
    p, _, same = votes()(a, b, w)
    overall = torch.dot(w, p).item()
    return p, max(overall, 1 - overall), same


WRONG_VOTES = [
    (votes("b"), "divide by those who vote"),
    (votes("half"), "nor half of one"),
    (votes(empty=torch.nan), "not nan"),
    (votes(empty=0.0), "not 0"),
    (lambda a, b, w: votes()(b, a, w), "that of A, not of B"),
    (lambda a, b, w: [votes()(a, b, w)[k] for k in (0, 2, 1)], "are swapped"),
    (votes_of_the_mean, "right for the mean worth"),
    (votes_with_one_majority_for_all, "found for each pair"),
    (votes(ceiling=lambda p: p), "favourite of a pair may be B"),
    (votes(both=lambda p: p * p), "also agree when both prefer B"),
    (votes(both=lambda p: p**2 + 1 - p**2), "is not (1 - p)²"),
    (votes(both=lambda p: p**2 - (1 - p) ** 2), "the value is not right"),
    (votes(mean=lambda w, x: x.mean()), "the weights are missing"),
    (votes(mean=lambda w, x: torch.mean(w * x)), "once more"),
    (votes(mean=lambda w, x: w * x), "the shape is not right"),
    (votes(mean=lambda w, x: (w * x).sum() * len(w) / 4), "the value is not right"),
    (lambda a, b, w: votes()(a[:, :4], b[:, :4], w[:4]), "the shape is not right"),
    (lambda a, b, w: votes()(a[:3], b[:3], w), "the value is not right"),
    (lambda a, b, w: votes()(a.sub_(b), 0 * b, w), "worth_a in place"),
    (lambda a, b, w: votes()(a, b, w)[0], "yours 1 array [4]"),
]


# Exercise 08-loss.


def loss_by_torch(r_a, r_b, p, w):
    return F.binary_cross_entropy_with_logits(r_a - r_b, p, weight=w, reduction="sum")


def loss_in_single_precision(reward_a, reward_b, share, weights):
    d, p, w = (x.float() for x in (reward_a - reward_b, share, weights))
    return w @ (F.softplus(d) - p * d)


def loss_in_loops(reward_a, reward_b, share, weights):
    zero, total = torch.zeros((), dtype=torch.float64), 0
    for a, b, p, w in zip(reward_a, reward_b, share.tolist(), weights.tolist(), strict=True):
        total += w * p * torch.logaddexp(zero, b - a) + w * (1 - p) * torch.logaddexp(zero, a - b)
    return total


def loss_by_einsum(reward_a, reward_b, share, weights):
    log_p = torch.stack([reward_a, reward_b], dim=1).log_softmax(dim=1)
    return -torch.einsum("n,nk,nk->", weights, torch.stack([share, 1 - share], 1), log_p)


def sigma(d):
    return 1 / (1 + torch.exp(-d))


def choice(log_a=F.logsigmoid, log_b=lambda d: F.logsigmoid(-d), end=lambda x, w: -(x * w).sum()):
    def answer(a, b, p, w):
        d = a - b
        return end(p * log_a(d) + (1 - p) * log_b(d), w)

    return answer


WRONG_LOSS = [
    (choice(end=lambda x, w: (x * w).sum()), "sign is wrong"),
    (choice(lambda d: sigma(d).log(), lambda d: (1 - sigma(d)).log()), "use logsigmoid"),
    (choice(lambda d: sigma(d).log(), lambda d: sigma(-d).log()), "a large d gives inf"),
    (
        choice(lambda d: -(1 + (-d).exp()).log(), lambda d: -(1 + d.exp()).log()),
        "large d gives inf",
    ),
    (choice(lambda d: (sigma(d) + 1e-9).log()), "the value is not right"),
    (
        lambda a, b, p, w: w @ F.binary_cross_entropy((a - b).sigmoid(), p, reduction="none"),
        "cuts the loss off at 100",
    ),
    (lambda a, b, p, w: choice()(b, a, p, w), "A and B are swapped"),
    (choice(log_b=torch.zeros_like), "the term with 1 - p is missing"),
    (lambda a, b, p, w: -(w * F.logsigmoid(a - b)).sum(), "shares are missing"),
    (lambda a, b, p, w: choice()(a, b, p.round(), w), "became 0 or 1"),
    (choice(sigma, lambda d: sigma(-d)), "the value is not right"),
    (choice(end=lambda x, w: -x.mean()), "the weights are missing"),
    (choice(end=lambda x, w: -(x * w).mean()), "once more"),
    (choice(end=lambda x, w: -x * w), "the shape is not right"),
    (lambda a, b, p, w: choice()(a, b.detach(), p, w), "reward_b lost its gradient"),
    (lambda *x: choice()(*x).item(), "no gradient reaches reward_a and reward_b"),
    (lambda *x: choice()(*x) * len(x[0]) / 3, "the value is not right"),
    (choice(lambda d: F.logsigmoid(d).clamp(min=-100)), "the value is not right"),
    (choice(lambda d: F.logsigmoid(d.clamp(-30, 30))), "the value is not right"),
    (lambda a, b, p, w: choice()(a, b, p, w.div_(w.sum())), "weights in place"),
    (lambda a, b, p, w: choice()(a[:3], b[:3], p[:3], w[:3]), "the value is not right"),
]


# Exercise 08-end.


def end_in_loops(numbers, tokens, stop):
    out = []
    for row, said in zip(numbers, tokens, strict=True):
        length = 0
        for token in said:
            length += 1
            if token == stop:
                break
        out.append(row[length])
    return torch.stack(out)


def end_by_a_product(values, responses, end_token):
    goes_on = torch.cumprod(responses != end_token, dim=1)
    length = torch.clip(goes_on.sum(1) + 1, max=responses.shape[1])
    return torch.einsum("bt,bt->b", values.float(), F.one_hot(length, values.shape[1]).float())


def end_as_a_list(values, responses, end_token):
    lengths = [
        (row.index(end_token) + 1 if end_token in row else len(row)) for row in responses.tolist()
    ]
    return [v[n] for v, n in zip(values, lengths, strict=True)]


def end_by_argmax(values, responses, end_token):
    ends = responses == end_token
    ends[:, -1] = True
    return values.gather(1, 1 + ends.int().argmax(1, keepdim=True)).flatten()


def read(column):
    def answer(values, responses, end_token):
        ends = responses == end_token
        return values[range(len(ends)), column(ends, (ends.cumsum(1) == 0).sum(1))]

    return answer


WRONG_END = [
    (read(lambda ends, n: (n + 1).clamp(max=ends.shape[1]) - 1), "too early"),
    (read(lambda ends, n: (n + 2).clamp(max=ends.shape[1])), "too late"),
    (read(lambda ends, n: n), "the end token belongs to the response"),
    (lambda v, y, end: v[:, -1], "this is the last column"),
    (lambda v, y, end: v[:, 0], "this is column 0"),
    (
        read(lambda ends, n: ((~ends).sum(1) + 1).clamp(max=ends.shape[1])),
        "tokens behind the end are counted",
    ),
    (
        lambda v, y, end: torch.stack(
            [
                r[max([t + 1 for t in range(len(s)) if s[t] == end] or [len(s)])]
                for r, s in zip(v, y, strict=True)
            ]
        ),
        "the first end token counts",
    ),
    (read(lambda ends, n: ends.int().argmax(1) + 1), "without an end token ends with its last"),
    (read(lambda ends, n: ends.int().argmax(1)), "add 1, and mind"),
    (read(lambda ends, n: (n + 1).clamp(max=4)), "the value is not right"),
    (lambda *a: end_in_loops(*a).abs(), "take no abs"),
    (lambda *a: end_in_loops(*a).clamp(min=0), "do not cut it off"),
    (lambda v, y, end: end_in_loops(v, y.fill_(end), end), "responses in place"),
    (lambda v, y, end: end_in_loops(v[:4], y[:4], end), "the shape is not right"),
    (lambda v, y, end: v.mean(dim=1), "the columns are averaged"),
    (lambda v, y, end: end_in_loops(v, y, 0), "the value is not right"),
    (lambda v, y, end: v.gather(1, (y != end).cumprod(1)), "the shape is not right"),
    (lambda v, y, end: end_in_loops(v, y, end).detach(), "no gradient reaches values"),
]


# Exercise 08-unit.


def unit_in_loops(reward, p, price, c):
    mean = sum(q * r for q, r in zip(p, reward, strict=True))
    new = torch.stack([c * (r - mean) for r in reward])
    z = sum(q * (r / (c * price)).exp() for q, r in zip(p, new, strict=True))
    return new, c * price, c * price * z.log()


def unit_in_single_precision(rewards, ref_probs, beta, scale):
    r, p = rewards.float(), ref_probs.float()
    old = beta * torch.log(p @ torch.exp(r / beta))  # J* before, in the old unit
    return [scale * (r - p @ r), torch.tensor(scale * beta), scale * (old - p @ r)]


def unit_as_lists(rewards, ref_probs, beta, scale):
    mean = (rewards * ref_probs).sum()
    new = [scale * (r - mean) for r in rewards]
    top = torch.logsumexp(torch.log(ref_probs) + torch.stack(new) / (beta * scale), 0)
    return [new, beta * scale, beta * scale * top]


def unit(shift=torch.dot, beta=lambda b, c: c * b, factor=lambda c: c, end=None):
    def answer(r, p, b, c):
        new, price = factor(c) * (r - shift(p, r)), beta(b, c)
        value = price * (p * (new / price).exp()).sum().log()
        return new, price, end(value, new, p, price, c) if end else value

    return answer


def reward_of_best(value, new, p, price, c):
    return (p.log() + new / price).softmax(0) @ new


WRONG_UNIT = [
    (unit(beta=lambda b, c: b / c), "β is divided by c"),
    (unit(beta=lambda b, c: b), "β stays as it was"),
    (unit(lambda p, r: r.mean()), "weigh the mean"),
    (unit(lambda p, r: 0), "the rewards are not shifted"),
    (unit(lambda p, r: -p @ r), "the mean is added"),
    (unit(factor=lambda c: 1), "not multiplied by c"),
    (unit(factor=lambda c: 1 / c, beta=lambda b, c: b / c), "c divides"),
    (unit(lambda p, r: p.detach() @ r.detach()), "the mean lost its gradient"),
    (unit(end=lambda value, new, p, price, c: value / c), "J* is in the old unit"),
    (unit(end=lambda value, new, p, price, c: value / price), "J* lacks the factor"),
    (unit(end=reward_of_best), "J* is less by the price of its KL"),
    (unit(end=lambda value, new, p, price, c: p @ new), "the value is not right"),
    (
        lambda r, p, b, c: ((new := c * r - p @ r), b * c, (p @ (new / b / c).exp()).log() * b * c),
        "multiplied by c too",
    ),
    (lambda *x: unit()(*x)[:2], "yours 2 things (array [3], number)"),
    (lambda *x: [unit()(*x)[0][:3], *unit()(*x)[1:]], "the shape is not right"),
    (lambda *x: [unit()(*x)[0].abs(), *unit()(*x)[1:]], "take no abs"),
    (lambda r, p, b, c: unit()(r, p, b, max(c, 1)), "the value is not right"),
    (lambda r, p, b, c: unit()(r.sub_(p @ r), p, b, c), "rewards in place"),
    (lambda *x: [y.detach() if torch.is_tensor(y) else y for y in unit()(*x)], "no gradient"),
]


RIGHT = {
    "08-votes": [
        votes_in_loops,
        votes_in_numpy,
        votes_in_single_precision,
        votes(),
        votes_in_lists,
    ],
    "08-loss": [loss_by_torch, loss_in_single_precision, loss_in_loops, choice(), loss_by_einsum],
    "08-end": [end_in_loops, end_by_a_product, end_by_argmax, end_as_a_list],
    "08-unit": [unit_in_loops, unit_in_single_precision, unit(), unit_as_lists],
}

WRONG = {
    "08-votes": WRONG_VOTES,
    "08-loss": WRONG_LOSS,
    "08-end": WRONG_END,
    "08-unit": WRONG_UNIT,
}
