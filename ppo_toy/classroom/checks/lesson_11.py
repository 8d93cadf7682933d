"""Lesson 11, in the wild: a brake that does not brake, RLOO, DPO, GRPO's beta."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from ppo_toy.classroom.checks.lesson_11_grpo import GRPO, others, spread
from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import MEANS, normal, random_mask, sizes, uniform


def _tokens(b: int, t: int, generator: Generator) -> dict:
    """Log-probabilities of rows of tokens; a log-ratio of 2 behind them."""
    mask = random_mask(b, t, generator)
    ref = (-0.5 - 1.5 * normal(b, t, generator=generator).sigmoid()).round(decimals=2)
    new = (ref + 0.5 * normal(b, t, generator=generator)).round(decimals=2).masked_fill(~mask, 99)
    return {"log_probs": new, "ref_log_probs": ref.masked_fill(~mask, 97), "mask": mask}


def _batch(generator: Generator, k: int) -> dict:
    """For the penalty in the reward: responses with a reward each."""
    named = _tokens(*sizes(k, 2), generator)
    mask = named.pop("mask")
    named["ref_log_probs"][0, 0] -= 12 * (k == 2)  # beyond what libraries clamp at
    rewards, beta = normal(len(mask), generator=generator), uniform(0.4, 0.8, generator)
    return named | {"rewards": rewards, "beta": beta, "mask": mask}


def _surrogate(log_probs: Tensor, ref: Tensor, rewards: Tensor, beta: float, mask: Tensor):
    """Token by token; what a token earns is a float."""
    total = 0
    for x, y, reward, n in zip(log_probs, ref, rewards, mask.sum(1), strict=True):
        for t in range(n):
            total = total + x[t] * (reward - beta * (x - y)[t:n].sum()).item()
    return total / len(mask)


def _rule(
    charge=lambda k: k.flip(1).cumsum(1).flip(1), total=lambda y, m: (y * m).sum(1).mean(),
    cut=torch.mul, loss=torch.zeros_like,
):  # fmt: skip
    """An answer with a charge in the reward, a loss, or both; each is made from the log-ratio."""

    def answer(x, ref, r, b, m):
        charged = charge(cut(x - ref, m)).detach()
        return total(x * (r[:, None] - b * charged) - b * loss(cut(x - ref, m)), m)

    return answer


BUG = Exercise(
    name="11-bug",
    draw=_batch,
    route=_surrogate,
    differentiate=("log_probs",),
    constants=("ref_log_probs", "rewards"),
    own=("policy_gradient_surrogate", "reward_to_go", "per_step_kl"),
    mistakes={
        "the log-ratio is still in the loss: charge it": _rule(torch.zeros_like, loss=lambda k: k),
        "the KL has no gradient now: multiply it by the score":
            _rule(torch.zeros_like, loss=Tensor.detach),
        "k2 in the loss drops the future KL": _rule(torch.zeros_like, loss=lambda k: k**2 / 2),
        "k3 in the loss is the KL the other way round":
            _rule(torch.zeros_like, loss=lambda k: torch.expm1(-k) + k),
        "later log-ratios are not charged: the future KL": _rule(lambda k: k),
        "the own log-ratio is missing": _rule(lambda k: k.flip(1).cumsum(1).flip(1) - k),
        "earlier ones are charged too: mere noise": _rule(lambda k: k.sum(1, keepdim=True)),
        "the sum runs from the front": _rule(lambda k: k.cumsum(1)),
        "the log-ratio is charged and, once more, in the loss": _rule(loss=lambda k: k),
        "the KL is rewarded; subtract it": _rule(lambda k: -k.flip(1).cumsum(1).flip(1)),
        "β is missing": lambda x, ref, r, b, m: _rule()(x, ref, r, 1, m),
        "the KL is missing": _rule(torch.zeros_like),
        "the log-ratios of the padding are charged": _rule(cut=lambda k, m: k),
        "the mask is not used": lambda x, ref, r, b, m: _rule()(x, ref, r, b, m | True),
        "what is charged is a constant: detach the log-ratios": lambda x, ref, r, b, m: (
            (x * m * (r[:, None] - b * ((x - ref) * m).flip(1).cumsum(1).flip(1))).sum(1).mean()
        ),
    }
    | {text: _rule(total=total) for text, total in MEANS.items()},
)  # fmt: skip


def _groups(generator: Generator, k: int) -> dict:
    """For RLOO: prompts with some responses each."""
    shape = sizes(k, 2)
    new, ref = (-4 * normal(2, *shape, generator=generator).sigmoid()).round(decimals=2)
    rewards, beta = normal(*shape, generator=generator), uniform(0.4, 0.8, generator)
    return {"log_probs": new, "ref_log_probs": ref, "rewards": rewards, "beta": beta}


def _rloo(log_probs: Tensor, ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """By pairs: each response against each other one of its group."""
    earned = (rewards - beta * (log_probs - ref)).tolist()
    total = 0
    for row, g in zip(log_probs, earned, strict=True):
        for x, own in zip(row, g, strict=True):
            total = total + x * sum(own - other for other in g) / (len(g) - 1)
    return total / log_probs.numel()


def _group(
    base=others, g=lambda r, b, k: r - b * k, fix=Tensor.detach, loss=lambda *_: 0, end=torch.mean
):
    def answer(x, ref, r, b):
        earned = g(r, b, x - ref)
        return end(x * fix(earned - base(earned)) - loss(b, x - ref, x))

    return answer


RLOO = Exercise(
    name="11-rloo",
    draw=_groups,
    route=_rloo,
    differentiate=("log_probs",),
    constants=("ref_log_probs", "rewards"),
    own=("leave_one_out",),
    mistakes={
        "the own response is in the baseline": _group(lambda g: g.mean(1, keepdim=True)),
        "there are n - 1 others, not n":
            _group(lambda g: others(g) * (g.shape[1] - 1) / g.shape[1]),
        "the baseline is missing": _group(torch.zeros_like),
        "the baseline is added; subtract it": _group(lambda g: -others(g)),
        "the others are those of the same row": _group(lambda g: (g.sum() - g) / (g.numel() - 1)),
        "only rewards are in the baseline; the others pay for their KL too":
            _group(g=lambda r, b, k: r, loss=lambda b, k, x: b * k.detach() * x),
        "the log-ratio is in the loss": _group(g=lambda r, b, k: r, loss=lambda b, k, x: b * k),
        "the KL is missing": _group(g=lambda r, b, k: r),
        "the KL is added; subtract it": _group(g=lambda r, b, k: r + b * k),
        "β is missing": _group(g=lambda r, b, k: r - k),
        "β is the price of the log-ratio alone": _group(g=lambda r, b, k: b * (r - k)),
        "RLOO does not divide by a spread": _group(fix=lambda a: (a / spread(a)).detach()),
        "the responses are added up; average them": _group(end=torch.sum),
        "the sign is wrong: this is to be maximised": _group(end=lambda y: -y.mean()),
        "what is charged is a constant: detach the log-ratios": _group(fix=lambda a: a),
    },
)  # fmt: skip


def _pairs(generator: Generator, k: int) -> dict:
    """For DPO: some pairs, the preferred responses first."""
    n, t = sizes(k, 2, low=3)
    both = [_tokens(n, t, generator) for _ in range(2)]
    named = {name: torch.stack([one[name] for one in both]) for name in both[0]}
    return named | {"beta": uniform(0.4, 0.8, generator)}


def _dpo(log_probs: Tensor, ref: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Pair by pair, from the odds that the policy gives to a choice."""
    total = 0
    for n in range(mask.shape[1]):
        implied = [(log_probs - ref.detach())[k, n][mask[k, n]].sum() for k in (0, 1)]
        total = total + torch.log(1 + torch.exp(beta * (implied[1] - implied[0])))
    return total / mask.shape[1]


