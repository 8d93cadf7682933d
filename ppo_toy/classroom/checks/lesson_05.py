"""Lesson 05, trajectories: a tool's tokens, PPO's advantage, the share of later KL charged."""

from functools import partial

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import hide, normal, random_mask, sizes, uniform

# Reward-to-go: R - beta * the KL of later steps of one's own.


def _talk(generator: Generator, k: int) -> dict:
    """What does not count looks harmless in case 0, then large; in case 3 it is infinite."""
    b, t = sizes(k, 2, low=3)
    tool = torch.randint(1, t - 1, (b, 1), generator=generator)
    mask = random_mask(b, t, generator) & (torch.arange(t) != tool)
    kl = 0.1 + normal(b, t, generator=generator).abs()
    rubbish = (1, 40, 900, torch.inf)[k] * (kl - 1).where(kl != 1, 0.01)  # of either sign
    beta, rewards = uniform(0.3, 0.8, generator), normal(b, generator=generator)
    return {"rewards": rewards, "kl": kl.where(mask, rubbish), "beta": beta, "mask": mask}


def _to_go(rewards: Tensor, kl: Tensor, beta: float, mask: Tensor) -> Tensor:
    """By pairs [B, t, t'] of a token and a later one."""
    step = torch.arange(mask.shape[-1])
    pairs = mask[..., None] & (step > step[:, None])
    charged = (pairs * hide(kl, mask)[:, None, :]).sum(dim=-1)
    return mask * rewards[:, None] - beta * charged


def _later(kl: Tensor) -> Tensor:
    return kl.sum(-1, keepdim=True) - kl.cumsum(-1)


def _less(charged):
    """R less β times what is charged, which is given the KL that counts."""
    return lambda r, kl, b, m: hide(r[:, None] - b * charged(hide(kl, m)), m)


TO_GO = Exercise(
    name="05-to-go",
    draw=_talk,
    route=_to_go,
    own=("reward_to_go",),
    mistakes={
        "KL that does not count is charged: set it to 0 before adding up":
            lambda r, kl, b, m: hide(r[:, None] - b * _later(kl), m),
        "where the mask is False it must be 0: cut the result off too":
            lambda r, kl, b, m: r[:, None] - b * _later(hide(kl, m)),
        "the mask is not used at all": lambda r, kl, b, m: r[:, None] - b * _later(kl),
        "the response goes on behind the tool's tokens; its KL counts":
            lambda r, kl, b, m: hide(r[:, None] - b * _later(hide(kl, m.cumprod(-1).bool())), m),
        "the KL of the present step is in it": _less(lambda kl: _later(kl) + kl),
        "each token pays for the whole response": _less(lambda kl: kl.sum(-1, keepdim=True)),
        "earlier steps are charged, not later ones": _less(lambda kl: kl.cumsum(-1) - kl),
        "the sum runs from the front": _less(lambda kl: kl.cumsum(-1)),
        "this is R alone; the KL of later steps is missing": _less(lambda kl: 0 * kl),
        "only the next step is charged; all later ones count":
            _less(lambda kl: torch.cat([kl[:, 1:], 0 * kl[:, :1]], dim=1)),
        "β is missing": lambda r, kl, b, m: _to_go(r, kl, 1, m),
        "the KL is added; it has to be subtracted": lambda r, kl, b, m: _to_go(r, kl, -b, m),
    },
)  # fmt: skip


# PPO's advantage: log-ratios in the step rewards, then generalized advantage estimation.


def _response(generator: Generator, k: int) -> dict:
    log_ratio, values = normal(2, *sizes(k, 1, low=3), generator=generator)
    settings = {"beta": uniform(0.3, 0.8, generator), "lam": uniform(0.4, 0.7, generator)}
    reward = uniform(0.5, 2, generator) * (-1) ** k
    return {"reward": reward, "log_ratio": log_ratio, "values": values, **settings}


def _gae(reward: float, log_ratio: Tensor, values: Tensor, beta: float, lam: float) -> Tensor:
    """The lambda-return less the value: at each step the share 1 - lam settles for V."""
    step = torch.arange(len(values))
    steps = reward * (step == len(step) - 1) - beta * log_ratio
    settled = (1 - lam) * torch.cat([values[1:], torch.zeros(1)])
    ahead = step[:, None] - step
    powers = lam ** ahead.clamp(min=0) * (ahead >= 0)  # [t', t]
    return (steps + settled) @ powers.to(values) - values


