"""Lesson 11, in the wild: a brake that sees one step, a temperature, three cheap habits."""

import numpy as np
import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import MEANS, normal, random_mask, sizes, uniform

# The later log-ratios, charged beside k2 in the loss.


def _batch(generator: Generator, k: int) -> dict:
    """Log-ratios of 2 stand behind the responses; in case 2 one is beyond what libraries clamp."""
    b, t = sizes(k, 2)
    mask = random_mask(b, t, generator)
    ref = (-0.5 - 1.5 * normal(b, t, generator=generator).sigmoid()).round(decimals=2)
    new = (ref + 0.5 * normal(b, t, generator=generator)).round(decimals=2).masked_fill(~mask, 99)
    ref = ref.masked_fill(~mask, 97)
    ref[0, 0] -= 12 * (k == 2)
    rewards, beta = normal(b, generator=generator), uniform(0.4, 0.8, generator)
    tokens = {"log_probs": new, "ref_log_probs": ref}
    return tokens | {"rewards": rewards, "beta": beta, "mask": mask}


def _surrogate(log_probs: Tensor, ref: Tensor, rewards: Tensor, beta: float, mask: Tensor):
    """Token by token; what a token is charged for is a float."""
    total = 0
    for x, y, reward, n in zip(log_probs, ref.detach(), rewards.tolist(), mask.sum(1), strict=True):
        for t in range(n):
            charged = reward - beta * (x - y)[t + 1 : n].sum().item()
            total = total + x[t] * charged - beta * (x[t] - y[t]) ** 2 / 2
    return total / len(mask)


def _later(k: Tensor) -> Tensor:
    return k.flip(1).cumsum(1).flip(1) - k


def _rule(
    charge=_later, loss=lambda k: k * k / 2, total=lambda y, m: (y * m).sum(1).mean(),
    cut=torch.mul, fix=Tensor.detach,
):  # fmt: skip
    """An answer with a charge in the reward and a loss; each is made from the log-ratio."""

    def answer(x, ref, r, b, m):
        charged = fix(charge(cut(x - ref, m)))
        return total(x * (r[:, None] - b * charged) - b * loss((x - ref) * m), m)

    return answer


MEND = Exercise(
    name="11-mend", draw=_batch, route=_surrogate,
    differentiate=("log_probs",), constants=("ref_log_probs", "rewards"),
    own=("policy_gradient_surrogate", "reward_to_go", "per_step_kl"),
    mistakes={
        "later log-ratios are still not charged": _rule(torch.zeros_like),
        "the own step is charged, and stands in the loss too": _rule(lambda k: _later(k) + k),
        "later steps are charged with their k2; it is k1 there": _rule(lambda k: _later(k * k / 2)),
        "the own step's k2 left the loss: leave it there": _rule(loss=torch.zeros_like),
        "earlier log-ratios are charged, not later ones": _rule(lambda k: k.cumsum(1) - k),
        "earlier ones are charged too: mere noise": _rule(lambda k: k.sum(1, keepdim=True) - k),
        "later log-ratios are rewarded; subtract them": _rule(lambda k: -_later(k)),
        "k1 in the loss has no KL in it: k2 stays": _rule(loss=lambda k: k),
        "k3 in the loss is the KL the other way round": _rule(loss=lambda k: torch.expm1(-k) + k),
        "k2 has a half": _rule(loss=lambda k: k * k),
        "β is missing": lambda x, ref, r, b, m: _rule()(x, ref, r, 1, m),
        "the log-ratios of the padding are charged": _rule(cut=lambda k, m: k),
        "what is charged is a constant: detach the log-ratios": _rule(fix=lambda k: k),
    }
    | {text: _rule(total=total) for text, total in MEANS.items() if "padding" not in text},
)  # fmt: skip


# A temperature, read off gradients.


def _gradients(generator: Generator, k: int) -> dict:
    """Of a token drawn, times a number that may be below 0; scored at another temperature."""
    n, v = sizes(k, 2, low=3)
    logits = torch.randperm(v, generator=generator) + normal(v, generator=generator).sigmoid() - 1
    logits = logits.round(decimals=1)
    scales = torch.tensor([uniform(0.5, 1.5, generator) for _ in range(n)]).double()
    scales[0] = 1
    drawn = torch.randint(v, (n,), generator=generator)
    paid = (normal(n, generator=generator).abs() + 2) * torch.tensor([1, -1] * n)[:n]
    score = torch.eye(v)[drawn] - (scales[:, None] * logits).softmax(-1)
    return {"logits": logits, "gradients": paid[:, None] * score}


