"""Lesson 05, trajectories: reward-to-go with a tool's tokens, PPO's advantage."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.checks.lesson_05_dropped import DROPPED
from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import hide, normal, random_mask, sizes, uniform


def _pad(x: Tensor, mask: Tensor, k: int, generator: Generator) -> Tensor:
    """Puts there what looks harmless, what is large, or infinities, of either sign."""
    rubbish = normal(*x.shape, generator=generator)
    rubbish = rubbish.where(rubbish != 0, 0.01)  # whose product with infinity is a number
    return x.where(mask, (1, 40, 900, torch.inf)[k] * rubbish)


def _next(x: Tensor) -> Tensor:
    return torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], dim=-1)


# Reward-to-go: R - beta * the KL of later steps of one's own.


def _talk(generator: Generator, k: int) -> dict:
    g, b, t = sizes(k, 3)
    mask = torch.stack([random_mask(b, t, generator) for _ in range(g)])
    if t > 2:  # one token of the tool in each response, where it goes on behind
        tool = torch.randint(1, t - 1, (g, b, 1), generator=generator)
        mask &= torch.arange(t) != tool
    kl = _pad(0.1 + normal(g, b, t, generator=generator).abs(), mask, k, generator)
    beta = torch.tensor([uniform(0.3, 0.8, generator) + 0.6 * i for i in range(g)]).double()
    rewards = normal(g, b, generator=generator)
    return {"rewards": rewards, "kl": kl, "beta": beta.round(decimals=2), "mask": mask}


def _to_go(rewards: Tensor, kl: Tensor, beta: Tensor, mask: Tensor) -> Tensor:
    """By pairs [G, B, t, t'] of a token and a later one."""
    step = torch.arange(mask.shape[-1])
    pairs = mask[..., None] & (step > step[:, None])
    charged = (pairs * hide(kl, mask)[..., None, :]).sum(dim=-1)
    return mask * rewards[..., None] - torch.einsum("g,gbt->gbt", beta, charged)


def _later(kl: Tensor) -> Tensor:
    return kl.sum(-1, keepdim=True) - kl.cumsum(-1)


def _all(r: Tensor, kl: Tensor, beta: Tensor) -> Tensor:
    return r[..., None] - beta[:, None, None] * _later(kl)


def _less(charged, price=lambda beta: beta):
    """R less the price times what is charged, which is given the KL that counts."""
    return lambda r, kl, b, m: hide(
        r[..., None] - price(b)[:, None, None] * charged(hide(kl, m)), m
    )


def _up_to_the_tool(r: Tensor, kl: Tensor, beta: Tensor, mask: Tensor) -> Tensor:
    return hide(_all(r, hide(kl, mask.cumprod(-1).bool()), beta), mask)


TO_GO = Exercise(
    name="05-to-go",
    draw=_talk,
    route=_to_go,
    own=("reward_to_go",),
    mistakes={
        "KL that does not count is charged: set it to 0 before adding up":
            (lambda r, kl, b, m: hide(_all(r, kl, b), m)),
        "where the mask is False it must be 0: cut the result off too":
            (lambda r, kl, b, m: _all(r, hide(kl, m), b)),
        "the mask is not used at all": lambda r, kl, b, m: _all(r, kl, b),
        "the response goes on behind the tool's tokens; its KL counts": _up_to_the_tool,
        "the KL of the present step is in it": _less(lambda kl: _later(kl) + kl),
        "each token pays for the whole response": _less(lambda kl: kl.sum(-1, keepdim=True)),
        "earlier steps are charged, not later ones": _less(lambda kl: kl.cumsum(-1) - kl),
        "the sum runs from the front": _less(lambda kl: kl.cumsum(-1)),
        "this is R alone; the KL of later steps is missing": _less(lambda kl: 0 * kl),
        "only the next step is charged; all later ones count": _less(_next),
        "β is missing": _less(_later, torch.ones_like),
        "each run has a β of its own": _less(_later, lambda beta: beta[:1]),
        "the KL is added; it has to be subtracted": _less(_later, torch.neg),
        "β multiplies the reward; it is the price of the KL":
            (lambda r, kl, b, m: _less(_later)(b[:, None] * r, kl, b**0, m)),
    },
)  # fmt: skip


# PPO's advantage: log-ratios in the step rewards, then generalized advantage estimation.


def _batch(generator: Generator, k: int) -> dict:
    b, t = sizes(k, 2)
    mask = random_mask(b, t, generator)
    parts = normal(3, b, t, generator=generator) - torch.tensor([2, 2, 0]).view(3, 1, 1)
    names = ("log_probs", "ref_log_probs", "values")
    padded = [_pad(x, mask, k, generator) for x in parts]
    settings = {"beta": uniform(0.3, 0.8, generator), "lam": uniform(0.4, 0.7, generator)}
    rewards = normal(b, generator=generator)
    return {"rewards": rewards, **dict(zip(names, padded, strict=True)), **settings, "mask": mask}


def _gae(r: Tensor, lp: Tensor, ref: Tensor, v: Tensor, beta: float, lam: float, mask: Tensor):
    """The lambda-return less the value: at each step the share 1 - lam settles for V."""
    k1, v = hide(lp - ref, mask).detach(), hide(v, mask).detach()
    step = torch.arange(mask.shape[1])
    steps = r[:, None] * (step == mask.sum(1, keepdim=True) - 1) - beta * k1
    ahead = step[:, None] - step
    powers = lam ** ahead.clamp(min=0) * (ahead >= 0)  # [t', t]
    return hide((steps + (1 - lam) * _next(v)) @ powers.to(v) - v, mask)


def _recursion(delta: Tensor, factor: float) -> Tensor:
    columns = [torch.zeros_like(delta[:, 0])]
    for t in reversed(range(delta.shape[1])):
        columns.insert(0, delta[:, t] + factor * columns[0])
    return torch.stack(columns[:-1], dim=1)


def _last(mask: Tensor) -> Tensor:
    return mask & ~_next(mask)


def _gae_with(
    kl=lambda k1: k1,
    r=lambda mask: _last(mask).double(),
    delta=lambda r, v, after: r + after - v,
    factor=lambda lam: lam,
    clean=hide,
    behind=hide,
    turn=lambda x: x,
):
    def answer(rewards, lp, ref, v, beta, lam, mask):
        k1, v = clean(lp - ref, mask), behind(v, mask)
        steps = rewards[:, None] * r(mask) - beta * kl(k1)
        deltas = clean(delta(steps, v, _next(v)), mask)
        return clean(turn(_recursion(turn(deltas), factor(lam))), mask).detach()

    return answer


def _column(mask: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=torch.double).index_fill(1, torch.tensor(-1), 1.0)


def _kept(x: Tensor, _: Tensor) -> Tensor:
    return x


_leaky = _gae_with(clean=_kept, behind=_kept)

GAE = Exercise(
    name="05-gae",
    draw=_batch,
    route=_gae,
    constants=("log_probs", "values"),
    own=("gae", "token_rewards"),
    mistakes={
        "R belongs to the last token that counts, not to the last column":
            _gae_with(r=_column),
        "R comes once, with the last token; here every token gets it":
            _gae_with(r=lambda mask: mask.double()),
        "R is missing": _gae_with(r=lambda mask: 0.0 * mask),
        "the value behind the last token counts; there the response has ended":
            _gae_with(behind=_kept),
        "padding leaks in: set log-ratios and values behind the mask to 0 first":
            (lambda *a: hide(_leaky(*a), a[-1])),
        "the mask is not used at all": _gae_with(r=_column, clean=_kept, behind=_kept),
        "the KL is added; it has to be subtracted": _gae_with(kl=torch.neg),
        "the log-ratios are missing": _gae_with(kl=lambda k1: 0 * k1),
        "this charges k3; the log-ratio itself is wanted":
            _gae_with(kl=lambda k1: (-k1).expm1() + k1),
        "this charges k2; the log-ratio itself is wanted": _gae_with(kl=lambda k1: k1**2 / 2),
        "λ is missing in the recursion": _gae_with(factor=lambda lam: 1.0),
        "the later surprises are missing": _gae_with(factor=lambda lam: 0.0),
        "the next value is missing in δ": _gae_with(delta=lambda r, v, after: r - v),
        "the present value is not subtracted": _gae_with(delta=lambda r, v, after: r + after),
        "the values are missing": _gae_with(delta=lambda r, v, after: r),
        "it adds up earlier surprises: run from the last column to the first":
            _gae_with(turn=lambda x: x.flip(1)),
    },
)  # fmt: skip


EXERCISES = [TO_GO, GAE, DROPPED]
