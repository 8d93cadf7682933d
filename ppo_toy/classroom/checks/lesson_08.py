"""Lesson 08, the reward model: votes, the loss of a choice, R at the end, zero and unit."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal

# Votes: the share, the ceiling, the agreement.


def _ballots(generator: Generator) -> dict:
    """Five raters, four pairs, in any order: with no votes, with three, with five (twice)."""
    signs = torch.tensor([[0, 0, 0, 0, 0], [1, -1, -1, 0, 0], [1, 1, 1, -6, -6], [1, 1, 1, 1, 1]])
    signs = torch.stack([row[torch.randperm(5, generator=generator)] for row in signs])
    sides = 1 - 2 * torch.randint(2, (4, 1), generator=generator)
    gaps = 0.2 + 0.6 * normal(4, 5, generator=generator).sigmoid()
    worth_b = normal(4, 5, generator=generator)
    worth_a = worth_b + signs * sides * gaps  # -6: the mean worth is not with the majority
    pairs = torch.randperm(4, generator=generator)
    weights = normal(4, generator=generator).softmax(0)
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
    share=_share,
    right=lambda p, a, b: p.maximum(1 - p),
    same=lambda p: p**2 + (1 - p) ** 2,
    mean=lambda w, x: (w * x).sum(),
):
    def answer(a, b, w):
        p = share(a, b)
        return p, mean(w, right(p, a, b)), mean(w, same(p))

    return answer


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
        "the majority is found for each pair, before the mean over pairs": lambda a, b, w: (
            (p := _share(a, b)),
            (w @ p).maximum(1 - w @ p),
            _vote()(a, b, w)[2],
        ),
        "the ceiling is the majority's; this is right for the mean worth": _vote(
            right=lambda p, a, b: torch.where(a.mean(0) > b.mean(0), p, 1 - p)
        ),
        "the favourite of a pair may be B: the ceiling has a maximum": _vote(right=lambda p, *x: p),
        "two voters also agree when both prefer B: add (1 - p)²": _vote(same=lambda p: p**2),
        "1 - p² is not (1 - p)²": _vote(same=lambda p: p**2 + 1 - p**2),
        "the weights are missing": _vote(mean=lambda w, x: x.mean()),
        "divided by N once more: the weights sum to 1": _vote(mean=lambda w, x: (w * x).mean()),
    },
)


# The loss of a choice.


def _choices(generator: Generator) -> dict:
    """Five pairs, one of them rare and with a difference of about plus or minus 800."""
    reward_a, reward_b = normal(2, 5, generator=generator)
    side = 1 - 2 * torch.randint(2, (), generator=generator)
    reward_a[0], reward_b[0] = side * (400 + reward_a[0]), -side * 400
    share = 0.1 + 0.8 * normal(5, generator=generator).sigmoid()
    weights = torch.cat([torch.tensor([0.001]), 0.999 * normal(4, generator=generator).softmax(0)])
    order = torch.randperm(5, generator=generator)
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
        "binary_cross_entropy cuts the loss off at 100: use logsigmoid": _choose(
            lambda d, p: F.binary_cross_entropy(d.sigmoid(), p, reduction="none")
        ),
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
)


# R at the end of a response.


def _rows(generator: Generator) -> dict:
    """Four responses in any order: of 1, 2 and 5 tokens with an end token, and one without."""
    end_token, *others = torch.randperm(7, generator=generator).tolist()
    responses = torch.tensor(others)[torch.randint(6, (4, 5), generator=generator)]
    responses[[0, 1, 1, 2], [0, 1, 3, 4]] = end_token
    behind = torch.arange(6) > torch.tensor([[1], [2], [5], [5]])
    values = normal(4, 6, generator=generator).masked_fill(behind, 99)
    order = torch.randperm(4, generator=generator)
    return {"values": values[order], "responses": responses[order], "end_token": end_token}


def _at_the_end(values: Tensor, responses: Tensor, end_token: int) -> Tensor:
    """Row by row, by cutting a list behind the end token."""
    rows = zip(values, responses.tolist(), strict=True)
    return torch.stack([v[: [*y[:-1], end_token].index(end_token) + 2][-1] for v, y in rows])


def _read(length):
    """An answer that reads where `length` says, from the end tokens and how many come first."""

    def answer(values, responses, end_token):
        ends = (responses == end_token).long()
        columns = length(ends, (ends.cumsum(1) == 0).sum(1)).clamp(max=5)
        return values.gather(1, columns[:, None]).squeeze(1)

    return answer


END = Exercise(
    name="08-end",
    draw=_rows,
    route=_at_the_end,
    differentiate=("values",),
    mistakes={
        "one token too early: column t comes after t tokens": _read(lambda e, n: n.clamp(max=4)),
        "one token too late": _read(lambda e, n: n + 2),
        "the end token belongs to the response": _read(lambda e, n: n),
        "this is the last column, whatever stands there": _read(lambda e, n: 0 * e[:, 0] + 5),
        "this is column 0, where nothing has been said": _read(lambda e, n: 0 * e[:, 0]),
        "tokens behind the end are counted": _read(lambda e, n: (1 - e).sum(1) + 1),
        "the first end token counts, not the last": _read(lambda e, n: 5 - e.flip(1).argmax(1)),
        "a response without an end token ends with its last": _read(lambda e, n: e.argmax(1) + 1),
        "add 1, and mind responses without an end token": _read(lambda e, n: e.argmax(1)),
        "the columns are averaged; R is one of them": lambda v, y, end: v.mean(1),
    },
)


# Zero and unit.


def _priced(generator: Generator) -> dict:
    beta, scale = (0.5 + 0.4 * normal(2, generator=generator).sigmoid()).tolist()
    rewards, logits = normal(2, 4, generator=generator)
    named = {"rewards": 1 + rewards, "ref_probs": logits.softmax(0)}
    return named | {"beta": beta, "scale": 1 + scale}


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
    def answer(r, p, b, c):
        r2, b2 = new(r, p, b, c), price(b, c)
        return r2, b2, value(r2, p, b2, r, c)

    return answer


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
