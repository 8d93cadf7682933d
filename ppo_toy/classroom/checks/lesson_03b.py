"""Lesson 03b, estimators: a clamp in both places, a diagnosis by gradients, a resting place."""

import math
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import log_ratio, normal, sizes, uniform

KINDS = [lambda x: x, lambda x: x * x / 2, lambda x: (-x).expm1() + x]


def _net(p: Tensor, charge: Tensor) -> Tensor:
    """E[charge * score]: p times the charge less its mean; what is never said counts for 0."""
    charged = torch.where(p > 0, p * charge, 0)
    return charged - p * charged.sum(-1, keepdim=True)


def _slips(answer, changes: dict) -> dict:
    return {text: partial(answer, **change) for text, change in changes.items()}


def _states(generator: Generator, k: int) -> dict:
    logits, ref_logits = 1.5 * normal(2, *sizes(k, 2, low=3), generator=generator)
    if k == 2:  # what the reference never says, and what the policy never says
        ref_logits[0, 0] = logits[0, 1] = logits[1, 2] = -torch.inf
    return {"logits": logits, "ref_logits": ref_logits, "limit": uniform(0.6, 1.2, generator)}


def _clamped(logits: Tensor, ref_logits: Tensor, limit: float) -> tuple[Tensor, ...]:
    """By autograd: first the probabilities that draw are constants, then the estimate is one."""
    theta = logits.clone().requires_grad_()
    x = log_ratio(theta, ref_logits).clamp(-limit, limit)
    p, k = theta.softmax(-1), x.neg().exp() - 1 + x
    both = (p.detach() * k).sum(), (p * k.detach()).sum()
    return tuple(torch.autograd.grad(y, theta, retain_graph=True)[0] for y in both)


def _both(a, b, c, *, k=KINDS[2], slope=lambda x: -(-x).expm1(), still=(0, 1), of=0, way=1,
          end=lambda loss, reward: (loss, reward)):  # fmt: skip
    """Both gradients, with something else in the place of some of it."""
    x, p = way * log_ratio(a, b), (a, b)[of].softmax(-1)
    y, inside = x.clamp(-c, c), x.abs() < c
    charges = [(inside | bool(s)) * z for s, z in zip(still, (way * slope(y), k(y)), strict=True)]
    return end(*(_net(p, z) for z in charges))


CLAMPED = Exercise(
    name="03b-clamped", draw=_states, route=_clamped, own=("kl_estimate",),
    mistakes=_slips(_both, {
        "in the loss the clamp has no slope: a token beyond it does not pull": {"still": (1, 1)},
        "in the reward a token beyond the clamp is still charged": {"still": (0, 0)},
        "loss and reward are swapped": {"end": lambda loss, reward: (reward, loss)},
        "these point uphill; the penalty's own gradients are wanted":
            {"end": lambda loss, reward: (-loss, -reward)},
        "in the loss the probabilities that draw are constants: detach them":
            {"end": lambda loss, reward: (loss + reward, reward)},
        "the log-ratio is upside down: the policy stands first": {"way": -1},
        "this is k2": {"k": KINDS[1], "slope": KINDS[0]},
        "the policy draws the tokens, not the reference": {"of": 1},
    }) | {
        "the log-ratio is not clamped": lambda a, b, c: _both(a, b, math.inf),
        "the estimate is clamped; the log-ratio should be":
            lambda a, b, c: _both(a, b, math.inf, k=lambda x: KINDS[2](x).clamp(-c, c)),
    },
)  # fmt: skip


def _pulls(logits, after, ref_logits, ref_after) -> Tensor:
    """What five penalties give at the first state, uphill and with β = 1, [5, V]: by autograd."""
    theta = logits.clone().requires_grad_()
    x, y, p = log_ratio(theta, ref_logits)[:, None], log_ratio(after, ref_after), theta.softmax(-1)
    joint = p[:, None] * after.softmax(-1)
    costs = [joint * (k(x) + k(y)).detach() for k in KINDS]
    costs += [joint.detach() * k(x) for k in KINDS[1:]]
    grads = [torch.autograd.grad(c.sum(), theta, retain_graph=True)[0] for c in costs]
    return -torch.stack(grads)


def _suspects(generator: Generator, k: int) -> dict:
    v, n = 3 + k % 3, 6 + (k + 1) % 3
    for _ in range(1000):
        rows = normal(2, v + 1, v, generator=generator)
        given = {"logits": rows[0, 0], "logits_after": rows[0, 1:]}
        given |= {"ref_logits": rows[1, 0], "ref_logits_after": rows[1, 1:]}
        pulls = _pulls(*given.values())
        ways = normalize(pulls)
        if (ways @ ways.T).abs().triu(1).max() < 0.999:  # or rules could not be told apart
            break
    which = (torch.arange(n) % 6)[torch.randperm(n, generator=generator)]
    betas = [(-1) ** i * uniform(0.1, 0.9, generator) for i in range(n)]
    none = torch.zeros_like(pulls[:1])
    return given | {"gradients": torch.tensor(betas)[:, None] * torch.cat([pulls, none])[which]}


