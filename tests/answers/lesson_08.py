"""Answers to the exercises of lesson 08 as learners write them."""

import numpy as np
import torch
from torch.nn import functional as F

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


# Exercise 08-scale.


def scale_in_loops(margins, cs):
    best, gains = [], []
    for row in margins:
        losses = [-F.logsigmoid(c * row).mean().item() for c in cs]
        best.append(cs[losses.index(min(losses))].item())
        gains.append(-F.logsigmoid(row).mean().item() - min(losses))
    return best, int(np.argmax(gains))


def scale_in_numpy(ahead, factors):
    a, c = ahead.numpy(), factors.numpy()
    sums = np.logaddexp(0, -a[:, None] * c[:, None]).sum(-1)
    return c[sums.argmin(1)], (np.logaddexp(0, -a).sum(-1) - sums.min(1)).argmax()


def scale_in_single_precision(ahead, factors):
    ahead, factors = ahead.float(), factors.float()
    losses = F.softplus(torch.einsum("gn,k->kgn", -ahead, factors)).sum(2)
    least, which = losses.min(dim=0)
    return factors[which], (F.softplus(-ahead).sum(1) - least).argmax()


def scale(loss=lambda d: -F.logsigmoid(d), ends=torch.min, gain=torch.sub, index=torch.argmax):
    def answer(ahead, factors):
        losses = torch.stack([loss(c * ahead).mean(1) for c in factors])
        end, which = ends(losses, dim=0)
        return factors[which], index(gain(loss(ahead).mean(1), end))

    return answer


WRONG_SCALE = [
    (scale(gain=lambda own, end: own), "may be ignorance"),
    (lambda a, f: (scale()(a, f)[0], (a > 0).sum(1).argmin()), "accuracy is blind"),
    (lambda a, f: ((b := scale()(a, f)[0]), b.log().abs().argmax()), "may gain little"),
    (lambda a, f: scale()(a, 1 / f), "the value is not right"),
    (scale(ends=torch.max), "the value is not right"),
    (scale(index=torch.argmin), "gains least"),
    (lambda a, f: scale()(-a, f), "sign is wrong"),
    (scale(loss=lambda d: -d.sigmoid().log()), "use logsigmoid"),
    (scale(loss=lambda d: (1 + (-d).exp()).log()), "use logsigmoid"),
    (scale(loss=lambda d: (d <= 0).double()), "the value is not right"),
    (scale(loss=lambda d: (1 - d.sigmoid()) ** 2), "the value is not right"),
    (lambda a, f: scale()(a, f)[0], "yours 1 array [4]"),
    (lambda a, f: scale()(a, f)[::-1], "the shape is not right"),
    (lambda a, f: scale()(a[:, :4], f), "the value is not right"),
    (lambda a, f: scale()(a.clamp(-50, 50), f.sort()[0])[:1] * 2, "the shape is not right"),
    (lambda a, f: scale()(a, f.clamp(max=1)), "the value is not right"),
    (lambda a, f: scale()(a.mul_(1), f.sub_(0.1)), "factors in place"),
]


# Exercise 08-unit.


def unit_in_loops(reward, p, price, c):
    mean = sum(q * r for q, r in zip(p, reward, strict=True))
    new = torch.stack([c * (r - mean) for r in reward])
    z = torch.logsumexp(new / (c * price) + p.log(), dim=0)
    return new, c * price, c * price * z


def unit_in_single_precision(rewards, ref_probs, beta, scale):
    r, p = rewards.float(), ref_probs.float()
    old = beta * torch.logsumexp(torch.log(p) + r / beta, 0)  # J* before, in the old unit
    return [scale * (r - p @ r), torch.tensor(scale * beta), scale * (old - p @ r)]


def unit_as_lists(rewards, ref_probs, beta, scale):
    mean = (rewards * ref_probs).sum()
    new = [scale * (r - mean) for r in rewards]
    top = torch.logsumexp(torch.log(ref_probs) + torch.stack(new) / (beta * scale), 0)
    return [new, beta * scale, beta * scale * top]


def unit(shift=torch.dot, beta=lambda b, c: c * b, factor=lambda c: c, end=None):
    def answer(r, p, b, c):
        new, price = factor(c) * (r - shift(p, r)), beta(b, c)
        value = price * (p.log() + new / price).logsumexp(0)
        return new, price, end(value, new, p, price, c) if end else value

    return answer


def reward_of_best(value, new, p, price, c):
    return (p.log() + new / price).softmax(0) @ new


def log_z(tilt, p):
    return (p.log() + tilt).logsumexp(0)


def unit_that_overflows(r, p, b, c):
    new = c * (r - p @ r)
    return new, b * c, b * c * (p @ (new / b / c).exp()).log()


WRONG_UNIT = [
    (unit_that_overflows, "logsumexp"),
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
        lambda r, p, b, c: ((new := c * r - p @ r), b * c, log_z(new / b / c, p) * b * c),
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
    "08-loss": [loss_by_torch, loss_in_single_precision, loss_in_loops, choice(), loss_by_einsum],
    "08-scale": [scale_in_loops, scale_in_numpy, scale_in_single_precision, scale()],
    "08-unit": [unit_in_loops, unit_in_single_precision, unit(), unit_as_lists],
}

WRONG = {"08-loss": WRONG_LOSS, "08-scale": WRONG_SCALE, "08-unit": WRONG_UNIT}
