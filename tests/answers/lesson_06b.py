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
    (lambda v, *a: (follow_up()(v, *a)[0], v * (follow_up()(v, *a)[1] != 0)), "of the same step"),
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
    (
        lambda *a: (learn(stop=False)(*a)[0], learn(stop=False, cut=False)(*a)[1]),
        "leaks through the step that resets; targets stand there",
    ),
    (learn(stop=False, mask_delta=False), "δ with it: set both to 0 there"),
    (learn(stop=False, mask_delta=False, cut=False), "mask is not used at all"),
    (learn(cut=False), "targets are not 0"),
    (learn(discount=False), "γ is missing before the next value"),
    (learn(factor=lambda g, lam: lam), "γ is missing in the recursion"),
    (learn(factor=lambda g, lam: g), "λ is missing"),
    (learn(factor=lambda g, lam: 0), "later errors are missing"),
    (learn(to=0), "V is missing in the targets"),
    (learn(to=-1), "V is subtracted"),
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


# Exercise 06b-loss.


def loss_by_torch(logits, values, old_logits, actions, advantages, targets, mask, beta_old):
    new = torch.distributions.Categorical(logits=logits[mask].float())
    old = torch.distributions.Categorical(logits=old_logits[mask].float().detach())
    a = advantages[mask].float().detach()
    a = (a - a.mean()) / a.std(correction=0)
    ratio = (new.log_prob(actions[mask]) - old.log_prob(actions[mask])).exp()
    penalty = beta_old * torch.distributions.kl_divergence(old, new)
    critic = torch.nn.functional.mse_loss(values[mask].float(), targets[mask].float().detach())
    return critic / 2 - (ratio * a - penalty).mean()


def loss_in_loops(theta, v, theta_old, k, a, g, counts, price):
    at = counts.nonzero().tolist()
    worth = np.array([a[i, t].item() for i, t in at])
    worth = (worth - worth.mean()) / (worth.std() + 1e-8)
    total = 0
    for (i, t), w in zip(at, worth, strict=True):
        p, q = theta[i, t].softmax(0), theta_old[i, t].detach().softmax(0)
        total = total + 0.5 * (v[i, t] - g[i, t].item()) ** 2 - p[k[i, t]] / q[k[i, t]] * w
        total = total + price * sum(q[j] * (q[j].log() - p[j].log()) for j in range(len(q)))
    return total / len(at)


def loss(
    white=lambda a, m: (a - a[m].mean()) / a[m].std(correction=0), hold="oag", turn=False,
    end=lambda x, m: (x * m).sum() / m.sum(), half=2.0, up=-1, down=1,
):  # fmt: skip
    def answer(x, v, o, k, a, g, m, b):
        o = o.detach() if "o" in hold else o
        a = a.detach() if "a" in hold else a
        g = g.detach() if "g" in hold else g
        p, q = torch.log_softmax(x, -1), torch.log_softmax(o, -1)
        r = torch.exp(p - q).gather(2, k.unsqueeze(2)).squeeze(2)
        kl = (p.exp() * (p - q)).sum(2) if turn else (q.exp() * (q - p)).sum(2)
        return end((v - g).pow(2) / half + up * r * white(a, m) + down * b * kl, m)

    return answer


def loss_of_two_actions(x, v, o, k, a, g, m, b):
    o, a, g = o.detach()[m], a.detach()[m], g.detach()[m]
    p, q = x[m].softmax(-1), o.softmax(-1)
    ratio = (p / q).gather(1, k[m][:, None])[:, 0]
    kl = q[:, 0] * (q[:, 0] / p[:, 0]).log() + q[:, 1] * (q[:, 1] / p[:, 1]).log()
    white = (a - a.mean()) / a.std(correction=0)
    return ((v[m] - g) ** 2 / 2 - ratio * white + b * kl).mean()


