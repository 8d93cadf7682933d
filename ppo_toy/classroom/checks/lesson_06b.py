"""Lesson 06b, CartPole: falls and cuts, several episodes in a row, what is wrong with a log."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, same, sizes, uniform

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
        "A leaks through the step that resets, and stands there":
            _learn(chain=torch.zeros_like, end=()),
        "the mask is not used at all": _learn(inside=False, chain=torch.zeros_like, end=()),
        "the targets are not 0 where the mask is False": _learn(end=()),
        "the next value is missing in δ": _learn(lambda r, v, after, g: r - v),
        "γ is missing before the next value": _learn(lambda r, v, after, g: r + after - v),
        "γ is missing in the recursion: the factor is γλ": _learn(factor=lambda g, lam: lam),
        "λ is missing in the recursion: the factor is γλ": _learn(factor=lambda g, lam: g),
        "the advantages are right; V is missing in the targets": _learn(target=same),
    },
)  # fmt: skip


# What is wrong with a log.


def _logs(generator: Generator, k: int) -> dict:
    """Each fault in one row at least; a row holds a fall and a cut, either of them first."""
    n, t = sizes(k, 2, low=5)
    t, rows = t + 4, torch.arange(n)
    rewards, values = normal(2, n, t, generator=generator)
    values, last_values = values + 4, normal(n, generator=generator) + 4
    early, late, first = torch.randint(1, 3, (3, n), generator=generator)
    stops = torch.zeros(2, n, t, dtype=torch.bool)
    stops[first - 1, rows, early] = stops[2 - first, rows, early + late + 2] = True
    rewards[:, 1:] = rewards[:, 1:].masked_fill(stops.any(0)[:, :-1], 0)
    told = (rewards, values, last_values, *stops)
    factors = {"gamma": uniform(0.8, 0.95, generator), "lam": uniform(0.5, 0.8, generator)}
    logs = torch.stack([_logged(*told, *factors.values(), fault) for fault in range(5)])
    logged = logs[(rows % 5)[torch.randperm(n, generator=generator)], rows]
    names = ("rewards", "values", "last_values", "terminated", "truncated")
    return {**dict(zip(names, told, strict=True)), "logged": logged, **factors}


def _logged(r, v, last, fell, cut, gamma, lam, fault) -> Tensor:
    """Advantages as a program with this fault logs them: sums over later steps, row by row."""
    a, after, resets = torch.zeros_like(v), torch.cat([v[:, 1:], last[:, None]], 1), fell & cut
    resets[:, 1:] = (fell | cut)[:, :-1]
    after = after.masked_fill({1: fell | cut, 2: fell & cut}.get(fault, fell), 0)
    for i, t in (~resets).nonzero().tolist():
        for k in range(t, v.shape[1]):
            if resets[i, k] and fault < 3:
                break
            if not resets[i, k] or fault == 4:
                a[i, t] += (gamma * lam) ** (k - t) * (r[i, k] + gamma * after[i, k] - v[i, k])
    return a


def _found(said=(0, 1, 2, 3, 4), seen=lambda over: over | True):
    """The fault whose log fits, under another number; or found by a look at some steps only."""

    def answer(r, v, last, fell, cut, logged, *factors):
        logs = torch.stack([_logged(r, v, last, fell, cut, *factors, k) for k in range(5)])
        error = (logs - logged).abs().masked_fill(~seen(fell | cut), 0).amax(-1)
        return torch.tensor(said, dtype=torch.float64)[error.round(decimals=6).argmin(0)]

    return answer


FAULT = Exercise(
    name="06b-fault",
    draw=_logs,
    route=_found(),
    own=("gae",),
    mistakes={
        "1 and 2 are exchanged: in 1 a cut is taken for an end": _found((0, 2, 1, 3, 4)),
        "3 and 4 are exchanged: in 4 the step that resets has an error of its own":
            _found((0, 1, 2, 4, 3)),
        "fault 1 is not found: look at the cuts": _found((0, 0, 2, 3, 4)),
        "fault 2 is not found: look at the falls": _found((0, 1, 0, 3, 4)),
        "3 and 4 are not found: does A before a stop depend on what follows it?":
            _found((0, 1, 2, 0, 0)),
        "the faults are counted from 0, which is none": _found((1, 2, 3, 4, 5)),
        "the number of the fault is wanted, not whether there is one": _found((0, 1, 1, 1, 1)),
        "only the first stop of a row is looked at; a row may have several":
            _found(seen=lambda over: over & (over.cumsum(1) == 1)),
    },
)  # fmt: skip

EXERCISES = [FOLLOW_UP, LEARN_FROM, FAULT]
