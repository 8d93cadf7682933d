"""Answers to the exercises of lesson 11 as learners write them."""

import numpy as np
import torch

# Exercise 11-mend: right answers in other styles, then wrong ones with what they are told.


def mend_by_a_triangle(log_p, log_ref, reward, price, counts):
    k1 = torch.where(counts, log_p - log_ref.detach(), 0.0)
    with torch.no_grad():
        after = k1 @ torch.ones_like(k1[0].diag()).tril(-1)
        bracket = reward.unsqueeze(1) - price * after
    kept = torch.where(counts, log_p, 0.0)
    return (torch.einsum("bt,bt->b", kept, bracket) - price / 2 * (k1**2).sum(1)).mean()


def mend_in_single_precision(log_probs, ref_log_probs, rewards, beta, mask):
    total = 0
    for i in range(len(mask)):
        x, y = log_probs[i][mask[i]].float(), ref_log_probs[i][mask[i]].detach().float()
        for t in range(len(x)):
            later = (x - y)[t + 1 :].sum().item()
            total += x[t] * (rewards[i].item() - beta * later) - beta * (x[t] - y[t]) ** 2 / 2
    return total / len(mask)


def back(k):
    return torch.flip(torch.cumsum(torch.flip(k, [1]), 1), [1])


def mend(
    charge=lambda k: back(k) - k, loss=lambda k: 0.5 * k * k, *, leak=False, detach=True,
    end=lambda y: y.sum(1).mean(),
):  # fmt: skip
    def answer(x, ref, r, b, m):
        k1 = (x - ref.detach()) * (m | leak)
        charged = charge(k1)
        bracket = r.detach()[:, None] - b * (charged.detach() if detach else charged)
        return end((x * bracket - b * loss(k1)) * m)

    return answer


def mend_with_live_constants(x, ref, r, b, m):
    k1 = (x - ref) * m
    return ((x * (r[:, None] - b * (back(k1) - k1).detach()) - b * k1**2 / 2) * m).sum(1).mean()


WRONG_MEND = [
    (mend(lambda k: 0 * k), "still not charged"),
    (mend(back), "stands in the loss too"),
    (mend(back, lambda k: 0 * k), "the value is not right"),
    (mend(loss=lambda k: 0 * k), "left the loss"),
    (mend(lambda k: back(k * k / 2) - k * k / 2), "charged with their k2"),
    (mend(lambda k: torch.cumsum(k, 1) - k), "earlier log-ratios are charged, not later"),
    (mend(lambda k: k.sum(1)[:, None] - k), "earlier ones are charged too"),
    (mend(lambda k: torch.nn.functional.pad(k[:, 1:], (0, 1))), "the value is not right"),
    (mend(lambda k: k - back(k)), "are rewarded"),
    (mend(loss=lambda k: k), "k1 in the loss"),
    (mend(loss=lambda k: torch.exp(-k) - 1 + k), "k3 in the loss"),
    (mend(loss=lambda k: k**2), "k2 has a half"),
    (mend(leak=True), "log-ratios of the padding"),
    (mend(detach=False), "what is charged is a constant"),
    (mend(end=lambda y: y.sum()), "responses are added up"),
    (mend(end=lambda y: -y.sum(1).mean()), "sign is wrong"),
    (mend(end=lambda y: y.mean()), "averaged over [B, T]"),
    (mend(end=lambda y: y.sum(1)), "the shape is not right"),
    (lambda x, ref, r, b, m: mend()(x, ref, r, 1.0, m), "β is missing"),
    (mend_with_live_constants, "reaches ref_log_probs and rewards: detach"),
    (lambda *a: mend()(*a).item(), "no gradient reaches log_probs"),
]


# Exercise 11-temperature.


def read_by_the_sum(logits, gradients):
    """The drawn entry makes up for all others; the widest apart of those give the scale."""
    tokens, scales = [], []
    for g in gradients:
        a = int(torch.isclose(g.abs(), g.abs().sum() / 2).nonzero()[0])
        order = [v for v in logits.argsort().tolist() if v != a]
        low, high = order[0], order[-1]
        scales.append(torch.log(g[high] / g[low]) / (logits[high] - logits[low]))
        tokens.append(a)
    return tokens, scales


