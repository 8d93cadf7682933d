"""Lesson 08, the reward model: the loss of a choice, whose scale is wrong, zero and unit."""

import math
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, sizes, uniform

# The loss of a choice.


def _choices(generator: Generator, k: int) -> dict:
    """One pair is rare and differs by about ±800; in cases 1 and 3 all chose alike."""
    (n,) = sizes(k, 1, low=3)
    reward_a, reward_b = normal(2, n, generator=generator)
    side = 1 - 2 * torch.randint(2, (), generator=generator)
    reward_a[0], reward_b[0] = side * (400 + reward_a[0]), -side * 400
    share = (0.1 + 0.8 * normal(n, generator=generator).sigmoid()).round(decimals=2)
    share[0] = {1: 0.5 + side / 2, 3: 0.5 - side / 2}.get(k, share[0])
    weights = torch.cat([torch.tensor([-7.0]), normal(n - 1, generator=generator)]).softmax(0)
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
        "the weights are missing": _choose(mean=lambda w, x: x.mean()),
        "divided by N once more: the weights sum to 1": _choose(mean=lambda w, x: (w * x).mean()),
        "reward_b lost its gradient": _choose(minus=lambda a, b: a - b.detach()),
    },
)  # fmt: skip


# Whose scale is wrong.


def _colleagues(generator: Generator, k: int) -> dict:
    """No simpler rule finds the model. In case 1 it is too timid; in case 2 margins are ±9000."""
    g, n, n_factors = sizes(k, 3, low=4)
    spaced = (2 ** torch.linspace(-2.5, 2.5, n_factors, dtype=torch.float64)).round(decimals=2)
    while True:
        factors = spaced[torch.randperm(n_factors, generator=generator)]
        unit, skill = normal(2, g, 1, generator=generator)
        ahead = (3**unit * (0.5 + skill + normal(g, n + 3, generator=generator))).round(decimals=2)
        if k == 2:
            ahead[1, :2] = torch.tensor([9000, -9000])
        best, second = _losses(ahead, factors).sort(dim=0)[0][:2]
        gains = (_losses(ahead, torch.ones(1))[0] - best).sort()[0]
        clear = min((second - best).min(), gains[-1] - gains[-2]) > 0.02 and factors[0] > 0.2
        found, which = _scale(ahead, factors)
        fooled = [pick(gains, ahead, found) == which for pick in _FOOLED.values()]
        if clear and (k == 2 or ((found[which] > 1) == (k == 1) and not any(fooled))):
            return {"ahead": ahead, "factors": factors}


def _whose_scale(ahead: Tensor, factors: Tensor) -> tuple:
    """Margin by margin, in plain numbers."""
    best, gains = [], []
    for row in ahead.tolist():
        losses = {
            c: sum(math.log1p(math.exp(-abs(c * d))) - min(c * d, 0) for d in row) / len(row)
            for c in (*factors.tolist(), 1.0)
        }
        best.append(min(factors.tolist(), key=losses.get))
        gains.append(losses[1] - losses[best[-1]])
    return torch.tensor(best, dtype=torch.float64), torch.tensor(gains).argmax()


def _losses(ahead: Tensor, factors: Tensor) -> Tensor:
    return F.softplus(-factors[:, None, None] * ahead).mean(-1)


def _scale(ahead, factors, *, losses=_losses, best=torch.argmin, pick=lambda g, *_: g.argmax()):
    table = losses(ahead, torch.cat([factors, torch.ones(1)]))
    found = factors[best(table[:-1], 0)]
    return found, pick(table[-1] - table[:-1].amin(0), ahead, found)


_FOOLED = {
    "index: the largest loss may be ignorance": lambda _, a, f: F.softplus(-a).mean(-1).argmax(),
    "index: accuracy is blind to the scale": lambda _, a, f: (a > 0).sum(1).argmin(),
    "index: a factor far from 1 may gain little": lambda _, a, f: f.log().abs().argmax(),
}

SCALE = Exercise(
    name="08-scale",
    draw=_colleagues,
    route=_whose_scale,
    mistakes={message: partial(_scale, pick=pick) for message, pick in _FOOLED.items()} | {
        "the factor multiplies the margins": partial(_scale, losses=lambda a, f: _losses(a, 1 / f)),
        "the factor is wanted, not its number":
            lambda a, f: (_losses(a, f).argmin(0).double(), _scale(a, f)[1]),
        "the smallest loss is wanted, not the largest": partial(_scale, best=torch.argmax),
        "each model has a factor of its own; this is one for all":
            partial(_scale, best=lambda t, _: t.mean(1).argmin().expand(t.shape[1])),
        "the sign is wrong: a large margin is right": lambda a, f: _scale(-a, f),
        "index: this one gains least": partial(_scale, pick=lambda g, *_: g.argmin()),
        "a large margin gives inf: use logsigmoid":
            partial(_scale, losses=lambda a, f: -(f[:, None, None] * a).sigmoid().log().mean(-1)),
    },
)  # fmt: skip


# Zero and unit.


def _priced(generator: Generator, k: int) -> dict:
    """The unit is smaller, in case 1 larger; in case 3 e^(R / β) overflows."""
    rewards, logits = normal(2, *sizes(k, 1, low=3), generator=generator)
    beta, rewards = (0.001, 4 * rewards) if k == 3 else (uniform(0.5, 0.9, generator), rewards)
    scale = 0.4 if k == 1 else uniform(1.5, 1.9, generator)
    return {"rewards": 1 + rewards, "ref_probs": logits.softmax(0), "beta": beta, "scale": scale}


def _new_unit(rewards: Tensor, ref_probs: Tensor, beta: float, scale: float) -> tuple:
    """From the best policy in the old unit: what it gains, less its KL, in the new unit."""
    log_best = (ref_probs.log() + rewards / beta).log_softmax(0)
    shifted, nats = rewards - ref_probs @ rewards, log_best - ref_probs.log()
    return scale * shifted, scale * beta, scale * log_best.exp() @ (shifted - beta * nats)


def _value(r: Tensor, p: Tensor, b: float, *x: Tensor | float) -> Tensor:
    return b * (p.log() + r / b).logsumexp(0)


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
        "the mean is to be multiplied by c too": _convert(lambda r, p, b, c: c * r - p @ r),
        "the mean is added; subtract it": _convert(lambda r, p, b, c: c * (r + p @ r)),
        "the rewards are not shifted": _convert(lambda r, p, b, c: c * r),
        "the rewards are not multiplied by c": _convert(lambda r, p, b, c: r - p @ r),
        "c divides; it multiplies": lambda r, p, b, c: _convert()(r, p, b, 1 / c),
        "J* is in the old unit": _convert(value=lambda r, p, b, o, c: _value(r, p, b) / c),
        "J* lacks the factor β′": _convert(value=lambda r, p, b, *x: _value(r, p, b) / b),
        "e^(R′ / β′) overflows: use logsumexp":
            _convert(value=lambda r, p, b, *x: b * (p @ (r / b).exp()).log()),
        "J* lacks π_ref": _convert(value=lambda r, p, b, *x: b * (r / b).logsumexp(0)),
        "J* is less by the price of its KL": _convert(
            value=lambda r, p, b, *x: (p.log() + r / b).softmax(0) @ r),
        "the mean lost its gradient": _convert(lambda r, p, b, c: c * (r - p @ r.data)),
    },
)  # fmt: skip

EXERCISES = [LOSS, SCALE, UNIT]
