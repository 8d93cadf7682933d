"""Lesson 11, in the wild: a brake that does not brake, RLOO, DPO, GRPO's beta."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from ppo_toy.classroom.checks.lesson_11_grpo import GRPO, others, spread
from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, random_mask, uniform


def _tokens(*shape: int, generator: Generator) -> dict:
    """Log-probabilities of rows of 4, 3 and 2 tokens in any order; a log-ratio of 2 behind them."""
    mask = random_mask(2, 3, 4, generator=generator).expand(shape)
    mask = mask if len(shape) == 2 else torch.stack([mask[0], mask[1].roll(1, dims=0)])
    ref = -0.5 - 1.5 * normal(*shape, generator=generator).sigmoid()
    new = (ref + 0.5 * normal(*shape, generator=generator)).masked_fill(~mask, 99)
    return {"log_probs": new, "ref_log_probs": ref.masked_fill(~mask, 97), "mask": mask}


def _batch(generator: Generator) -> dict:
    """For the penalty in the reward: three responses with a reward each."""
    named = _tokens(3, 4, generator=generator)
    mask, rewards = named.pop("mask"), normal(3, generator=generator)
    return named | {"rewards": rewards, "beta": uniform(0.4, 0.8, generator), "mask": mask}


def _surrogate(log_probs: Tensor, ref: Tensor, rewards: Tensor, beta: float, mask: Tensor):
    """Token by token; what a token earns is a float."""
    total = 0
    for x, y, reward, n in zip(log_probs, ref, rewards, mask.sum(1), strict=True):
        for t in range(n):
            total = total + x[t] * (reward - beta * (x - y)[t:n].sum()).item()
    return total / len(mask)


_FREE = {  # what is not detached
    "the bracket is a constant: detach all of it": "xfr",
    "what is charged is a constant: detach the log-ratios": "x",
    "what is charged is a constant: detach the log-ratios, reference and all": "xf",
    "the rewards are constants: detach them": "r",
}


def _held(free: str, x: Tensor, ref: Tensor, rewards: Tensor) -> list[Tensor]:
    return [y if n in free else y.detach() for n, y in zip("xfr", (x, ref, rewards), strict=True)]


def _rule(
    charge=lambda k: k.flip(1).cumsum(1).flip(1),
    total=lambda y, m: (y * m).sum(1).mean(),
    cut=torch.mul,
    free="",
    loss=torch.zeros_like,
):
    """An answer with a charge in the reward, a loss, or both; each is made from the log-ratio."""

    def answer(x, ref, r, b, m):
        y, f, r = _held(free, x, ref, r)
        in_loss = loss(cut(x - ref.detach(), m))
        return total(x * (r[:, None] - b * charge(cut(y - f, m))) - b * in_loss, m)

    return answer


BUG = Exercise(
    name="11-bug",
    draw=_batch,
    route=_surrogate,
    differentiate=("log_probs", "ref_log_probs", "rewards"),
    own=("policy_gradient_surrogate", "reward_to_go", "per_step_kl"),
    mistakes={
        "the log-ratio is still in the loss: charge it": _rule(torch.zeros_like, loss=lambda k: k),
        "the KL has no gradient now: multiply it by the score": _rule(
            torch.zeros_like, loss=Tensor.detach
        ),
        "k2 in the loss drops the future KL": _rule(torch.zeros_like, loss=lambda k: k**2 / 2),
        "k3 in the loss is the KL the other way round": _rule(
            torch.zeros_like, loss=lambda k: torch.expm1(-k) + k
        ),
        "later log-ratios are not charged: the future KL": _rule(lambda k: k),
        "the own log-ratio is missing": _rule(lambda k: k.flip(1).cumsum(1).flip(1) - k),
        "earlier ones are charged too: mere noise": _rule(lambda k: k.sum(1, keepdim=True)),
        "the sum runs from the front": _rule(lambda k: k.cumsum(1)),
        "the log-ratio is charged and, once more, in the loss": _rule(loss=lambda k: k),
        "the KL is rewarded; subtract it": _rule(lambda k: -k.flip(1).cumsum(1).flip(1)),
        "β is missing": lambda x, ref, r, b, m: _rule()(x, ref, r, 1, m),
        "the KL is missing": _rule(torch.zeros_like),
        "the log-ratios of the padding are charged": _rule(cut=lambda k, m: k),
        "the log_probs of the padding count": _rule(total=lambda y, m: y.sum(1).mean()),
        "the mask is not used": lambda x, ref, r, b, m: _rule()(x, ref, r, b, m | True),
        "add up the tokens": _rule(total=lambda y, m: y.where(m, torch.nan).nanmean(1).mean()),
        "the responses are added up; average them": _rule(total=lambda y, m: (y * m).sum()),
        "the sign is wrong: this is to be maximised": _rule(total=lambda y, m: -(y * m).sum() / 3),
    }
    | {message: _rule(free=free) for message, free in _FREE.items()},
)


def _groups(generator: Generator) -> dict:
    """For RLOO: two prompts with four responses each."""
    new, ref = -4 * normal(2, 2, 4, generator=generator).sigmoid()
    named = {"log_probs": new, "ref_log_probs": ref}
    return named | {
        "rewards": normal(2, 4, generator=generator),
        "beta": uniform(0.4, 0.8, generator),
    }


def _rloo(log_probs: Tensor, ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """By pairs: each response against each other one of its group."""
    earned = (rewards - beta * (log_probs - ref)).tolist()
    total = 0
    for row, g in zip(log_probs, earned, strict=True):
        for i, j in [(i, j) for i in range(4) for j in range(4) if i != j]:
            total = total + row[i] * (g[i] - g[j]) / 3
    return total / log_probs.numel()


def _group(
    base=others, g=lambda r, b, k: r - b * k, fix=lambda a: a, free="", loss=lambda *_: 0,
    end=torch.mean,
):  # fmt: skip
    def answer(x, ref, r, b):
        y, f, r = _held(free, x, ref, r)
        earned = g(r, b, y - f)
        return end(x * fix(earned - base(earned)) - loss(b, x - ref.detach(), x))

    return answer


RLOO = Exercise(
    name="11-rloo",
    draw=_groups,
    route=_rloo,
    differentiate=("log_probs", "ref_log_probs", "rewards"),
    own=("leave_one_out",),
    mistakes={
        "the own response is in the baseline": _group(lambda g: g.mean(1, keepdim=True)),
        "there are n - 1 others, not n": _group(lambda g: others(g) * 3 / 4),
        "the baseline is missing": _group(torch.zeros_like),
        "the baseline is added; subtract it": _group(lambda g: -others(g)),
        "the others are those of the same row": _group(lambda g: (g.sum() - g) / (g.numel() - 1)),
        "only rewards are in the baseline; the others pay for their KL too": _group(
            g=lambda r, b, k: r, loss=lambda b, k, x: b * k.detach() * x
        ),
        "the log-ratio is in the loss": _group(g=lambda r, b, k: r, loss=lambda b, k, x: b * k),
        "the KL is missing": _group(g=lambda r, b, k: r),
        "the KL is added; subtract it": _group(g=lambda r, b, k: r + b * k),
        "β is missing": _group(g=lambda r, b, k: r - k),
        "β is the price of the log-ratio alone": _group(g=lambda r, b, k: b * (r - k)),
        "RLOO does not divide by a spread": _group(fix=lambda a: a / spread(a)),
        "the responses are added up; average them": _group(end=torch.sum),
        "the sign is wrong: this is to be maximised": _group(end=lambda y: -y.mean()),
    }
    | {message: _group(free=free) for message, free in _FREE.items()},
)


def _pairs(generator: Generator) -> dict:
    """For DPO: three pairs, the preferred responses first."""
    return _tokens(2, 3, 4, generator=generator) | {"beta": uniform(0.4, 0.8, generator)}


def _dpo(log_probs: Tensor, ref: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Pair by pair, from the odds that the policy gives to a choice."""
    total = 0
    for n in range(mask.shape[1]):
        implied = [(log_probs - ref.detach())[k, n][mask[k, n]].sum() for k in (0, 1)]
        total = total + torch.log(1 + torch.exp(beta * (implied[1] - implied[0])))
    return total / mask.shape[1]


