"""Answers to the exercises of lesson 06b as learners write them."""

import numpy as np
import torch

# Exercise 06b-follow-up: right answers in other styles, then wrong ones with what they are told.


def follow_up_in_a_loop(v, v_last, fell, cut, first_resets):
    counts = torch.zeros(fell.shape, dtype=torch.bool)
    after = torch.zeros(v.shape)
    resetting = first_resets
    for t in range(v.shape[1]):
        counts[:, t] = ~resetting
        after[:, t] = v[:, t + 1] if t < v.shape[1] - 1 else v_last
        after[:, t] *= ~fell[:, t] & ~resetting
        resetting = fell[:, t] | cut[:, t]
    return counts, after


def follow_up_in_numpy(values, last_values, terminated, truncated, resets_first):
    over = np.logical_or(terminated.numpy(), truncated.numpy())
    mask = ~np.roll(over, 1, axis=1)
    mask[:, 0] = ~resets_first.numpy()
    after = np.column_stack([values.numpy()[:, 1:], last_values.numpy()])
    after[terminated.numpy()] = 0
    return mask.astype(int), after * mask


def follow_up_as_lists(values, last_values, terminated, truncated, resets_first):
    counts, after = [], []
    for i, v in enumerate(values.tolist()):
        over = (terminated | truncated)[i].tolist()
        counts.append([not x for x in [bool(resets_first[i]), *over[:-1]]])
        v = [*v[1:], last_values[i].item()]
        keep = zip(v, counts[-1], terminated[i].tolist(), strict=True)
        after.append([x if c and not f else 0.0 for x, c, f in keep])
    return counts, after


def follow_up_stacked(*reports):
    return torch.stack([x.float() for x in follow_up_in_a_loop(*reports)])


def follow_up(ends="both", zero="fell", first=True, shift=1, last=True, cut=True):
    def answer(v, v_last, fell, clock, resets_first):
        reports = {"both": fell | clock, "fell": fell, "clock": clock, "none": fell & clock}
        resets = torch.roll(reports[ends], shift, dims=1)
        resets[:, 0] = resets_first if first else False
        after = torch.roll(v, -1, dims=1)
        after[:, -1] = v_last if last else 0
        after[reports[zero]] = 0
        if cut:
            after[resets] = 0
        return ~resets, after

    return answer


WRONG_FOLLOW_UP = [
    (follow_up(zero="both"), "a cut is taken for an end"),
    (follow_up(zero="none"), "after a fall the next value is 0"),
    (follow_up(zero="clock"), "fall and cut are swapped"),
    (follow_up("fell"), "the step after a cut resets"),
    (follow_up("clock"), "the step after a fall resets"),
    (follow_up(first=False), "`resets_first` is not used"),
    (follow_up(last=False), "the last column has a next value too"),
    (follow_up(cut=False), "where a step does not count"),
    (follow_up("none"), "the value is not right"),
    (lambda *a: (~follow_up()(*a)[0], follow_up()(*a)[1]), "the value is not right"),
    (lambda v, *a: follow_up()(v, v[:, -1], *a[1:]), "the value is not right"),
    (lambda *a: follow_up()(*a)[1], "shape is not right"),
    (lambda *a: [x.abs() for x in (follow_up()(*a)[0].int(), follow_up()(*a)[1])], "take no abs"),
    (lambda *a: [follow_up()(*a)[0], follow_up()(*a)[1].clamp(min=0)], "do not cut it off"),
    (lambda *a: [x[:4] for x in follow_up()(*a)], "shape is not right"),
    (lambda v, w, f, c, first: follow_up()(v, w, f.logical_or_(c), c, first), "terminated in"),
    (
        lambda v, w, f, c, first: (
            follow_up()(v, w, f, c, first)[0],
            torch.cat([v[:, 1:], w[:, None]], 1) * ~f,
        ),
        "where a step does not count",
    ),
]


# Exercise 06b-learn-from.