def _choice(loss=lambda d, b: softplus(-b * d), fix=lambda y: y, end=torch.mean, minus=torch.sub):
    return lambda x, ref, m, b: end(loss(minus(*((x - fix(ref)) * m).sum(-1)), b))


DPO = Exercise(
    name="11-dpo",
    draw=_pairs,
    route=_dpo,
    differentiate=("log_probs",),
    mistakes={
        "the sign is wrong: a loss is the negative logarithm": _choice(end=lambda y: -y.mean()),
        "the two responses are swapped: row 0 is preferred": _choice(lambda d, b: softplus(b * d)),
        "the reference is missing": _choice(fix=torch.zeros_like),
        "the reference is added; it is a ratio": _choice(fix=torch.neg),
        "β is missing": _choice(lambda d, b: softplus(-d)),
        "β divides; it multiplies the log-ratios": _choice(lambda d, b: softplus(-d / b)),
        "β belongs inside, at the log-ratios": _choice(lambda d, b: b * softplus(-d)),
        "the logarithm is missing": _choice(lambda d, b: -(b * d).sigmoid()),
        "σ is missing: this loss has no lowest point": _choice(lambda d, b: -b * d),
        "the other response is missing: a difference": _choice(minus=lambda x, y: x),
        "the two are added; a difference is wanted": _choice(minus=torch.add),
        "the padding counts": lambda x, ref, m, b: _choice()(x, ref, m | True, b),
        "the tokens are averaged; add them up":
            lambda x, ref, m, b: _choice()(x / (n := m.sum(-1, keepdim=True)), ref / n, m, b),
        "the tokens' mean is taken, padding and all; add them up":
            lambda x, ref, m, b: _choice()(x / m.shape[-1], ref / m.shape[-1], m, b),
        "β is squared; it stands at the log-ratios once":
            _choice(lambda d, b: softplus(-b * b * d)),
        "the pairs are added up; average them": _choice(end=torch.sum),
        "the other response lost its gradient": _choice(minus=lambda x, y: x - y.detach()),
    },
)  # fmt: skip

EXERCISES = [BUG, RLOO, DPO, GRPO]