def _choice(loss=lambda d, b: softplus(-b * d), fix=Tensor.detach, end=torch.mean, minus=torch.sub):
    return lambda x, ref, m, b: end(loss(minus(*((x - fix(ref)) * m).sum(-1)), b))


DPO = Exercise(
    name="11-dpo",
    draw=_pairs,
    route=_dpo,
    differentiate=("log_probs", "ref_log_probs"),
    mistakes={
        "the sign is wrong: a loss is the negative logarithm": _choice(end=lambda y: -y.mean()),
        "the two responses are swapped: row 0 is preferred": _choice(lambda d, b: softplus(b * d)),
        "the reference is missing": _choice(fix=torch.zeros_like),
        "the reference is added; it is a ratio": _choice(fix=lambda ref: -ref.detach()),
        "β is missing": _choice(lambda d, b: softplus(-d)),
        "β divides; it multiplies the log-ratios": _choice(lambda d, b: softplus(-d / b)),
        "β belongs inside, at the log-ratios": _choice(lambda d, b: b * softplus(-d)),
        "the logarithm is missing": _choice(lambda d, b: -(b * d).sigmoid()),
        "σ is missing: this loss has no lowest point": _choice(lambda d, b: -b * d),
        "the other response is missing: a difference": _choice(minus=lambda x, y: x),
        "the two are added; a difference is wanted": _choice(minus=torch.add),
        "the padding counts": lambda x, ref, m, b: _choice()(x, ref, m | True, b),
        "the tokens are averaged; add them up": lambda x, ref, m, b: _choice()(
            x / (n := m.sum(-1, keepdim=True)), ref / n, m, b
        ),
        "the pairs are added up; average them": _choice(end=torch.sum),
        "the reference is a constant: detach it": _choice(fix=lambda ref: ref),
        "the other response lost its gradient": _choice(minus=lambda x, y: x - y.detach()),
    },
)

EXERCISES = [BUG, RLOO, DPO, GRPO]
