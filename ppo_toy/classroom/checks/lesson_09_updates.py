"""Lesson 09, RLHF, its last exercise: several updates from one batch."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import log_p, normal, sizes, uniform
from ppo_toy.kl import kl_of_log_probs as _kl


def _stale(generator: Generator, k: int) -> dict:
    """A batch in which the clip acts, and not on every word."""
    v, b = sizes(k, 2, low=3)
    while True:
        logits, ref_logits = normal(2, v, generator=generator)
        case = {"logits": logits, "ref_logits": ref_logits}
        case |= {"words": torch.randint(v, (b,), generator=generator)}
        case |= {"advantages": normal(b, generator=generator)}
        case |= {"beta": uniform(0.3, 0.6, generator), "epsilon": uniform(0.1, 0.2, generator)}
        case |= {"step_size": uniform(0.6, 0.9, generator)}
        if _climbed(*case.values())[1] < 0.8 * _climbed(*(case | {"epsilon": 9}).values())[1]:
            return case


def _climbed(logits, ref_logits, words, advantages, beta, epsilon, step_size) -> tuple:
    """With the gradient on paper, word by word."""
    theta, q = logits.detach(), ref_logits.detach().softmax(-1)
    old = theta.softmax(-1)
    for _ in range(3):
        p = theta.softmax(-1)
        gradient = -beta * p * ((p / q).log() - (p * (p / q).log()).sum())
        for word, a in zip(words.tolist(), advantages.tolist(), strict=True):
            ratio = (p[word] / old[word]).item()
            if not (a > 0 and ratio > 1 + epsilon) and not (a < 0 and ratio < 1 - epsilon):
                score = torch.eye(len(p), dtype=p.dtype)[word] - p
                gradient = gradient + ratio * a * score / len(words)
        theta = theta + step_size * gradient
    return theta, (old * (old / theta.softmax(-1)).log()).sum()


def _gain(x: Tensor, a: Tensor, e: float) -> Tensor:
    return torch.minimum(x.exp() * a, x.exp().clamp(1 - e, 1 + e) * a).mean()


def _climb(
    old="drew", brake="now ref", moved="drew new", scale=lambda x, words: 1, rounds=3, gain=_gain,
    here=True,
):  # fmt: skip
    """The updates with other policies in the ratio and in the two KLs, and other changes."""

    def answer(x, q, words, a, b, e, step):
        theta, told = x.detach(), {"drew": log_p(x.detach()), "ref": log_p(q.detach())}
        for _ in range(rounds):
            at = (theta if here else x).detach().clone().requires_grad_()
            told |= {"now": log_p(at), "last": log_p(at.detach())}
            worth = gain((told["now"] - told[old])[words], a, e)
            worth = scale(x, words) * worth - b * _kl(*(told[who] for who in brake.split()))
            theta = theta + step * torch.autograd.grad(worth, at)[0]
        told["new"] = log_p(theta)
        return theta, _kl(*(told[who] for who in moved.split()))

    return answer


UPDATES = Exercise(
    name="09-updates",
    draw=_stale,
    route=_climbed,
    own=("train", "train_on"),
    mistakes={
        "the bug is still there: π_old is taken anew for every update":
            _climb("last", moved="last new"),
        "the KL is mended; in the ratio π_old is still taken anew for every update": _climb("last"),
        "θ is right; the KL is that of the last update alone": _climb(moved="last new"),
        "θ is right; the KL is turned round: π_old stands first": _climb(moved="new drew"),
        "θ is right; the KL is that to the reference": _climb(moved="new ref"),
        "the reference stands in the ratio; π_old should": _climb("ref"),
        "each gradient is taken at the first logits; take it where θ is now": _climb(here=False),
        "the KL to the reference is missing": _climb(brake="ref ref"),
        "the brake is the KL to π_old; that to the reference is wanted": _climb(brake="drew now"),
        "the brake's KL is turned round: π_θ stands first": _climb(brake="ref now"),
        "the clip is gone": _climb(gain=lambda x, a, e: _gain(x, a, torch.inf)),
        "the ratio is upside down": _climb(gain=lambda x, a, e: _gain(-x, a, e)),
        "the words are added up; their mean is wanted": _climb(scale=lambda x, words: len(words)),
        "it is divided by V; divide by the number of words drawn":
            _climb(scale=lambda x, words: len(words) / len(x)),
        "only one update is made; three are wanted": _climb(rounds=1),
        "it goes downhill": lambda *a: _climb()(*a[:-1], -a[-1]),
    },
)  # fmt: skip
