"""Lesson 06b, CartPole: falls and cuts, several episodes in a row, the loss of actor and critic."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import drawn, log_ratio, normal, same, sizes, uniform

# What follows a step, and which steps count.


def _reports(generator: Generator, k: int) -> dict:
    """Rows with a fall, a cut, both in turn, two cuts, a reset in front; in any order."""
    n, t = sizes(k, 2, low=5)
    values, last = normal(n, t, generator=generator), normal(n, generator=generator)
    terminated, truncated = torch.zeros(2, n, t, dtype=torch.bool)
    early, late = torch.randint(2, (2, n), generator=generator)
    rows = torch.arange(n)
    early[::2] = 1  # a step that resets ends nothing
    falls = (rows + k) % 2 == 0
    terminated[rows, early], truncated[rows, early] = falls, ~falls
    terminated[rows[1:], t - 1 - late[1:]] = rows[1:] % 2 == 0
    truncated[rows[1:], t - 1 - late[1:]] = rows[1:] % 2 == 1
    order = torch.randperm(n, generator=generator)
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
    over=torch.logical_or, worthless=same, mask=lambda first, over: ~_after(first, over),
    shift=lambda v, last: torch.cat([v[:, 1:], last[:, None]], 1), cut=same,
):  # fmt: skip
    """An answer with another idea of what is over, of what has no future, or of the shifts."""
    return lambda v, last, fell, clock, first: (
        (counts := mask(first, over(fell, clock))),
        shift(v, last).masked_fill(worthless(fell, clock) | ~cut(counts), 0),
    )


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
        "the step after a cut resets too and does not count": _follow(same),
        "the step after a fall resets too and does not count": _follow(lambda fell, clock: clock),
        "the fall counts; the step after it does not": _follow(mask=lambda first, over: ~over),
        "`resets_first` is not used": _follow(mask=lambda f, over: ~_after(f & ~f, over)),
        "the last column has a next value too: `last_values`":
            _follow(shift=lambda v, last: torch.cat([v[:, 1:], 0 * v[:, :1]], 1)),
        "these are the values of the same step; the next one's are wanted": _follow(shift=same),
        "where a step does not count the next value has to be 0": _follow(cut=torch.ones_like),
    },
)  # fmt: skip


def _rows(generator: Generator, k: int) -> dict:
    """No reset in the first row, two in the second, one in others; behind a fall or a cut."""
    n, t = sizes(k, 2)
    t = t + 3
    rewards, values, after = normal(3, n, t, generator=generator)
    mask = torch.ones(n, t, dtype=torch.bool)
    resets = torch.randint(1, t - 3, (n,), generator=generator)
    mask[range(1, n), resets[1:]] = mask[1, resets[1] + 2] = False
    after[range(n), resets - 1] *= (resets + k) % 2  # 0 after a fall
    mask[0, 1 - k] = k in (0, 3)  # in case 1 the first step resets, in case 2 the last one
    order = torch.randperm(n, generator=generator)
    tables = {"rewards": rewards, "values": values, "next_values": after}
    tables = {name: x.masked_fill(~mask, 99)[order] for name, x in tables.items()}
    factors = {"gamma": uniform(0.8, 0.95, generator), "lam": uniform(0.4, 0.7, generator)}
    return {**tables, "mask": mask[order], **factors}


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
    delta=lambda r, v, after, g: r + g * after - v, inside=True, end=(0, 1),
    chain=torch.logical_not, factor=lambda g, lam: g * lam, target=torch.add,
):  # fmt: skip
    """Both; `inside` says if δ is masked, `chain` where A is set to 0, `end` which results."""

    def answer(r, v, after, mask, g, lam):
        d = delta(r, v, after, g)
        d, carry, columns = d.masked_fill(~mask, 0) if inside else d, 0 * v[:, 0], []
        for t in reversed(range(v.shape[1])):
            carry = d[:, t] + factor(g, lam) * carry
            carry = carry.masked_fill(chain(mask)[:, t], 0)
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
        "only the first episode of a row is cut off; a row may have several":
            _learn(chain=lambda mask: ~mask & ((~mask).cumsum(1) == 1)),
        "A leaks through the step that resets: set A to 0 there before going on":
            _learn(chain=torch.zeros_like),
        "A leaks through the step that resets; targets stand there":
            _learn(chain=torch.zeros_like, end=[0]),
        "A leaks through the step that resets, and stands there":
            _learn(chain=torch.zeros_like, end=()),
        "A leaks through the step that resets, δ with it: set both to 0 there":
            _learn(inside=False, chain=torch.zeros_like),
        "the mask is not used at all": _learn(inside=False, chain=torch.zeros_like, end=()),
        "the targets are not 0 where the mask is False": _learn(end=()),
        "the next value is missing in δ": _learn(lambda r, v, after, g: r - v),
        "γ is missing before the next value": _learn(lambda r, v, after, g: r + after - v),
        "γ is missing in the recursion: the factor is γλ": _learn(factor=lambda g, lam: lam),
        "λ is missing in the recursion: the factor is γλ": _learn(factor=lambda g, lam: g),
        "the later errors are missing: this is δ": _learn(factor=lambda g, lam: 0),
        "it adds up earlier errors: go from the last column to the first": _forward,
        "the advantages are right; V is missing in the targets": _learn(target=same),
        "the advantages are right; V is subtracted in the targets": _learn(target=torch.sub),
    },
)  # fmt: skip


# The loss.


def _played(generator: Generator, k: int) -> dict:
    n, t, v = sizes(k, 3)
    mask = (torch.randperm(n * t, generator=generator) > k % 3).view(n, t)
    new, old = normal(2, n, t, v, generator=generator)
    values, advantages, targets = normal(3, n, t, generator=generator)
    targets = values + 0.1 * targets if k == 1 else targets
    actions = torch.randint(v, (n, t), generator=generator)
    if k == 1:  # the loss is below 0
        advantages = drawn(log_ratio(new, old), actions).round(decimals=1)
    new[~mask], old[~mask], values[~mask], targets[~mask] = torch.arange(v).double(), 0, 9, 2
    played = {"logits": new, "values": values, "old_logits": old, "actions": actions}
    played |= {"advantages": advantages.masked_fill(~mask, 99), "targets": targets, "mask": mask}
    return played | {"beta_old": uniform(0.4, 0.8, generator) / (1 + 3 * (k == 1))}


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
    white=_white, kl=lambda x, o, k: (o.exp() * (o - x)).sum(-1), sign=1, half=0.5, price=same,
    mean=lambda x, m: x[m].mean(), ratio=lambda d: d.exp(),
):  # fmt: skip
    """The loss with something else in the place of some of it."""

    def answer(x, v, o, k, a, g, m, b):
        x, o = x.log_softmax(-1), o.log_softmax(-1)
        actor = price(b) * kl(x, o, k) - sign * ratio(drawn(x - o, k)) * white(a, m)
        return mean(half * (v - g) ** 2 + actor, m)

    return answer


LOSS = Exercise(
    name="06b-loss",
    draw=_played,
    route=_by_steps,
    differentiate=("logits", "values"),
    constants=("old_logits", "advantages", "targets"),
    own=("train_on", "whiten", "value_loss", "kl_penalty_surrogate", "kl_of_log_probs"),
    mistakes={
        "the advantages are not whitened": _loss(white=same),
        "steps that do not count are in the mean and spread of the advantages":
            _loss(white=lambda a, m: _white(a, m | True)),
        "the spread divides by M - 1; divide by M":
            _loss(white=lambda a, m: _white(a, m, correction=1)),
        "the mean is not subtracted from the advantages":
            _loss(white=lambda a, m: _white(a, m, False)),
        "the spread is missing in whitening": _loss(white=lambda a, m: _white(a, m, True, False)),
        "the surrogate is added; a loss is minimised": _loss(sign=-1),
        "the KL is subtracted; a loss is minimised": _loss(price=lambda b: -b),
        "the KL is missing": _loss(price=lambda b: 0),
        "β is missing": _loss(price=lambda b: 1),
        "the KL is turned round: old first": _loss(kl=lambda x, o, k: (x.exp() * (x - o)).sum(-1)),
        "the ratio is upside down: new over old": _loss(ratio=lambda d: (-d).exp()),
        "the exponential is missing: this is the log-ratio": _loss(ratio=same),
        "the half before the squared error is missing": _loss(half=1),
        "the critic's error is missing": _loss(half=0),
        "the steps are added up; their mean is wanted": _loss(mean=lambda x, m: x[m].sum()),
        "steps that do not count are in the mean": _loss(mean=lambda x, m: x.mean()),
        "the KL looks at the action taken only; add up all K":
            _loss(kl=lambda x, o, k: drawn(o - x, k)),
        "the KL looks at the first two actions only; add up all K":
            _loss(kl=lambda x, o, k: (o.exp() * (o - x))[..., :2].sum(-1)),
        "the mean of each copy's mean; every step that counts weighs the same":
            _loss(mean=lambda x, m: (x.masked_fill(~m, 0).sum(1) / m.sum(1)).mean()),
    },
)  # fmt: skip

EXERCISES = [FOLLOW_UP, LEARN_FROM, LOSS]
