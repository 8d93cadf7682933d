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
        advantages[i] = ((g * lam) ** (t - t[:, None]).clamp(min=0) * later) @ delta[i]
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
    (lambda *a: (learn()(*a)[0], 2 * learn()(*a)[1]), "returned 2 of 2 [3, 6] is"),
    (lambda *a: torch.stack(learn()(*a)), "shape is not right"),
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
        total = total + price * sum(q[j] * (q[j].log() - p[j].log()) for j in range(2))
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


WRONG_LOSS = [
    (loss(hold=""), "detach all three"),
    (loss(hold="ag"), "old_logits are constants"),
    (loss(hold="og"), "the advantages are constants"),
    (loss(hold="oa"), "the targets are constants"),
    (loss(hold="a"), "the gradient is not right"),
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
]


RIGHT = {
    "06b-follow-up": [follow_up_in_a_loop, follow_up_in_numpy, follow_up()],
    "06b-learn-from": [learn_by_a_matrix, learn_in_numpy, learn()],
    "06b-loss": [loss_by_torch, loss_in_loops, loss()],
}

WRONG = {
    "06b-follow-up": WRONG_FOLLOW_UP,
    "06b-learn-from": WRONG_LEARN,
    "06b-loss": WRONG_LOSS,
}