def read_in_numpy(logits, gradients):
    z, tokens, scales = logits.numpy(), [], []
    for g in gradients.float().numpy():
        positive = g > 0
        a = int(np.flatnonzero(positive if positive.sum() == 1 else ~positive)[0])
        rest = np.delete(np.arange(len(g)), a)
        tokens.append(a)
        scales.append(np.polyfit(z[rest], np.log(np.abs(g[rest])), 1)[0])
    return np.array(tokens), np.array(scales)


def read(token=lambda g: g.abs().argmax(), x=lambda z: z, y=lambda g: g.abs().log(), out=True):
    def answer(logits, gradients):
        tokens, scales = [], []
        for g in gradients:
            rest = torch.arange(len(g)) != (g.abs().argmax() if out else -1)
            a, b = x(logits[rest]), y(g[rest])
            a = a - a.mean()
            tokens.append(token(g))
            scales.append(a @ b / (a @ a))
        return torch.stack(tokens), torch.stack(scales)

    return answer


WRONG_READ = [
    (read(lambda g: g.argmax()), "not the largest entry"),
    (read(lambda g: g.abs().argmin()), "returned 1 of 2"),
    (read(lambda g: g.argmin()), "returned 1 of 2"),
    (read(out=False), "no probability"),
    (read(y=lambda g: g.abs()), "take their logarithm"),
    (read(x=lambda z: z.exp()), "returned 2 of 2"),
    (lambda z, g: (read()(z, g)[0], 1 / read()(z, g)[1]), "this is 1/s"),
    (lambda z, g: (read()(z, g)[0], -read()(z, g)[1]), "sign of s"),
    (lambda z, g: (read()(z, g)[0] + 1, read()(z, g)[1]), "numbered from 0"),
    (lambda z, g: read()(z, g)[::-1], "wrong order"),
    (lambda z, g: read()(z, g)[1], "the shape is not right"),
]


# Exercise 11-habits.


def habits_in_loops(quiet, one, two):
    found = []
    for n in range(len(one)):
        if abs(float(one[n, 0])) > 1e-6:
            found.append(1)
        elif float(quiet[n, -1]) > 0.1 * float(quiet[n, 0]):
            found.append(2)
        elif float(two[n, -1]) > 0.8 * float(one[n, -1]):
            found.append(3)
        else:
            found.append(0)
    return found


def habits_by_rank(silent, once, twice):
    tests = [once[:, 0].abs() > 1e-6, silent[:, -1] > silent[:, 0] / 10]
    tests = torch.stack([~tests[0] & False, *tests, twice[:, -1] > 0.8 * once[:, -1]])
    return tests.int().argmax(0)


def habits(
    start=lambda x: x[:, 0].abs() > 1e-6, home=lambda q: q[:, -1] > q[:, 0] / 10,
    double=lambda x, y: y[:, -1] > 0.8 * x[:, -1], order=(3, 2, 1),
):  # fmt: skip
    def answer(silent, once, twice):
        tests = {1: start(once), 2: home(silent), 3: double(once, twice)}
        found = torch.zeros(len(once)).long()
        for number in order:
            found[tests[number]] = number
        return found

    return answer


WRONG_HABITS = [
    (habits(start=lambda x: x[:, 0] > 1e-6), "below 0"),
    (habits(start=lambda x: x[:, 0] != 0), "rounding"),
    (habits(home=lambda q: q.min(1).values > q[:, 0] / 10), "not its least"),
    (habits(double=lambda x, y: x[:, -1] > 0.8 * y[:, -1]), "other way round"),
    (habits(double=lambda x, y: y.max(1).values > 0.8 * x.max(1).values), "largest numbers"),
    (habits(double=lambda x, y: y[:, -1] > x[:, -1]), "a fifth"),
    (habits(order=(1, 2, 3)), "first habit"),
    (habits(order=(3, 1)), "the value is not right"),
    (lambda *a: habits()(*a) - 1, "not right"),
    (lambda *a: torch.where(habits()(*a) == 0, 4, habits()(*a)), "the number is 0"),
]


RIGHT = {
    "11-mend": [mend_by_a_triangle, mend_in_single_precision, mend()],
    "11-temperature": [read_by_the_sum, read_in_numpy, read()],
    "11-habits": [habits_in_loops, habits_by_rank, habits()],
}

WRONG = {
    "11-mend": WRONG_MEND,
    "11-temperature": WRONG_READ,
    "11-habits": WRONG_HABITS,
}
