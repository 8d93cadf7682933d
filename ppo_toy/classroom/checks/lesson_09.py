"""Lesson 09, RLHF: rolling out, two rulers; the other two exercises have a module each."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.checks.lesson_09_surrogate import SURROGATE
from ppo_toy.classroom.checks.lesson_09_updates import UPDATES
from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import log_p, normal, same, sizes, uniform
from ppo_toy.kl import kl_of_log_probs as _kl

# Rolling out.


def _tables(generator: Generator, k: int) -> dict:
    """One response at least ends early, and one does not end.

    The first one draws token 0, then one of a fair two, with a `u` on their border. In case 1 the
    second begins with one of a fair ten and the largest `u`, which is more than ten times 1/10.
    """
    b, t, v = sizes(k, 3, low=3)
    v = 10 if k == 1 else v
    while True:
        first, after = normal(v, generator=generator), normal(v, v, generator=generator)
        u = torch.rand(b, t, generator=generator, dtype=torch.float64).round(decimals=2)
        after[0], after[0, :2], u[0, :2] = -100, 0, torch.tensor([0, 0.5])
        if k == 1:
            first, u[1, 0] = torch.zeros_like(first), 1 - 2**-53
        end = int(torch.randint(1, v, (), generator=generator))
        lengths = _rolled(first, after, u, end)[1].sum(dim=1)
        if lengths.min() < t - 1 and lengths.max() == t and u.max() < 1:
            return {"first": first, "after": after, "u": u, "end": end}


def _rolled(first: Tensor, after: Tensor, u: Tensor, end: int) -> tuple:
    """Response by response, in plain numbers; the log-probabilities from odds."""
    tokens, mask = torch.full(u.shape, end), torch.zeros(u.shape, dtype=torch.bool)
    log_probs = torch.zeros_like(u)
    for i in range(len(u)):
        odds = first.exp()
        for t in range(u.shape[1]):
            left, token = u[i, t] * odds.sum(), 0
            while token < len(odds) - 1 and left >= odds[token]:
                left, token = left - odds[token], token + 1
            tokens[i, t], mask[i, t] = token, True
            log_probs[i, t] = odds[token].log() - odds.sum().log()
            if token == end:
                break
            odds = after[token].exp()
    return tokens, mask, log_probs


def _count(p: Tensor, u: Tensor, passed=torch.le) -> Tensor:
    return passed(p.cumsum(-1)[:, :-1], u[:, None]).sum(-1)


def _roll(pick=_count, row="after", log=log_p, short="", stop=True, pad=lambda end: end, cut=True):
    """A roll-out with something else in the place of some of it.

    `short` names the results in which the end token does not count: "mask", "log" or both.
    """

    def answer(first, after, u, end):
        logits, going = first.expand(len(u), -1), torch.ones(len(u), dtype=torch.bool)
        columns = []
        for t in range(u.shape[1]):
            token = pick(logits.softmax(-1), u[:, t])
            token = token.where(going, pad(end)) if pad else token
            before = going & (token != end)
            counts, heard = (before if name in short else going for name in ("mask", "log"))
            log_p = log(logits).gather(-1, token[:, None])[:, 0]
            columns.append((token, counts, log_p.masked_fill(~heard, 0) if cut else log_p))
            going = going & ((token != end) | (not stop))
            logits = {"after": after, "column": after.T, "first": first.expand_as(after)}[row][
                token
            ]
        return tuple(torch.stack(x, dim=1) for x in zip(*columns, strict=True))

    return answer


ROLL_OUT = Exercise(
    name="09-roll-out",
    draw=_tables,
    route=_rolled,
    differentiate=("first", "after"),
    own=("sample", "draw"),
    mistakes={
        "it goes on after the end token: nothing counts behind it": _roll(stop=False),
        "the end token counts too: the mask is True up to and including it":
            _roll(short="mask log"),
        "the end token counts too in the mask": _roll(short="mask"),
        "the end token has a log-probability too": _roll(short="log"),
        "behind the end the log-probabilities must be 0": _roll(cut=False),
        "behind the end the tokens must be `end`": _roll(pad=None),
        "behind the end the tokens must be `end`, not 0": _roll(pad=lambda end: 0),
        "compare with ≤, not with <: a sum that equals u is counted too":
            _roll(lambda p, u: _count(p, u, torch.lt)),
        "each token is drawn like a first one; what follows v is in row v": _roll(row="first"),
        "the table is read by columns: row v holds what follows v": _roll(row="column"),
        "the likeliest token is taken; draw it with u": _roll(lambda p, u: p.argmax(-1)),
        "only the first u of each row is used: every token has its own":
            (lambda f, a, u, end: _roll()(f, a, u[:, :1].expand_as(u), end)),
        "these are logits; normalise them to log-probabilities": _roll(log=same),
        "these are probabilities; take logarithms": _roll(log=lambda x: x.softmax(-1)),
        "the log-probabilities lost their gradient": _roll(log=lambda x: log_p(x).detach()),
    },
)  # fmt: skip


# Two rulers.


def _listed(generator: Generator, k: int) -> dict:
    """A policy on the way to the best one; in case 1 it is there, in case 2 it went back."""
    log_ref, rewards, noise = normal(3, *sizes(k, 2), generator=generator)
    log_ref, beta = log_ref.log_softmax(-1), uniform(0.4, 0.8, generator)
    way, noise = (0.6, 1, -0.5, 0.4)[k], 0.3 * noise * (k != 1)
    log_pi = (log_ref + way * rewards / beta + noise).log_softmax(-1)
    return {"log_pi": log_pi, "log_ref": log_ref, "rewards": rewards, "beta": beta}


def _by_the_best(log_pi: Tensor, log_ref: Tensor, rewards: Tensor, beta: float) -> tuple:
    """From the best policy itself: both gaps are β times a KL to it."""
    mass = log_ref.exp() * (rewards / beta).exp()
    log_best = (mass / mass.sum(dim=1, keepdim=True)).log()
    left, whole = (_kl(x, log_best).mean() for x in (log_pi, log_ref))
    return 1 - left / whole, left


def _log_z(q: Tensor, r: Tensor, b: float) -> Tensor:
    return (q + r / b).logsumexp(1)


def _rule(
    best=lambda q, r, b: b * _log_z(q, r, b), kl=_kl, price=same, over=Tensor.mean,
    share=lambda j, ref, top: (j - ref) / (top - ref), gap=lambda x, b: x / b,
):  # fmt: skip
    """Both rulers with something else in the place of some of them."""

    def answer(x, q, r, b):
        reward, ref, top = (x.exp() * r).sum(1), (q.exp() * r).sum(1), over(best(q, r, b))
        j, ref = over(reward - price(b) * kl(x, q)), over(ref)
        return share(j, ref, top).mean(), gap(top - j, b).mean()

    return answer


TWO_RULERS = Exercise(
    name="09-two-rulers",
    draw=_listed,
    route=_by_the_best,
    own=("optimum", "evaluate", "best_by_hand"),
    mistakes={
        "the gap is in reward; divide it by β": _rule(gap=same),
        "this is a mean of shares; average J over the prompts first": _rule(over=same),
        "the prompts are added up; their mean is wanted": _rule(over=Tensor.sum),
        "each prompt has a 𝒵 of its own: the logarithms come before the mean":
            _rule(lambda q, r, b: b * _log_z(q, r, b).exp().mean().log()),
        "J of the reference is missing": _rule(share=lambda j, ref, top: j / top),
        "this is what is missing; the share is what was earned":
            _rule(share=lambda j, ref, top: (top - j) / (top - ref)),
        "the KL is missing in J of the policy": _rule(price=lambda b: 0),
        "β is missing in J of the policy": _rule(price=lambda b: 1),
        "the KL in J is added; it has to be subtracted": _rule(price=lambda b: -b),
        "the KL in J is turned round: π stands first": _rule(kl=lambda p, q: _kl(q, p)),
        "β is missing before log 𝒵": _rule(_log_z),
        "β multiplies in the exponent of 𝒵": _rule(lambda q, r, b: b * _log_z(q, r, 1 / b)),
        "J* is not the largest reward: π* pays for its KL, too": _rule(lambda q, r, b: r.amax(1)),
        "J* is not the mean reward of π*: its KL has a price":
            _rule(lambda q, r, b: ((q + r / b).softmax(1) * r).sum(1)),
        "the two are swapped: the share is the first": lambda *a: _rule()(*a)[::-1],
    },
)  # fmt: skip

EXERCISES = [ROLL_OUT, SURROGATE, TWO_RULERS, UPDATES]
