"""Lesson 05, trajectories: reward-to-go, GAE with a mask, the best policy token by token."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import hide, normal, random_mask, sizes, uniform


def _pad(x: Tensor, mask: Tensor, k: int) -> Tensor:
    return x.masked_fill(~mask, torch.inf if k == 3 else 99)


def _shift(x: Tensor) -> Tensor:
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)


# Reward-to-go: R - beta * the KL of later steps.


def _batch(generator: Generator, k: int) -> dict:
    b, t = sizes(k, 2)
    mask = random_mask(b, t, generator)
    kl = _pad(0.1 + normal(b, t, generator=generator).abs(), mask, k)
    rewards, beta = normal(b, generator=generator), uniform(0.3, 0.8, generator)
    return {"rewards": rewards, "kl": kl, "beta": beta, "mask": mask}


def _to_go(rewards: Tensor, kl: Tensor, beta: float, mask: Tensor) -> Tensor:
    """By pairs [B, t, t'] of a token and a later one."""
    step = torch.arange(mask.shape[1])
    pairs = mask[:, :, None] & (step > step[:, None])
    return mask * rewards[:, None] - beta * (pairs * hide(kl, mask)[:, None, :]).sum(dim=-1)


def _later(kl: Tensor) -> Tensor:
    return kl.sum(1, keepdim=True) - kl.cumsum(1)


def _less(charged, price=lambda beta: beta):
    """R less the price times what is charged, which is given the KL without its padding."""
    return lambda r, kl, b, mask: hide(r[:, None] - price(b) * charged(hide(kl, mask)), mask)


TO_GO = Exercise(
    name="05-to-go",
    draw=_batch,
    route=_to_go,
    differentiate=("rewards", "kl"),
    own=("reward_to_go",),
    mistakes={
        "padding is charged: set the KL behind the mask to 0 before adding up":
            (lambda r, kl, b, m: hide(r[:, None] - b * _later(kl), m)),
        "behind the mask it must be 0: cut the result off too":
            (lambda r, kl, b, m: r[:, None] - b * _later(hide(kl, m))),
        "the mask is not used at all": lambda r, kl, b, m: r[:, None] - b * _later(kl),
        "the KL of the present step is in it": _less(lambda kl: _later(kl) + kl),
        "each token pays for the whole response": _less(lambda kl: kl.sum(1, keepdim=True)),
        "earlier steps are charged, not later ones": _less(lambda kl: kl.cumsum(1) - kl),
        "the sum runs from the front": _less(lambda kl: kl.cumsum(1)),
        "this is R alone; the KL of later steps is missing": _less(lambda kl: 0 * kl),
        "only the next step is charged; all later ones count": _less(_shift),
        "β is missing": _less(_later, lambda beta: 1),
        "the KL is added; it has to be subtracted": _less(_later, lambda beta: -beta),
        "β multiplies the reward; it is the price of the KL":
            (lambda r, kl, b, m: _less(_later)(b * r, kl, 1.0, m)),
    },
)  # fmt: skip


# Generalized advantage estimation.


def _steps(generator: Generator, k: int) -> dict:
    b, t = sizes(k, 2)
    mask = random_mask(b, t, generator)
    step_rewards, values = _pad(normal(2, b, t, generator=generator), mask, k)
    factors = {"gamma": uniform(0.8, 0.95, generator), "lam": uniform(0.4, 0.7, generator)}
    return {"step_rewards": step_rewards, "values": values, "mask": mask, **factors}


def _gae(step_rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """The lambda-return less the value: at each step the share 1 - lam settles for V."""
    r, v = hide(step_rewards, mask), hide(values, mask)
    step = torch.arange(mask.shape[1])
    ahead = step[:, None] - step
    powers = (gamma * lam) ** ahead.clamp(min=0) * (ahead >= 0)  # [t', t]
    return hide((r + gamma * (1 - lam) * _shift(v)) @ powers.to(r) - v, mask)


def _discounted(delta: Tensor, factor: float) -> Tensor:
    columns = [torch.zeros_like(delta[:, 0])]
    for t in reversed(range(delta.shape[1])):
        columns.insert(0, delta[:, t] + factor * columns[0])
    return torch.stack(columns[:-1], dim=1)


def _gae_with(delta=lambda r, v, a, g: r + g * a - v, factor=lambda g, lam: g * lam):
    def answer(step_rewards, values, mask, gamma, lam):
        r, v = hide(step_rewards, mask), hide(values, mask)
        return hide(_discounted(delta(r, v, _shift(v), gamma), factor(gamma, lam)), mask)

    return answer


def _from_the_front(r: Tensor, v: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    r, v = hide(r, mask), hide(v, mask)
    delta = r + gamma * _shift(v) - v
    return hide(_discounted(delta.flip(1), gamma * lam).flip(1), mask)


GAE = Exercise(
    name="05-gae",
    draw=_steps,
    route=_gae,
    differentiate=("step_rewards", "values"),
    own=("gae",),
    mistakes={
        "the value behind the last token counts; there the response has ended":
            (lambda r, v, m, g, lam: _discounted(hide(r + g * _shift(v) - v, m), g * lam)),
        "padding leaks in: set rewards and values behind the mask to 0 first":
            (lambda r, v, m, g, lam: hide(_discounted(r + g * _shift(v) - v, g * lam), m)),
        "the mask is not used at all":
            lambda r, v, m, g, lam: _discounted(r + g * _shift(v) - v, g * lam),
        "γ is missing in the recursion: the factor is γλ": _gae_with(factor=lambda g, lam: lam),
        "λ is missing in the recursion: the factor is γλ": _gae_with(factor=lambda g, lam: g),
        "γ is missing before the next value": _gae_with(delta=lambda r, v, a, g: r + a - v),
        "γ is missing in both places":
            _gae_with(delta=lambda r, v, a, g: r + a - v, factor=lambda g, lam: lam),
        "the later surprises are missing": _gae_with(factor=lambda g, lam: 0),
        "the next value is missing in δ": _gae_with(delta=lambda r, v, a, g: r - v),
        "the present value is not subtracted": _gae_with(delta=lambda r, v, a, g: r + g * a),
        "the values are missing": _gae_with(delta=lambda r, v, a, g: r + 0 * v),
        "it adds up earlier surprises: run from the last column to the first": _from_the_front,
        "the next value lost its gradient":
            _gae_with(delta=lambda r, v, a, g: r + g * a.detach() - v),
        "the present value lost its gradient":
            _gae_with(delta=lambda r, v, a, g: r + g * a - v.detach()),
    },
)  # fmt: skip


# The best policy, token by token.


def _tree(generator: Generator, k: int) -> dict:
    (v,) = sizes(k, 1)
    p_second, rewards = normal(2, v, v, generator=generator)
    rewards = rewards - 3 * (k == 1)
    p_first, beta = normal(v, generator=generator).softmax(-1), uniform(0.4, 0.8, generator)
    return {
        "p_first": p_first,
        "p_second": p_second.softmax(-1),
        "rewards": rewards,
        "beta": beta,
    }


def _best_tokens(p_first: Tensor, p_second: Tensor, rewards: Tensor, beta: float) -> tuple:
    """From whole responses: the tilted distribution, its sums over rows, and its Z."""
    mass = p_first[:, None] * p_second * torch.exp(rewards / beta)
    z, of_first = mass.sum(), mass.sum(dim=1)
    return beta * z.log(), of_first / z, mass / of_first[:, None]


def _soft(p: Tensor, worth: Tensor, beta: float) -> Tensor:
    return beta * (p.log() + worth / beta).logsumexp(-1)


def _tilt(p: Tensor, worth: Tensor, beta: float) -> Tensor:
    return (p.log() + worth / beta).softmax(-1)


def _climb(value, tilt=_tilt):
    """An answer with `value` for the states after the first token."""

    def answer(p_first, p_second, r, b):
        after = value(p_second, r, b)
        return _soft(p_first, after, b), tilt(p_first, after, b), tilt(p_second, r, b)

    return answer


def _multiplied(p: Tensor, q: Tensor, r: Tensor, b: float) -> tuple:
    after = b**2 * _soft(q, r, 1 / b)
    return b**2 * _soft(p, after, 1 / b), _tilt(p, after, 1 / b), _tilt(q, r, 1 / b)


BEST_TOKENS = Exercise(
    name="05-best-tokens",
    draw=_tree,
    route=_best_tokens,
    differentiate=("rewards",),
    own=("optimum", "soft_values", "backward_induction"),
    mistakes={
        "a state is worth its mean reward here; the KL paid in it is forgotten":
            _climb(lambda p, r, b: (_tilt(p, r, b) * r).sum(-1)),
        "the reference goes on after the first token; the best policy should":
            _climb(lambda p, r, b: (p * r).sum(-1)),
        "the maximum is a smooth one, not the largest reward":
            _climb(lambda p, r, b: r.max(-1).values),
        "β is missing before the logarithm in the states after the first token":
            _climb(lambda p, r, b: _soft(p, r, b) / b),
        "β multiplies in the exponent; it divides": _multiplied,
        "β is missing": lambda p, q, r, b: _climb(_soft)(p, q, r, 1.0),
        "the reference is missing: its probabilities weigh the tokens":
            (lambda p, q, r, b: _climb(_soft)(torch.ones_like(p), torch.ones_like(q), r, b)),
        "rows and columns are swapped: the first token is the row":
            (lambda p, q, r, b: _climb(_soft)(p, q, r.T, b)),
        "the second tokens' probabilities do not sum to 1 in each row":
            (lambda p, q, r, b: (*_climb(_soft)(p, q, r, b)[:2], q * (r / b).exp())),
        "the probabilities do not sum to 1: subtract the value of the state":
            _climb(_soft, tilt=lambda p, w, b: p * (w / b).exp()),
    },
)  # fmt: skip

EXERCISES = [TO_GO, GAE, BEST_TOKENS]