def learn_by_a_matrix(r, v, v_next, counts, g, lam):
    n = r.shape[1]
    delta = torch.where(counts, r + g * v_next - v, 0.0)
    advantages = torch.zeros(r.shape)
    for i in range(len(r)):
        episode = (~counts[i]).cumsum(0)
        t = torch.arange(n)
        later = (t >= t[:, None]) & (episode == episode[:, None])
        advantages[i] = ((g * lam) ** (t - t[:, None]).clamp(min=0) * later).double() @ delta[i]
    advantages = advantages * counts
    return [advantages, (advantages + v) * counts]


def learn_in_numpy(rewards, values, next_values, mask, gamma, lam):
    r, v, w, m = (np.asarray(x.tolist()) for x in (rewards, values, next_values, mask))
    a = np.zeros_like(r)
    for i in range(r.shape[0]):
        carry = 0.0
        for t in range(r.shape[1] - 1, -1, -1):
            carry = r[i, t] + gamma * w[i, t] - v[i, t] + gamma * lam * carry if m[i, t] else 0.0
            a[i, t] = carry
    return a.astype(np.float32), np.where(m, a + v, 0)


def learn(stop=True, mask_delta=True, cut=True, discount=True, factor=lambda g, lam: g * lam, to=1):
    def answer(r, v, w, m, g, lam):
        delta = r + (g if discount else 1) * w - v
        if mask_delta:
            delta = delta * m
        a, carry = torch.zeros_like(r), torch.zeros(len(r))
        for t in range(r.shape[1] - 1, -1, -1):
            carry = delta[:, t] + factor(g, lam) * carry
            if stop:
                carry = carry * m[:, t]
            a[:, t] = carry
        targets = a + to * v
        return (a * m, targets * m) if cut else (a, targets)

    return answer


def learn_up_to_the_first_cut(r, v, w, m, g, lam):
    delta, a = (r + g * w - v) * m, torch.zeros_like(r)
    for i in range(len(r)):
        cut = int(m[i].int().argmin()) if not m[i].all() else r.shape[1]
        for part in (range(cut), range(cut + 1, r.shape[1])):
            carry = 0
            for t in reversed(part):
                carry = delta[i, t] + g * lam * carry
                a[i, t] = carry
    return a * m, (a + v) * m


def learn_stacked(rewards, values, next_values, mask, gamma, lam):
    delta = (rewards + gamma * next_values - values) * mask
    a = [torch.zeros(len(mask))]
    for d, m in zip(delta.T.flip(0), mask.T.flip(0), strict=True):
        a.append(torch.where(m, d + gamma * lam * a[-1], 0.0))
    a = torch.stack(a[1:][::-1]).T
    return torch.stack([a, torch.where(mask, a + values, 0)])


WRONG_LEARN = [
    (learn(stop=False), "leaks through the step that resets: set A to 0 there before going on"),
    (learn(stop=False, cut=False), "leaks through the step that resets, and stands there"),
    (learn(stop=False, mask_delta=False, cut=False), "mask is not used at all"),
    (learn(cut=False), "targets are not 0"),
    (learn(discount=False), "γ is missing before the next value"),
    (learn(factor=lambda g, lam: lam), "γ is missing in the recursion"),
    (learn(factor=lambda g, lam: g), "λ is missing"),
    (learn(to=0), "V is missing in the targets"),
    (learn(factor=lambda g, lam: 1), "the value is not right"),
    (lambda r, v, w, m, g, lam: learn()(r, v, v.roll(-1, 1), m, g, lam), "the value is not right"),
    (lambda r, v, w, m, g, lam: learn()(r, v, 0 * w, m, g, lam), "next value is missing in δ"),
    (lambda *a: (learn()(*a)[0], 2 * learn()(*a)[1]), "returned 2 of 2 at [0, 0]: expected"),
    (lambda *a: torch.stack(learn()(*a)).mT, "shape is not right"),
    (lambda *a: torch.stack(learn()(*a)).abs(), "take no abs"),
    (lambda *a: torch.stack(learn()(*a)).relu(), "do not cut it off"),
    (learn_up_to_the_first_cut, "only the first episode of a row is cut off"),
    (lambda r, v, w, m, g, lam: learn()(r.mul_(m), v, w, m, g, lam), "rewards in place"),
    (lambda r, v, *a: learn()(r[:, :6], v[:, :6], *(x[:, :6] for x in a[:2]), *a[2:]), "shape is"),
]