def loss_of_the_action_taken(x, v, o, k, a, g, m, b):
    p, q = x.log_softmax(-1), o.detach().log_softmax(-1)
    k1 = (q - p).gather(2, k[..., None])[..., 0]
    return loss()(x, v, o, k, a, g, m, 0) + b * k1[m].mean()


def loss_of_the_kept(logits, values, old_logits, actions, advantages, targets, mask, beta_old):
    with torch.no_grad():
        o, a, g = old_logits[mask].log_softmax(-1), advantages[mask], targets[mask]
        a = (a - a.mean()) / ((a - a.mean()) ** 2).mean() ** 0.5
    p, taken = logits[mask].log_softmax(-1), actions[mask]
    ratio = torch.exp((p - o)[torch.arange(len(taken)), taken])
    kl = torch.einsum("mk,mk->m", o.exp(), o - p)
    return 0.5 * (values[mask] - g).square().mean() - (ratio * a - beta_old * kl).mean()


WRONG_LOSS = [
    (loss(hold=""), "reaches old_logits and advantages and targets: detach"),
    (loss(hold="ag"), "reaches old_logits: detach"),
    (loss(hold="og"), "reaches advantages: detach"),
    (loss(hold="oa"), "reaches targets: detach"),
    (loss(hold="a"), "reaches old_logits and targets: detach"),
    (loss(lambda a, m: a), "not whitened"),
    (loss(lambda a, m: (a - a.mean()) / a.std(correction=0)), "in the mean and spread"),
    (loss(lambda a, m: (a - a[m].mean()) / a[m].std()), "the spread divides by M - 1"),
    (loss(lambda a, m: a / a[m].std(correction=0)), "the mean is not subtracted"),
    (loss(lambda a, m: a - a[m].mean()), "the spread is missing"),
    (loss(lambda a, m: (a - a[m].mean()) / a[m].var(correction=0)), "the value is not right"),
    (loss(lambda a, m: (a - a[m].mean()) / a[m].std(), ""), "divide by M; and detach"),
    (loss(hold="", up=1), "a loss is minimised; and detach"),
    (loss(turn=True), "KL is turned round"),
    (loss(half=1), "the half"),
    (loss(up=1), "the surrogate is added"),
    (loss(down=-1), "the KL is subtracted"),
    (loss(up=1, down=-1), "the value is not right"),
    (loss(down=0), "the KL is missing"),
    (loss(end=lambda x, m: (x * m).sum()), "the steps are added up"),
    (loss(end=lambda x, m: x.mean()), "steps that do not count are in the mean"),
    (loss(end=lambda x, m: (x * m).mean()), "the value is not right"),
    (lambda *a: loss()(*a[:-1], 1.0), "β is missing"),
    (lambda x, *a: loss()(x.detach(), *a), "no gradient reaches logits"),
    (lambda x, v, *a: loss()(x, v.detach(), *a), "no gradient reaches values"),
    (loss(end=lambda x, m: (x * m).sum() / 5), "the value is not right"),
    (loss(end=lambda x, m: ((x * m).sum(1) / m.sum(1)).mean()), "each copy's mean"),
    (loss_of_two_actions, "first two actions only"),
    (loss_of_the_action_taken, "action taken only"),
    (lambda *a: loss()(*a).abs(), "take no abs"),
    (lambda x, v, o, k, a, *z: loss()(x, v, o, k, a.sub_(1), *z), "advantages in place"),
]


RIGHT = {
    "06b-follow-up": [
        follow_up_in_a_loop,
        follow_up_in_numpy,
        follow_up_as_lists,
        follow_up_stacked,
    ],
    "06b-learn-from": [learn_by_a_matrix, learn_in_numpy, learn(), learn_stacked],
    "06b-loss": [loss_by_torch, loss_in_loops, loss(), loss_of_the_kept],
}

WRONG = {
    "06b-follow-up": WRONG_FOLLOW_UP,
    "06b-learn-from": WRONG_LEARN,
    "06b-loss": WRONG_LOSS,
}
