"""Lesson 06b, CartPole: falls and cuts, several episodes in a row, the loss of actor and critic."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, uniform


def _same(x: Tensor, *_: Tensor) -> Tensor:
    return x


# What follows a step, and which steps count.


def _reports(generator: Generator) -> dict:
    """A row with a fall, one with a cut, one with both, one with a reset in front; shuffled."""
    values, last = normal(4, 6, generator=generator) + 2, normal(4, generator=generator) + 2
    terminated, truncated = torch.zeros(2, 4, 6, dtype=torch.bool)
    early, late = torch.randint(2, (2, 4), generator=generator).tolist()
    terminated[0, 1 + early[0]] = truncated[1, 1 + early[1]] = True
    terminated[2, 1 + early[2]] = truncated[2, 4 + late[2]] = True
    truncated[3, 1 + early[3]] = terminated[3, 4 + late[3]] = True
    order = torch.randperm(4, generator=generator)
    reports = {"terminated": terminated[order], "truncated": truncated[order]}
    return {"values": values, "last_values": last, **reports, "resets_first": order % 2 == 0}


def _walk(values, last_values, terminated, truncated, resets_first) -> tuple:
    """Copy by copy and step by step."""
    mask, after = torch.ones_like(terminated), torch.zeros_like(values)
    for i in range(len(values)):
        resetting = bool(resets_first[i])
        for t in range(values.shape[1]):
            mask[i, t] = not resetting
            if not resetting and not terminated[i, t]:
                after[i, t] = values[i, t + 1] if t + 1 < values.shape[1] else last_values[i]
            resetting = bool(terminated[i, t] or truncated[i, t])
    return mask, after


def _follow(
    over=torch.logical_or, worthless=_same, mask=lambda first, over: ~_after(first, over),
    shift=lambda v, last: torch.cat([v[:, 1:], last[:, None]], 1), cut=_same,
):  # fmt: skip
    """An answer with another idea of what is over, of what has no future, or of the shifts."""

    def answer(values, last, fell, clock, first):
        counts = mask(first, over(fell, clock))
        return counts, shift(values, last).masked_fill(worthless(fell, clock) | ~cut(counts), 0)

    return answer


def _after(first: Tensor, over: Tensor) -> Tensor:
    return torch.cat([first[:, None], over[:, :-1]], 1)


FOLLOW_UP = Exercise(
    name="06b-follow-up",
    draw=_reports,
    route=_walk,
    own=("Driver", "roll_out"),
    mistakes={
        "a cut is taken for an end: the value goes on": _follow(worthless=torch.logical_or),
        "after a fall the next value is 0": _follow(worthless=lambda fell, _: fell & ~fell),
        "fall and cut are swapped": _follow(worthless=lambda fell, clock: clock),
        "the step after a cut resets too and does not count": _follow(_same),
        "the step after a fall resets too and does not count": _follow(lambda fell, clock: clock),
        "the fall counts; the step after it does not": _follow(mask=lambda first, over: ~over),
        "`resets_first` is not used": _follow(mask=lambda f, over: ~_after(f & ~f, over)),
        "the last column has a next value too: `last_values`": _follow(
            shift=lambda v, last: torch.cat([v[:, 1:], 0 * v[:, :1]], 1)
        ),
        "these are the values of the same step; the next one's are wanted": _follow(shift=_same),
        "where a step does not count the next value has to be 0": _follow(cut=torch.ones_like),
    },
)


# Several episodes in one row.


def _rows(generator: Generator) -> dict:
    """One row without a reset, and two with one in different places; a fall and a cut."""
    rewards, values, after = normal(3, 3, 6, generator=generator)
    mask, order = torch.ones(3, 6, dtype=torch.bool), torch.randperm(3, generator=generator)
    resets = torch.randint(2, (2,), generator=generator).tolist()
    for k, reset in enumerate(resets):
        mask[order[k], 2 + k + reset] = False
    after[order[0], 1 + resets[0]] = 0  # the fall; that of the other row is a cut
    tables = {"rewards": rewards, "values": values, "next_values": after}
    tables = {name: x.masked_fill(~mask, 99) for name, x in tables.items()}
    factors = {"gamma": uniform(0.8, 0.95, generator), "lam": uniform(0.4, 0.7, generator)}
    return {**tables, "mask": mask, **factors}


def _summed(rewards, values, next_values, mask, gamma, lam) -> tuple:
    """By the sum over later steps, from each step until one does not count."""
    a = torch.zeros_like(values)
    for i, t in mask.nonzero().tolist():
        k = t
        while k < mask.shape[1] and mask[i, k]:
            delta = rewards[i, k] + gamma * next_values[i, k] - values[i, k]
            a[i, t] += (gamma * lam) ** (k - t) * delta
            k += 1
    return a, torch.where(mask, a + values, 0)


def _learn(
    delta=lambda r, v, after, g: r + g * after - v, inside=True, chain=True, end=(0, 1),
    factor=lambda g, lam: g * lam, target=torch.add,
):  # fmt: skip
    """Both; `inside` and `chain` say if the mask is applied there, `end` to which results."""

    def answer(r, v, after, mask, g, lam):
        d = delta(r, v, after, g)
        d, carry, columns = d.masked_fill(~mask, 0) if inside else d, 0 * v[:, 0], []
        for t in reversed(range(v.shape[1])):
            carry = d[:, t] + factor(g, lam) * carry
            carry = carry.masked_fill(~mask[:, t], 0) if chain else carry
            columns.insert(0, carry)
        a = torch.stack(columns, 1)
        both = enumerate((a, target(a, v)))
        return tuple(x.masked_fill(~mask, 0) if k in end else x for k, x in both)

    return answer


def _forward(r, v, after, mask, g, lam):
    turned = (x.flip(1) for x in (r, v, after, mask))
    return tuple(x.flip(1) for x in _learn()(*turned, g, lam))


LEARN_FROM = Exercise(
    name="06b-learn-from",
    draw=_rows,
    route=_summed,
    own=("gae",),
    mistakes={
        "A leaks through the step that resets: set A to 0 there before going on": _learn(chain=0),
        "A leaks through the step that resets; targets stand there": _learn(chain=0, end=[0]),
        "A leaks through the step that resets, and stands there": _learn(chain=False, end=()),
        "A leaks through the step that resets, δ with it: set both to 0 there": _learn(
            inside=False, chain=False
        ),
        "the mask is not used at all": _learn(inside=False, chain=False, end=()),
        "the targets are not 0 where the mask is False": _learn(end=()),
        "the next value is missing in δ": _learn(lambda r, v, after, g: r - v),
        "γ is missing before the next value": _learn(lambda r, v, after, g: r + after - v),
        "γ is missing in the recursion: the factor is γλ": _learn(factor=lambda g, lam: lam),
        "λ is missing in the recursion: the factor is γλ": _learn(factor=lambda g, lam: g),
        "the later errors are missing: this is δ": _learn(factor=lambda g, lam: 0),
        "it adds up earlier errors: go from the last column to the first": _forward,
        "the advantages are right; V is missing in the targets": _learn(target=_same),
        "the advantages are right; V is subtracted in the targets": _learn(target=torch.sub),
    },
)


# The loss.


def _played(generator: Generator) -> dict:
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, torch.randint(4, (), generator=generator)] = False
    old, new = normal(2, 3, 4, 2, generator=generator)
    new = old + new / 2
    values, advantages, targets = normal(3, 3, 4, generator=generator)
    new[~mask], old[~mask], values[~mask], targets[~mask] = new.new_tensor([-1, 1]), 0, 9, 2
    advantages[~mask] = 99
    played = {"logits": new, "values": values, "old_logits": old}
    played |= {"actions": torch.randint(2, (3, 4), generator=generator), "advantages": advantages}
    return played | {"targets": targets, "mask": mask, "beta_old": uniform(0.4, 0.8, generator)}


def _by_steps(logits, values, old_logits, actions, advantages, targets, mask, beta_old) -> Tensor:
    """Step by step, with probabilities; the spread from the mean of all squared differences."""
    at, total = mask.nonzero().tolist(), 0
    a = [advantages[i, t].item() for i, t in at]
    spread = (sum((x - y) ** 2 for x in a for y in a) / 2) ** 0.5 / len(a)
    for (i, t), x in zip(at, a, strict=True):
        p, old, k = logits[i, t].softmax(0), old_logits[i, t].detach().softmax(0), actions[i, t]
        gain = p[k] / old[k] * (x - sum(a) / len(a)) / spread
        kl = sum(old[j] * torch.log(old[j] / p[j]) for j in range(len(p)))
        total = total + (values[i, t] - targets[i, t].item()) ** 2 / 2 - gain + beta_old * kl
    return total / len(a)


def _white(a: Tensor, mask: Tensor, shift=True, scale=True, correction=0) -> Tensor:
    kept = a[mask]
    spread = kept.std(correction=correction) if scale else 1
    return (a - kept.mean() if shift else a) / spread


def _loss(
    white=_white, kl=lambda x, o: (o.exp() * (o - x)).sum(-1), sign=1, half=0.5, price=_same,
    mean=lambda x, m: x[m].mean(), fixed="oag", ratio=lambda d: d.exp(),
):  # fmt: skip
    """The loss with something else in the place of some of it; `fixed` names the constants."""

    def answer(x, v, o, k, a, g, m, b):
        o, a, g = (z.detach() if n in fixed else z for n, z in zip("oag", (o, a, g), strict=True))
        x, o = x.log_softmax(-1), o.log_softmax(-1)
        drawn = (x - o).gather(-1, k[..., None])[..., 0]
        actor = price(b) * kl(x, o) - sign * ratio(drawn) * white(a, m)
        return mean(half * (v - g) ** 2 + actor, m)

    return answer


_FAULTS = {  # of the value
    "the advantages are not whitened": dict(white=_same),
    "steps that do not count are in the mean and spread of the advantages": dict(
        white=lambda a, m: _white(a, m | True)
    ),
    "the spread divides by M - 1; divide by M": dict(white=lambda a, m: _white(a, m, correction=1)),
    "the mean is not subtracted from the advantages": dict(white=lambda a, m: _white(a, m, False)),
    "the spread is missing in whitening": dict(white=lambda a, m: _white(a, m, True, False)),
    "the surrogate is added; a loss is minimised": dict(sign=-1),
    "the KL is subtracted; a loss is minimised": dict(price=lambda b: -b),
    "the KL is missing": dict(price=lambda b: 0),
    "β is missing": dict(price=lambda b: 1),
    "the KL is turned round: old first": dict(kl=lambda x, o: (x.exp() * (x - o)).sum(-1)),
    "the ratio is upside down: new over old": dict(ratio=lambda d: (-d).exp()),
    "the exponential is missing: this is the log-ratio": dict(ratio=_same),
    "the half before the squared error is missing": dict(half=1),
    "the critic's error is missing": dict(half=0),
    "the steps are added up; their mean is wanted": dict(mean=lambda x, m: x[m].sum()),
    "steps that do not count are in the mean": dict(mean=lambda x, m: x.mean()),
}

LOSS = Exercise(
    name="06b-loss",
    draw=_played,
    route=_by_steps,
    differentiate=("logits", "values", "old_logits", "advantages", "targets"),
    own=("train_on", "whiten", "value_loss", "kl_penalty_surrogate", "kl_of_log_probs"),
    mistakes={
        "what the rollout recorded is constant: detach all three": _loss(fixed=""),
        "old_logits are constants: detach them": _loss(fixed="ag"),
        "the advantages are constants: detach them": _loss(fixed="og"),
        "the targets are constants: detach them": _loss(fixed="oa"),
    }
    | {text: _loss(**parts) for text, parts in _FAULTS.items()}
    | {f"{text}; and detach": _loss(**parts, fixed="") for text, parts in _FAULTS.items()},
)

EXERCISES = [FOLLOW_UP, LEARN_FROM, LOSS]