# Exercise 06b-fault.


def logged_by(fault, r, v, v_last, fell, cut, g, lam):
    """The advantages of a program with this fault, backwards through the columns."""
    over, n = fell | cut, r.shape[1]
    resets = torch.roll(over, 1, dims=1)
    resets[:, 0] = False
    ahead = torch.roll(v, -1, dims=1)
    ahead[:, -1] = v_last
    no_future = {1: over, 2: torch.zeros_like(over)}.get(fault, fell)
    delta = r + g * ahead * ~no_future - v
    if fault != 4:
        delta = delta * ~resets
    a, carry = torch.zeros_like(r), torch.zeros(len(r))
    for t in range(n - 1, -1, -1):
        carry = delta[:, t] + g * lam * carry
        if fault < 3:
            carry = carry * ~resets[:, t]
        a[:, t] = carry
    return a * ~resets


def fault_by_all_five(r, v, v_last, fell, cut, logged, g, lam):
    logs = [logged_by(k, r, v, v_last, fell, cut, g, lam) for k in range(5)]
    return torch.stack([(a - logged).abs().sum(1) for a in logs]).argmin(0)


def fault_by_the_stops(r, v, v_last, fell, cut, logged, g, lam):
    """What the log has at a stop, less what it should have, tells the fault by itself."""
    found = [0] * len(r)
    for i in range(len(r)):
        for t in (fell | cut)[i].nonzero()[:, 0].tolist():
            worth = r[i, t] - v[i, t]
            future = g * v[i, t + 1]
            later = (g * lam) ** 2 * logged[i, t + 2]
            reset = g * lam * (g * v[i, t + 2] - v[i, t + 1])
            right = worth if fell[i, t] else worth + future
            off = logged[i, t] - right
            names = {1: -future if cut[i, t] else 0.0, 2: future if fell[i, t] else 0.0}
            names |= {3: later, 4: later + reset}
            for k, shift in names.items():
                if abs(off) > 1e-4 and abs(off - shift) < 1e-4:
                    found[i] = k
    return found


def fault_told(names, look=lambda over: over | True):
    def answer(*given):
        logged, over = given[5], given[3] | given[4]
        logs = [logged_by(k, *given[:5], *given[6:]) for k in range(5)]
        errors = [((a - logged) * look(over)).abs().amax(1).round(decimals=5) for a in logs]
        return torch.tensor(names)[torch.stack(errors).argmin(0)]

    return answer


WRONG_FAULT = [
    (fault_told([0, 2, 1, 3, 4]), "1 and 2 are exchanged"),
    (fault_told([0, 1, 2, 4, 3]), "3 and 4 are exchanged"),
    (fault_told([0, 0, 2, 3, 4]), "fault 1 is not found"),
    (fault_told([0, 1, 0, 3, 4]), "fault 2 is not found"),
    (fault_told([0, 1, 2, 0, 0]), "3 and 4 are not found"),
    (fault_told([1, 2, 3, 4, 5]), "counted from 0"),
    (fault_told([0, 1, 1, 1, 1]), "not whether there is one"),
    (fault_told([0, 1, 2, 3, 3]), "the value is not right"),
    (fault_told([0] * 5), "the value is not right"),
    (fault_told(range(5), lambda over: over & (over.cumsum(1) == 1)), "only the first stop"),
    (lambda *a: fault_by_all_five(*a)[:, None], "the shape is not right"),
    (lambda *a: fault_by_all_five(*a).max(), "the shape is not right"),
    (lambda r, *a: fault_by_all_five(r.mul_(2), *a), "rewards in place"),
]


RIGHT = {
    "06b-follow-up": [
        follow_up_in_a_loop,
        follow_up_in_numpy,
        follow_up_as_lists,
        follow_up_stacked,
    ],
    "06b-learn-from": [learn_by_a_matrix, learn_in_numpy, learn(), learn_stacked],
    "06b-fault": [fault_by_all_five, fault_by_the_stops, fault_told(range(5))],
}

WRONG = {
    "06b-follow-up": WRONG_FOLLOW_UP,
    "06b-learn-from": WRONG_LEARN,
    "06b-fault": WRONG_FAULT,
}
