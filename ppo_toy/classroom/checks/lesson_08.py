"""Lesson 08, the reward model: votes, the loss of a choice, R at the end, zero and unit."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, sizes, uniform

# Votes: the share, the ceiling, the agreement.


def _ballots(generator: Generator, k: int) -> dict:
    """One pair without votes, the others with some ties, in any order.

    Where all raters vote, one votes with more zeal than the others together.
    """
    n_raters, n = sizes(k, 2, low=3)
    votes = torch.where(torch.arange(n_raters) < torch.arange(n)[:, None] + 1, 1.0, 0.0)
    votes[:, 0] *= -1
    votes[-1, 0] *= 4 * n_raters  # the mean worth is not with the majority
    votes[0] = 0
    votes = torch.stack([row[torch.randperm(n_raters, generator=generator)] for row in votes])
    sides = 1 - 2 * torch.randint(2, (n, 1), generator=generator)
    gaps = 0.2 + 0.6 * normal(n, n_raters, generator=generator).sigmoid()
    worth_b = normal(n, n_raters, generator=generator)
    worth_a = worth_b + (votes * sides * gaps).round(decimals=2)
    pairs = torch.randperm(n, generator=generator)
    weights = normal(n, generator=generator).softmax(0)
    return {"worth_a": worth_a[pairs].T, "worth_b": worth_b[pairs].T, "weights": weights}


def _agreement(worth_a: Tensor, worth_b: Tensor, weights: Tensor) -> tuple:
    """By listing the votes, and by asking every ordered pair of voters."""
    shares, ceiling, both = [], 0.0, 0.0
    for column, w in zip((worth_a - worth_b).T.tolist(), weights, strict=True):
        votes = [d > 0 for d in column if d != 0] or [True, False]
        shares.append(votes.count(True) / len(votes))
        ceiling = ceiling + w * max(votes.count(True), votes.count(False)) / len(votes)
        both = both + w * sum(x == y for x in votes for y in votes) / len(votes) ** 2
    return torch.tensor(shares, dtype=torch.float64), ceiling, both


def _share(a: Tensor, b: Tensor, empty: float = 0.5) -> Tensor:
    return ((a > b).sum(0) / (a != b).sum(0)).double().nan_to_num(empty)


def _vote(
    share=_share, right=lambda p, a, b: p.maximum(1 - p), same=lambda p: p**2 + (1 - p) ** 2,
    mean=lambda w, x: (w * x).sum(),
):  # fmt: skip
    return lambda a, b, w: ((p := share(a, b)), mean(w, right(p, a, b)), mean(w, same(p)))


VOTES = Exercise(
    name="08-votes",
    draw=_ballots,
    route=_agreement,
    mistakes={
        "a tie is no vote: divide by those who vote": _vote(lambda a, b: (a > b).double().mean(0)),
        "a tie is no vote, nor half of one": _vote(lambda a, b: ((a - b).sign() + 1).mean(0) / 2),
        "a tie counts as a vote for A": _vote(lambda a, b: (a >= b).double().mean(0)),
        "where nobody votes the share is ½, not nan": _vote(lambda a, b: _share(a, b, torch.nan)),
        "where nobody votes the share is ½, not 0": _vote(lambda a, b: _share(a, b, 0)),
        "the share is that of A, not of B": _vote(lambda a, b: _share(b, a)),
        "ceiling and agreement are swapped": lambda *x: (*_vote()(*x)[::2], _vote()(*x)[1]),
        "the majority is found for each pair, before the mean over pairs":
            lambda a, b, w: ((p := _share(a, b)), (w @ p).maximum(1 - w @ p), _vote()(a, b, w)[2]),
        "the ceiling is the majority's; this is right for the mean worth":
            _vote(right=lambda p, a, b: torch.where(a.mean(0) > b.mean(0), p, 1 - p)),
        "the favourite of a pair may be B: the ceiling has a maximum": _vote(right=lambda p, *x: p),
        "two voters also agree when both prefer B: add (1 - p)²": _vote(same=lambda p: p**2),
        "1 - p² is not (1 - p)²": _vote(same=lambda p: p**2 + 1 - p**2),
        "the weights are missing": _vote(mean=lambda w, x: x.mean()),
        "divided by N once more: the weights sum to 1": _vote(mean=lambda w, x: (w * x).mean()),
    },
)  # fmt: skip


# The loss of a choice.


def _choices(generator: Generator, k: int) -> dict:
    """One of the pairs is rare and has a difference of about plus or minus 800."""
    (n,) = sizes(k, 1, low=3)
    reward_a, reward_b = normal(2, n, generator=generator)
    side = 1 - 2 * torch.randint(2, (), generator=generator)
    reward_a[0], reward_b[0] = side * (400 + reward_a[0]), -side * 400
    share = (0.1 + 0.8 * normal(n, generator=generator).sigmoid()).round(decimals=2)
    rare = torch.tensor([0.001])
    weights = torch.cat([rare, 0.999 * normal(n - 1, generator=generator).softmax(0)])
    order = torch.randperm(n, generator=generator)
    columns = torch.stack([reward_a, reward_b, share, weights])[:, order]
    return dict(zip(("reward_a", "reward_b", "share", "weights"), columns, strict=True))


def _choice_loss(reward_a: Tensor, reward_b: Tensor, share: Tensor, weights: Tensor) -> Tensor:
    """A softmax over the two responses, whose cross-entropy with the shares is wanted."""
    log_p = torch.stack([reward_a, reward_b]).log_softmax(0)
    return -(weights * torch.stack([share, 1 - share]) * log_p).sum()


def _loss(d: Tensor, p: Tensor) -> Tensor:
    return p * F.softplus(-d) + (1 - p) * F.softplus(d)


def _choose(loss=_loss, mean=lambda w, x: (w * x).sum(), minus=torch.sub):
    return lambda a, b, p, w: mean(w, loss(minus(a, b), p))


LOSS = Exercise(
    name="08-loss",
    draw=_choices,
    route=_choice_loss,
    differentiate=("reward_a", "reward_b"),
    own=("bradley_terry_loss",),
    mistakes={
        "the sign is wrong: a loss is the negative logarithm": _choose(lambda d, p: -_loss(d, p)),
        "a large d gives inf: use logsigmoid": _choose(lambda d, p: _loss(d.sigmoid().logit(), p)),
        "binary_cross_entropy cuts the loss off at 100: use logsigmoid":
            _choose(lambda d, p: F.binary_cross_entropy(d.sigmoid(), p, reduction="none")),
        "A and B are swapped": _choose(minus=lambda a, b: b - a),
        "the term with 1 - p is missing": _choose(lambda d, p: p * F.softplus(-d)),
        "the shares are missing: some chose B": _choose(lambda d, p: F.softplus(-d)),
        "the shares became 0 or 1": _choose(lambda d, p: _loss(d, (p > 0.5).double())),
        "the logarithm is missing": _choose(lambda d, p: p + (1 - 2 * p) * d.sigmoid()),
        "a squared error is not this loss": _choose(lambda d, p: (d.sigmoid() - p) ** 2),
        "the weights are missing": _choose(mean=lambda w, x: x.mean()),
        "divided by N once more: the weights sum to 1": _choose(mean=lambda w, x: (w * x).mean()),
        "reward_b lost its gradient": _choose(minus=lambda a, b: a - b.detach()),
    },
)  # fmt: skip


# R at the end of a response.


def _rows(generator: Generator, k: int) -> dict:
    """A response of one token, a full one with an end token, one without, others; in any order."""
    b, t = sizes(k, 2, low=4)
    end_token, *others = torch.randperm(7, generator=generator).tolist()
    responses = torch.tensor(others)[torch.randint(6, (b, t), generator=generator)]
    responses[[0, 1, 3, 3], [0, t - 1, 1, t - 1]] = responses[0, t - 2] = end_token
    ends = (responses == end_token).long()
    lengths = ends.argmax(1).where(ends.any(1), t - 1) + 1
    behind = torch.arange(t + 1) > lengths[:, None]
    values = normal(b, t + 1, generator=generator).masked_fill(behind, 99)
    order = torch.randperm(b, generator=generator)
    return {"values": values[order], "responses": responses[order], "end_token": end_token}


def _at_the_end(values: Tensor, responses: Tensor, end_token: int) -> Tensor:
    """Row by row, by cutting a list behind the end token."""
    rows = zip(values, responses.tolist(), strict=True)
    return torch.stack([v[: [*y[:-1], end_token].index(end_token) + 2][-1] for v, y in rows])


def _read(length):
    """An answer that reads where `length` says, from the end tokens and how many come first."""

    def answer(values, responses, end_token):
        ends = (responses == end_token).long()
        columns = length(ends, (ends.cumsum(1) == 0).sum(1)).clamp(max=ends.shape[1])
        return values.gather(1, columns[:, None]).squeeze(1)

    return answer


END = Exercise(
    name="08-end",
    draw=_rows,
    route=_at_the_end,
    differentiate=("values",),
    mistakes={
        "one token too early: column t comes after t tokens":
            _read(lambda e, n: n.clamp(max=e.shape[1] - 1)),
        "one token too late": _read(lambda e, n: n + 2),
        "the end token belongs to the response": _read(lambda e, n: n),
        "this is the last column, whatever stands there": _read(lambda e, n: n + e.shape[1]),
        "this is column 0, where nothing has been said": _read(lambda e, n: 0 * n),
        "tokens behind the end are counted": _read(lambda e, n: (1 - e).sum(1) + 1),
        "the first end token counts, not the last":
            _read(lambda e, n: e.shape[1] - e.flip(1).argmax(1)),
        "a response without an end token ends with its last": _read(lambda e, n: e.argmax(1) + 1),
        "add 1, and mind responses without an end token": _read(lambda e, n: e.argmax(1)),
        "the columns are averaged; R is one of them": lambda v, y, end: v.mean(1),
    },
)  # fmt: skip


# Zero and unit.


def _priced(generator: Generator, k: int) -> dict:
    """The unit is smaller, and in case 1 larger."""
    rewards, logits = normal(2, *sizes(k, 1, low=3), generator=generator)
    beta, scale = uniform(0.5, 0.9, generator), uniform(1.5, 1.9, generator)
    named = {"rewards": 1 + rewards, "ref_probs": logits.softmax(0), "beta": beta}
    return named | {"scale": 0.4 if k == 1 else scale}


def _new_unit(rewards: Tensor, ref_probs: Tensor, beta: float, scale: float) -> tuple:
    """From the best policy in the old unit: what it gains, less its KL, in the new unit."""
    best = ref_probs * torch.exp(rewards / beta)
    best, shifted = best / best.sum(), rewards - ref_probs @ rewards
    return scale * shifted, scale * beta, scale * best @ (shifted - beta * (best / ref_probs).log())


def _value(r: Tensor, p: Tensor, b: float, *x: Tensor | float) -> Tensor:
    return b * (p.log() + r / b).logsumexp(0)


def _best(r: Tensor, p: Tensor, b: float) -> Tensor:
    return (p.log() + r / b).softmax(0)


def _convert(new=lambda r, p, b, c: c * (r - p @ r), price=lambda b, c: b * c, value=_value):
    return lambda r, p, b, c: (
        (r2 := new(r, p, b, c)), (b2 := price(b, c)), value(r2, p, b2, r, c)
    )  # fmt: skip


UNIT = Exercise(
    name="08-unit",
    draw=_priced,
    route=_new_unit,
    differentiate=("rewards",),
    own=("normalize", "optimum"),
    mistakes={
        "β is divided by c; R / β has to stay as it was": _convert(price=lambda b, c: b / c),
        "β stays as it was; R / β has to": _convert(price=lambda b, c: b),
        "weigh the mean by the reference": _convert(lambda r, p, b, c: c * (r - r.mean())),
        "this is the best policy's mean": _convert(lambda r, p, b, c: c * (r - _best(r, p, b) @ r)),
        "the mean is to be multiplied by c too": _convert(lambda r, p, b, c: c * r - p @ r),
        "the mean is added; subtract it": _convert(lambda r, p, b, c: c * (r + p @ r)),
        "the rewards are not shifted": _convert(lambda r, p, b, c: c * r),
        "the rewards are not multiplied by c": _convert(lambda r, p, b, c: r - p @ r),
        "c divides; it multiplies": lambda r, p, b, c: _convert()(r, p, b, 1 / c),
        "J* is in the old unit": _convert(value=lambda r, p, b, o, c: _value(r, p, b) / c),
        "J* is that before the shift": _convert(value=lambda r, p, b, o, c: _value(c * o, p, b)),
        "J* lacks the factor β′": _convert(value=lambda r, p, b, *x: _value(r, p, b) / b),
        "J* lacks π_ref": _convert(value=lambda r, p, b, *x: b * (r / b).logsumexp(0)),
        "J* is less by the price of its KL": _convert(value=lambda r, p, b, *x: _best(r, p, b) @ r),
        "the mean lost its gradient": _convert(lambda r, p, b, c: c * (r - p @ r.data)),
    },
)

EXERCISES = [VOTES, LOSS, END, UNIT]
