"""Lesson 05: from a trained policy to the price of a nat, and the share of later KL it paid."""

import math

from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, sizes, uniform


def _trained(generator: Generator, k: int) -> dict:
    v, w = sizes(k, 2)
    table = normal(v, w, generator=generator)
    if k == 2:
        table[0] = table[0, 0]  # a row that says nothing about beta
    p_first = normal(v, generator=generator).softmax(-1)
    p_second = normal(v, w, generator=generator).softmax(-1)
    beta = uniform(0.04, 0.06, generator) if k == 1 else uniform(0.4, 0.8, generator)
    share = (1.0, 0.0, -1.0, uniform(0.3, 0.7, generator))[k]
    pi_second = (p_second.log() + table / beta).softmax(-1)
    gross = (pi_second * table).sum(-1)
    net = beta * (p_second.log() + table / beta).logsumexp(-1)
    pi_first = (p_first.log() + (gross - share * (gross - net)) / beta).softmax(-1)
    names = ("p_first", "p_second", "table", "pi_first", "pi_second")
    return dict(zip(names, (p_first, p_second, table, pi_first, pi_second), strict=True))


def _diagnose(p: Tensor, q: Tensor, table: Tensor, pi_p: Tensor, pi_q: Tensor) -> tuple:
    """By two tokens: the words furthest apart in the table, the first tokens furthest in KL."""
    x, y = pi_q.log() - q.log(), pi_p.log() - p.log()
    row = (table.amax(1) - table.amin(1)).argmax()
    high, low = table[row].argmax(), table[row].argmin()
    beta = (table[row, high] - table[row, low]) / (x[row, high] - x[row, low])
    kl, gross = (pi_q * x).sum(1), (pi_q * table).sum(1)
    a, b = kl.argmax(), kl.argmin()
    return beta, ((gross[a] - gross[b]) / beta - y[a] + y[b]) / (kl[a] - kl[b])


def _with(weights=lambda q, pi: pi, kl=lambda q, pi: (pi * (pi / q).log()).sum(1), centred=True):
    def answer(p, q, table, pi_p, pi_q):
        beta = _diagnose(p, q, table, pi_p, pi_q)[0]
        paid = kl(q, pi_q)
        missing = (weights(q, pi_q) * table).sum(1) / beta - (pi_p / p).log()
        if centred:
            missing, paid = missing - missing.mean(), paid - paid.mean()
        return beta, (missing * paid).sum() / paid.square().sum()

    return answer


def _then(change):
    return lambda *a: change(*_diagnose(*a))


DROPPED = Exercise(
    name="05-dropped",
    draw=_trained,
    route=_diagnose,
    mistakes={
        "β is upside down": _then(lambda beta, c: (1 / beta, c)),
        "β is per nat: take natural logarithms": _then(lambda beta, c: (beta * math.log(2), c)),
        "this is the share that was dropped; c is the share charged":
            _then(lambda beta, c: (beta, 1 - c)),
        "c is measured from the net value here; start from the mean reward":
            _then(lambda beta, c: (beta, c - 1)),
        "the sign of c is wrong": _then(lambda beta, c: (beta, -c)),
        "c is a share: divide by β too": _then(lambda beta, c: (beta, beta * c)),
        "β and c are swapped": _then(lambda beta, c: (c, beta)),
        "the mean reward is one under the trained policy, not the reference":
            _with(weights=lambda q, pi: q),
        "the KL's arguments are swapped: the policy stands first":
            _with(kl=lambda q, pi: (q * (q / pi).log()).sum(1)),
        "the log-ratios are weighted by the reference; the policy stands first":
            _with(kl=lambda q, pi: (q * (pi / q).log()).sum(1)),
        "what all first tokens have in common says nothing: subtract means":
            _with(centred=False),
    },
)  # fmt: skip
