"""Lesson 11, in the wild: a brake that does not brake, RLOO, DPO, GRPO's beta."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, random_mask


def _beta(generator: Generator) -> float:
    return (0.4 + 0.4 * normal(generator=generator).sigmoid()).item()


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
    return named | {"rewards": rewards, "beta": _beta(generator), "mask": mask}


def _surrogate(log_probs: Tensor, ref: Tensor, rewards: Tensor, beta: float, mask: Tensor):
    """Token by token; what a token earns is a float."""
    total = 0
    for x, y, reward, n in zip(log_probs, ref, rewards, mask.sum(1), strict=True):
        for t in range(n):
            total = total + x[t] * (reward - beta * (x - y)[t:n].sum()).item()
    return total / len(mask)


def _rule(
    charge=lambda k: k.flip(1).cumsum(1).flip(1),
    total=lambda y, m: (y * m).sum(1).mean(),
    cut=torch.mul,
    fix=Tensor.detach,
    loss=torch.zeros_like,
):
    """An answer with a charge in the reward, a loss, or both; each is made from the log-ratio."""

    def answer(x, ref, r, b, m):
        k = cut(x - ref.detach(), m)
        return total(x * (r.detach()[:, None] - b * fix(charge(k))) - b * loss(k), m)

    return answer


BUG = Exercise(
    name="11-bug",
    draw=_batch,
    route=_surrogate,
    differentiate=("log_probs", "ref_log_probs", "rewards"),
    own=("policy_gradient_surrogate", "reward_to_go", "per_step_kl"),
    mistakes={
        "the log-ratio is still in the loss: charge it": _rule(torch.zeros_like, loss=lambda k: k),
        "k2 in the loss drops the future KL": _rule(torch.zeros_like, loss=lambda k: k**2 / 2),
        "k3 in the loss is the KL the other way round": _rule(
            torch.zeros_like, loss=lambda k: torch.expm1(-k) + k
        ),
        "what is charged is a constant: detach the log-ratios": _rule(fix=lambda c: c),
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
    },
)


def _groups(generator: Generator) -> dict:
    """For RLOO: two prompts with four responses each."""
    new, ref = -4 * normal(2, 2, 4, generator=generator).sigmoid()
    named = {"log_probs": new, "ref_log_probs": ref}
    return named | {"rewards": normal(2, 4, generator=generator), "beta": _beta(generator)}


def _rloo(log_probs: Tensor, ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """By pairs: each response against each other one of its group."""
    earned = (rewards - beta * (log_probs - ref)).tolist()
    total = 0
    for row, g in zip(log_probs, earned, strict=True):
        for i, j in [(i, j) for i in range(4) for j in range(4) if i != j]:
            total = total + row[i] * (g[i] - g[j]) / 3
    return total / log_probs.numel()


def _others(g: Tensor) -> Tensor:
    return (g.sum(1, keepdim=True) - g) / (g.shape[1] - 1)


def _spread(r: Tensor, correction: int = 0) -> Tensor:
    return r.std(1, keepdim=True, correction=correction)


def _group(
    base=_others, g=lambda r, b, k: r - b * k, fix=Tensor.detach, loss=lambda *x: 0, end=torch.mean
):
    def answer(x, ref, r, b):
        k = x - ref.detach()
        earned = g(r.detach(), b, k)
        return end(x * fix(earned - base(earned)) - loss(b, k, x))

    return answer


RLOO = Exercise(
    name="11-rloo",
    draw=_groups,
    route=_rloo,
    differentiate=("log_probs", "ref_log_probs", "rewards"),
    own=("leave_one_out",),
    mistakes={
        "the own response is in the baseline": _group(lambda g: g.mean(1, keepdim=True)),
        "there are n - 1 others, not n": _group(lambda g: _others(g) * 3 / 4),
        "the baseline is missing": _group(torch.zeros_like),
        "the baseline is added; subtract it": _group(lambda g: -_others(g)),
        "the others are those of the same row": _group(lambda g: (g.sum() - g) / (g.numel() - 1)),
        "only rewards are in the baseline; the others pay for their KL too": _group(
            g=lambda r, b, k: r, loss=lambda b, k, x: b * k.detach() * x
        ),
        "the bracket is a constant: detach it": _group(fix=lambda a: a),
        "the log-ratio is in the loss": _group(g=lambda r, b, k: r, loss=lambda b, k, x: b * k),
        "the KL is missing": _group(g=lambda r, b, k: r),
        "the KL is added; subtract it": _group(g=lambda r, b, k: r + b * k),
        "β is missing": _group(g=lambda r, b, k: r - k),
        "β is the price of the log-ratio alone": _group(g=lambda r, b, k: b * (r - k)),
        "RLOO does not divide by a spread": _group(fix=lambda a: a.detach() / _spread(a.detach())),
        "the responses are added up; average them": _group(end=torch.sum),
        "the sign is wrong: this is to be maximised": _group(end=lambda y: -y.mean()),
    },
)


def _pairs(generator: Generator) -> dict:
    """For DPO: three pairs, the preferred responses first."""
    return _tokens(2, 3, 4, generator=generator) | {"beta": _beta(generator)}


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


def _solved(generator: Generator) -> dict:
    """For GRPO: prompts with rewards all alike, two sorts of 0 and 1, and others; in any order."""
    rewards = (torch.arange(5) < torch.tensor([[0], [1], [2], [0]])).double()
    rewards = (rewards - torch.randint(2, (4, 1), generator=generator)).abs()
    rewards[3] = normal(5, generator=generator)
    rewards = torch.stack([row[torch.randperm(5, generator=generator)] for row in rewards])
    return {"rewards": rewards[torch.randperm(4, generator=generator)], "beta": _beta(generator)}


def _grpo(rewards: Tensor, beta: float) -> tuple:
    """From the differences of all pairs, whose mean square is twice the variance."""
    apart = rewards[:, :, None] - rewards[:, None, :]
    spread = (apart.square().mean((1, 2)) / 2).sqrt()
    return apart.mean(2) / spread.where(spread > 1e-9, torch.inf)[:, None], beta * spread


def _normed(
    spread=_spread, base=lambda r: r.mean(1)[:, None], over=lambda s: s, force=torch.mul, empty=0
):
    def answer(r, b):
        s = spread(r)
        return ((r - base(r)) / over(s)).where(s > 0, empty), force(b * torch.ones(4), s[:, 0])

    return answer


GRPO = Exercise(
    name="11-grpo",
    draw=_solved,
    route=_grpo,
    own=("whiten",),
    mistakes={
        "the variance divides by n here: std(correction=0)": _normed(lambda r: _spread(r, 1)),
        "where all rewards are alike the advantages are 0, not nan": _normed(empty=torch.nan),
        "divide by s alone; nothing is added to it": _normed(over=lambda s: s + 1e-4),
        "this divides by the variance; s is its root": _normed(over=torch.square),
        "the advantages are not divided by s": _normed(over=torch.ones_like),
        "each group has its own s": _normed(lambda r: _spread(r.view(1, -1))),
        "each group has its own mean": _normed(base=torch.mean),
        "each group has its own mean and s": _normed(lambda r: _spread(r.view(1, -1)), torch.mean),
        "the mean is not subtracted": _normed(base=torch.zeros_like),
        "the own response is in GRPO's mean; this is RLOO's": _normed(base=_others),
        "the coefficient is β times s, not β": _normed(force=lambda b, s: b),
        "the coefficient is β times s; this divides": _normed(force=torch.div),
        "the coefficient is β times s, not s": _normed(force=lambda b, s: s),
        "each prompt has its own coefficient": _normed(force=lambda b, s: (b * s).mean()),
    },
)

EXERCISES = [BUG, RLOO, DPO, GRPO]