def _fit(gradients, pulls):
    """The nearest multiple of a pull for each gradient: of which, and how much; 5 and 0 of none."""
    betas = gradients @ pulls.T / pulls.square().sum(-1)
    which = (gradients[:, None] - betas[..., None] * pulls).norm(dim=-1).argmin(-1)
    none = gradients.norm(dim=-1) < 1e-9
    best = betas.gather(-1, which[:, None])[:, 0]
    return which.masked_fill(none, 5).double(), best.masked_fill(none, 0)


def _guess(a, b, c, d, g, *, end=lambda w, beta: (w, beta), half=1, later=(1, 0), own=1,
           mean=lambda p, x: (p * x).sum(-1), net=_net):  # fmt: skip
    """From formulas, with something else in the place of some of it."""
    x, y, p = log_ratio(a, c), log_ratio(b, d), b.softmax(-1)
    charges = [own * k(x) + later[0] * mean(p, k(y)) for k in KINDS]
    charges[1] *= half
    charges += [z + later[1] * mean(p, y) for z in (x, -(-x).expm1())]
    return end(*_fit(g, torch.stack([-net(a.softmax(-1), z) for z in charges])))


WHICH = Exercise(
    name="03b-which", draw=_suspects,
    route=lambda *given: _fit(given[-1], _pulls(*given[:-1])),
    mistakes=_slips(_guess, {
        "in the reward the second token's estimate is missing": {"later": (0, 0)},
        "in the reward the token's own estimate is missing": {"own": 0},
        "in the loss nothing later is charged": {"later": (1, 1)},
        "the second token is drawn from the policy: weigh by its probabilities":
            {"mean": lambda p, x: x.mean(-1)},
        "β's sign is wrong: the penalty is subtracted from what is maximised":
            {"end": lambda w, beta: (w, -beta)},
        "β can be negative: take no abs": {"end": lambda w, beta: (w, beta.abs())},
        "k2 is half of the square": {"half": 2},
        "the derivative of log π(a) by the logit of v is 1[v = a] less π(v)":
            {"net": lambda p, z: p * z},
        "the rules are counted from 0": {"end": lambda w, beta: (w + 1, beta)},
    }) | {
        "rows and columns are swapped: the first token is the row":
            lambda a, b, c, d, g: _guess(a, b.T, c, d.T, g),
        "policy and reference are swapped": lambda a, b, c, d, g: _guess(c, d, a, b, g),
    },
)  # fmt: skip


def _tree(generator: Generator, k: int) -> dict:
    v, beta = 2 + k % 3, 0.001 if k == 3 else uniform(0.4, 0.8, generator)
    logits, rewards = normal(2, v + 1, v, generator=generator)
    p, rewards = logits.softmax(-1), rewards[1:] + 1
    if k == 2:  # tokens that the reference never says
        p[1:] = normalize(p[1:].fill_diagonal_(0), p=1.0)
    return {"p_first": p[0], "p_second": p[1:], "rewards": rewards, "beta": beta}


def _rest(p, q, r, b, *, worth=lambda after, q, r, b: (after * r).sum(-1), ref=1, count=(1, 1),
          sign=1):  # fmt: skip
    """The resting place and what it costs, with something else in the place of some of it."""
    after = (ref * q.log() + r / b).softmax(-1)
    first = (ref * p.log() + worth(after, q, r, b) / b).softmax(-1)
    kls = [(x.xlogy(x) - x.xlogy(y)).sum(-1) for x, y in ((first, p), (after, q))]
    spent = count[0] * kls[0] + count[1] * first @ kls[1]
    best = b * (p.log() + (q.log() + r / b).logsumexp(-1)).logsumexp(-1)
    return first, sign * (best - first @ (after * r).sum(-1) + b * spent)


def _dropped(p_first: Tensor, p_second: Tensor, rewards: Tensor, beta: float) -> tuple:
    """From the last token on; the gap is β times the KL of whole responses to the best policy."""
    log_ref = (p_first[:, None] * p_second).log()
    after = (p_second.log() + rewards / beta).softmax(1)
    first = (p_first.log() + torch.einsum("ab,ab->a", after, rewards) / beta).softmax(0)
    best = (log_ref + rewards / beta).flatten().log_softmax(0)
    joint = (first[:, None] * after).flatten()
    return first, beta * torch.where(joint > 0, joint * (joint.log() - best), 0).sum()


DROPPED = Exercise(
    name="03b-dropped", draw=_tree, route=_dropped, own=("optimum", "soft_values", "evaluate"),
    mistakes=_slips(_rest, {
        "this is the best policy: the rule does not see the KL of the second token":
            {"worth": lambda after, q, r, b: b * (q.log() + r / b).logsumexp(-1)},
        "the policy goes on after the first token, not the reference":
            {"worth": lambda after, q, r, b: (q * r).sum(-1)},
        "a first token earns a mean, not the largest reward":
            {"worth": lambda after, q, r, b: r.amax(-1)},
        "J counts the KL of the second token, too": {"count": (1, 0)},
        "J has the KL in it; this is a gap in reward": {"count": (0, 0)},
        "the cost is what J lacks: J* less J": {"sign": -1},
        "π_ref is missing before the exponential": {"ref": 0},
    }) | {
        "β is missing": lambda p, q, r, b: _rest(p, q, r, 1.0),
        "rows and columns are swapped: the first token is the row":
            lambda p, q, r, b: _rest(p, q.T, r.T, b),
    },
)  # fmt: skip

EXERCISES = [CLAMPED, WHICH, DROPPED]