def _credit(
    reward, k1, v, beta, lam, *, paid=lambda t: t == t.max(), behind=lambda v: 0 * v[0],
    delta=lambda r, v, after: r + after - v, now=1.0, turn=lambda x: x,
):  # fmt: skip
    """The recursion, with something else in the place of some of it."""
    steps = reward * paid(torch.arange(len(v))) - beta * k1
    deltas, credits = turn(delta(steps, v, torch.cat([v[1:], behind(v)[None]]))), [0.0]
    for x in deltas.flip(0):
        credits.insert(0, now * x + lam * credits[0])
    return turn(torch.stack(credits[:-1]))


GAE = Exercise(
    name="05-gae",
    draw=_response,
    route=_gae,
    own=("gae", "token_rewards"),
    mistakes={
        "R comes once, with the last token; here every token gets it":
            partial(_credit, paid=torch.ones_like),
        "R comes with the last token, not with the first": partial(_credit, paid=lambda t: t == 0),
        "R is missing": partial(_credit, paid=torch.zeros_like),
        "after the last token the value is 0, not the last one again":
            partial(_credit, behind=lambda v: v[-1]),
        "after the last token the value is 0; this goes round to the first one":
            partial(_credit, behind=lambda v: v[0]),
        "the KL is added; it has to be subtracted": lambda r, k1, *z: _credit(r, -k1, *z),
        "the log-ratios are missing": lambda r, k1, *z: _credit(r, 0 * k1, *z),
        "β is missing": lambda r, k1, v, b, lam: _credit(r, k1, v, 1, lam),
        "λ is missing in the recursion": lambda *z: _credit(*z[:-1], 1.0),
        "the later surprises are missing": lambda *z: _credit(*z[:-1], 0.0),
        "λ multiplies what follows, not the present surprise":
            lambda *z: _credit(*z, now=z[-1]),
        "the next value is missing in δ": partial(_credit, delta=lambda r, v, after: r - v),
        "the present value is not subtracted":
            partial(_credit, delta=lambda r, v, after: r + after),
        "the values are missing": partial(_credit, delta=lambda r, v, after: r),
        "δ has the next value less the present one; here the two are swapped":
            partial(_credit, delta=lambda r, v, after: r + v - after),
        "it adds up earlier surprises: run from the last one to the first":
            partial(_credit, turn=lambda x: x.flip(0)),
        "these are in the order they were found in: put each new one at the front":
            lambda *z: _credit(*z).flip(0),
    },
)  # fmt: skip


# Which share of the later KL a trained policy was charged for.


def _trained(generator: Generator, k: int) -> dict:
    """Right, dropped, paid for, a share; in case 2 two tokens are followed by the same KL."""
    logits, reward_after, kl_after = normal(3, *sizes(k, 1, low=3), generator=generator)
    beta = uniform(0.1, 0.2, generator) if k == 1 else uniform(0.4, 0.8, generator)
    kl_after = kl_after.abs()
    if k == 2:
        kl_after[1] = kl_after[0]
    c = (1.0, 0.0, -1.0, uniform(0.3, 0.7, generator))[k]
    pi = (logits.log_softmax(-1) + reward_after / beta - c * kl_after).softmax(-1)
    named = {"p_ref": logits.softmax(-1), "pi": pi, "reward_after": reward_after}
    return named | {"kl_after": kl_after, "beta": beta}


def _share(p_ref, pi, reward_after, kl_after, beta) -> Tensor:
    """The slope of a straight line through all tokens."""
    x = kl_after - kl_after.mean()
    return x @ (reward_after / beta - (pi / p_ref).log()) / (x @ x)


def _two(p_ref, pi, reward_after, kl_after, beta, *, log=torch.log, base=1.0) -> Tensor:
    """From the tokens with the largest and the smallest KL, or base times the smallest."""
    most, least = kl_after.argmax(), kl_after.argmin()
    charged = reward_after - beta * log(pi / p_ref)
    paid = beta * (kl_after[most] - base * kl_after[least])
    return (charged[most] - base * charged[least]) / paid


DROPPED = Exercise(
    name="05-dropped",
    draw=_trained,
    route=_share,
    mistakes={
        "this is the share that was dropped; c is the share charged": lambda *z: 1 - _share(*z),
        "the sign of c is wrong": lambda *z: -_share(*z),
        "c is a share: divide by β too": lambda *z: z[-1] * _share(*z),
        "the reference is missing": lambda p, *z: _two(p**0, *z),
        "the reward is missing": lambda p, pi, r, *z: _two(p, pi, 0 * r, *z),
        "the log-ratio is the trained policy's less the reference's":
            partial(_two, log=lambda x: -x.log()),
        "the logarithm is missing": partial(_two, log=lambda x: x),
        "β is missing: it is β times the log-ratio that is net":
            lambda *z: _two(*z[:-1], 1.0) / z[-1],
        "what all tokens have in common goes away in the difference of two":
            partial(_two, base=0.0),
    },
)  # fmt: skip

EXERCISES = [TO_GO, GAE, DROPPED]