def _read(logits: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of one is that of no other; two of the others give the scale."""
    tokens, scales = [], []
    for g in gradients.tolist():
        (a,) = (v for v in range(len(g)) if all(g[v] * x < 0 for w, x in enumerate(g) if w != v))
        b, c = [v for v in range(len(g)) if v != a][:2]
        scales.append((torch.tensor(g[b] / g[c]).log() / (logits[b] - logits[c])).item())
        tokens.append(a)
    return torch.tensor(tokens).double(), torch.tensor(scales).double()


def _reading(
    token=lambda g: g.abs().argmax(1), out=True, y=lambda g: g.abs().log(), end=lambda a, s: (a, s)
):
    def answer(z, g):
        a = token(g)
        keep = [torch.arange(len(z)) != (i if out else -1) for i in g.abs().argmax(1)]
        fits = [np.polyfit(z[k], y(row[k]), 1)[0] for row, k in zip(g, keep, strict=True)]
        return end(a.double(), torch.tensor(fits).double())

    return answer


TEMPERATURE = Exercise(
    name="11-temperature", draw=_gradients, route=_read,
    mistakes={
        "the token drawn is not the largest entry: what it was paid may be below 0":
            _reading(lambda g: g.argmax(1)),
        "the drawn token's entry is no probability: leave it out of the fit": _reading(out=False),
        "entries go with probabilities; take their logarithm": _reading(y=lambda g: g.abs()),
        "s multiplies the logits; this is 1/s": _reading(end=lambda a, s: (a, 1 / s)),
        "the sign of s is wrong": _reading(end=lambda a, s: (a, -s)),
        "tokens are numbered from 0": _reading(end=lambda a, s: (a + 1, s)),
        "the two are in the wrong order": _reading(end=lambda a, s: (s, a)),
    },
)  # fmt: skip


# Three habits.


def _logs(generator: Generator, k: int) -> dict:
    """Programs with a fault for one habit, for two, for none; curves that dip and that peak."""
    n, steps = sizes(k, 2, low=6)
    kind = torch.arange(n)[torch.randperm(n, generator=generator), None] % 7
    time = torch.linspace(0, 1, steps).double()
    size = torch.where(kind == 4, 0.04, 0.6) * (1 + normal(n, 1, generator=generator).sigmoid() / 5)
    away = torch.where(kind == 4, 1 + time, (1 - 2 * time) ** 2)  # or there, and back again
    home = (1 - time) ** 2 + 0.01
    silent = size * torch.where((kind == 1) | (kind == 3) | (kind == 4), away, home)
    start = torch.where((kind == 0) | (kind == 3), 0.02, 2e-8) * torch.tensor([[1], [-1]] * n)[:n]
    once = torch.where(time == 0, start, (3 - time) * time.sqrt() + 0.1 * size)
    end = torch.where((kind == 0) | (kind == 2) | (kind == 4), 0.97, 0.5)
    twice = once * torch.where((time < 0.7) & (kind < 6), 1, end)
    logs = {"silent": silent, "once": once, "twice": twice}
    return {name: x.double().round(decimals=10) for name, x in logs.items()}


def _caught(silent: Tensor, once: Tensor, twice: Tensor) -> Tensor:
    """Program by program, in plain numbers."""
    found = []
    for quiet, one, two in zip(silent.tolist(), once.tolist(), twice.tolist(), strict=True):
        tests = (abs(one[0]) > 1e-6, quiet[-1] > quiet[0] / 10, two[-1] > 0.8 * one[-1])
        found.append(next((n for n, caught in enumerate(tests, 1) if caught), 0))
    return torch.tensor(found).double()


def _habits(
    start=lambda one: one[:, 0].abs() > 1e-6, home=lambda q: q[:, -1] > q[:, 0] / 10,
    double=lambda one, two: two[:, -1] > 0.8 * one[:, -1], order=(1, 2, 3), none=0,
):  # fmt: skip
    def answer(silent, once, twice):
        tests = {1: start(once), 2: home(silent), 3: double(once, twice)}
        found = torch.full((len(once),), float(none), dtype=once.dtype)
        for habit in reversed(order):
            found = torch.where(tests[habit], float(habit), found)
        return found

    return answer


HABITS = Exercise(
    name="11-habits", draw=_logs, route=_caught,
    mistakes={
        "habit 1: a KL below 0 is not 0 either": _habits(start=lambda one: one[:, 0] > 1e-6),
        "habit 1: rounding is no fault": _habits(start=lambda one: one[:, 0] != 0),
        "habit 2: the end counts, not its least": _habits(home=lambda q: q.amin(1) > q[:, 0] / 10),
        "habit 2: a tenth of its first, not 0.1 nats": _habits(home=lambda q: q[:, -1] > 0.1),
        "habit 3: the other way round; twice β is the smaller one":
            _habits(double=lambda one, two: one[:, -1] > 0.8 * two[:, -1]),
        "habit 3: the ends count, not the largest numbers":
            _habits(double=lambda one, two: two.amax(1) > 0.8 * one.amax(1)),
        "habit 3: by a fifth at least": _habits(double=lambda one, two: two[:, -1] > one[:, -1]),
        "the first habit that catches it is asked, not the last": _habits(order=(3, 2, 1)),
        "where none catches it, the number is 0": _habits(none=4),
    },
)  # fmt: skip

EXERCISES = [MEND, TEMPERATURE, HABITS]
