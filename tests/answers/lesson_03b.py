"""Answers to the exercises of lesson 03b as learners write them."""

import numpy as np
import torch

# Exercise 03b-clamped: right answers in other styles, then wrong ones with what they're told.


def clamped_on_paper(logits, ref_logits, limit):
    p = logits.softmax(-1)
    ratio = logits.log_softmax(-1) - ref_logits.log_softmax(-1)
    x = ratio.clamp(-limit, limit)
    out = []
    for charge in ((1 - (-x).exp()) * (ratio.abs() < limit), (-x).exp() - 1 + x):
        out.append(p * (charge - (p * charge).sum(-1, keepdim=True)))
    return out


def clamped_in_numpy(logits, ref_logits, limit):
    p, q = (x.softmax(-1).numpy() for x in (logits, ref_logits))
    with np.errstate(divide="ignore"):
        ratio = np.log(p) - np.log(q)
    r = np.exp(-np.clip(ratio, -limit, limit))
    losses = np.where(np.abs(ratio) < limit, 1 - r, 0)
    rows = []
    for charge in (losses, r - 1 - np.log(r)):
        scores = np.eye(p.shape[1])[None] - p[:, None]  # [N, drawn, entry]
        rows.append(np.einsum("na,na,nav->nv", p, charge, scores))
    return np.stack(rows)


def clamped_state_by_state(logits, ref_logits, limit):
    inside, outside = [], []
    for a, b in zip(logits.float(), ref_logits.float(), strict=True):
        theta = a.clone().requires_grad_()
        log_p = theta.log_softmax(0)
        x = (log_p - b.log_softmax(0)).clamp(-limit, limit)
        k3 = torch.expm1(-x) + x
        with torch.no_grad():
            p = log_p.exp()
        inside.append(torch.autograd.grad(p @ k3, theta, retain_graph=True)[0])
        outside.append(p * (k3.detach() - p @ k3.detach()))
    return torch.stack(inside), torch.stack(outside)


def clamped(loss=None, reward=None, limit=None, detach=True):
    """An answer with other derivatives of the two."""

    def answer(a, b, c):
        theta = a.clone().requires_grad_()
        log_p = theta.log_softmax(-1)
        ratio = log_p - b.log_softmax(-1)
        x = ratio if limit == "none" else ratio.clamp(-c, c)
        k, p = torch.exp(-x) - 1 + x, log_p.detach().exp() if detach else log_p.exp()
        terms = (loss or (lambda p, k, x: p * k))(p, k, x), p.detach() * k.detach()
        if reward:
            terms = terms[0], reward(p.detach(), k.detach(), ratio, c)
        (first,) = torch.autograd.grad(terms[0].sum(), theta, retain_graph=True)
        second = terms[1] - p.detach() * terms[1].sum(-1, keepdim=True)
        return first, second

    return answer


WRONG_CLAMPED = [
    (clamped(limit="none"), "the log-ratio is not clamped"),
    (clamped(detach=False), "are constants: detach them"),
    (lambda *z: clamped_on_paper(*z)[::-1], "loss and reward are swapped"),
    (lambda *z: [-x for x in clamped_on_paper(*z)], "point uphill"),
    (
        clamped(reward=lambda p, k, x, c: torch.where(x.abs() < c, p * k, 0)),
        "in the reward a token beyond the clamp is still charged",
    ),
    (lambda a, b, c: clamped_on_paper(b, a, c), "is not right"),
    (lambda *z: clamped_on_paper(*z)[0], "the shape is not right"),
    (lambda a, b, c: [x.mean(0) for x in clamped_on_paper(a, b, c)], "the shape is not right"),
    (lambda *z: [x.abs() for x in clamped_on_paper(*z)], "take no abs"),
    (lambda a, b, c: clamped_on_paper(a, b, 2 * c), "the value is not right"),
]


# Exercise 03b-which.


def candidates(logits, after, ref, ref_after):
    p, q = logits.softmax(0), ref.softmax(0)
    x, pi = torch.log(p / q), after.softmax(1)
    y = torch.log(pi / ref_after.softmax(1))
    k1 = x + (pi * y).sum(1)
    k2 = (x**2 + (pi * y**2).sum(1)) / 2
    k3 = q / p - 1 + k1
    charges = [k1, k2, k3, x, 1 - q / p]
    return torch.stack([-p * (c - p @ c) for c in charges])


def which_by_cosines(logits, after, ref, ref_after, gradients):
    pulls, which, betas = candidates(logits, after, ref, ref_after), [], []
    for g in gradients:
        if g.abs().max() < 1e-9:
            which.append(5)
            betas.append(0.0)
            continue
        cosines = torch.cosine_similarity(g[None], pulls, dim=1)
        k = int(cosines.abs().argmax())
        which.append(k)
        betas.append((g.norm() / pulls[k].norm() * cosines[k].sign()).item())
    return which, betas


def which_by_least_squares(*given):
    *policies, gradients = (x.double().numpy() for x in given)
    pulls = candidates(*map(torch.tensor, policies)).numpy()
    which, betas = np.full(len(gradients), 5), np.zeros(len(gradients))
    for i, g in enumerate(gradients):
        if np.any(g):
            fits = [np.linalg.lstsq(c[:, None], g, rcond=None) for c in pulls]
            which[i] = int(np.argmin([fit[1][0] for fit in fits]))
            betas[i] = fits[which[i]][0][0]
    return which, betas


def which_with(change=lambda which, betas: (which, betas), pulls=candidates, guard=True):
    def answer(*given):
        table, gradients = pulls(*given[:4]), given[4]
        betas = gradients @ table.T / (table**2).sum(1)
        left = (gradients[:, None] - betas[..., None] * table).norm(dim=-1)
        which = left.argmin(1)
        beta = betas[torch.arange(len(which)), which]
        if guard:
            which = torch.where(gradients.norm(dim=1) < 1e-9, 5, which)
        return change(which, beta)

    return answer


def without_later(logits, after, ref, ref_after):
    return candidates(logits, torch.zeros_like(after), ref, torch.zeros_like(ref_after))


WRONG_WHICH = [
    (which_with(lambda w, b: (w, -b)), "β's sign is wrong"),
    (which_with(lambda w, b: (w, b.abs())), "take no abs"),
    (which_with(lambda w, b: (w + 1, b)), "counted from 0"),
    (which_with(pulls=without_later), "the second token's estimate is missing"),
    (which_with(pulls=lambda a, b, c, d: candidates(a, b.T, c, d.T)), "rows and columns"),
    (
        which_with(pulls=lambda a, b, c, d: candidates(c, d, a, b)),
        "policy and reference are swapped",
    ),
    (which_with(guard=False), "is not right"),
    (which_with(lambda w, b: (w.clamp(max=4), b)), "the value is not right"),
    (which_with(lambda w, b: w), "the shape is not right"),
    (which_with(lambda w, b: (w, b.clamp(min=0))), "do not cut it off"),
]


# Exercise 03b-dropped.


def dropped_by_recursion(p, q, r, beta):
    after = (q.log() + r / beta).softmax(1)
    earned = (after * r).sum(1)
    first = (p.log() + earned / beta).softmax(0)
    kl = torch.special.entr(after).neg() - torch.special.xlogy(after, q)
    kl_first = (first * torch.log(first.clamp(min=1e-300) / p)).sum()
    j = first @ earned - beta * (kl_first + first @ kl.sum(1))
    best = beta * (p.log() + (q.log() + r / beta).logsumexp(1)).logsumexp(0)
    return first, best - j


def dropped_in_numpy(p, q, r, beta):
    p, q, r = (x.numpy() for x in (p, q, r))

    def tilt(ref, worth):
        mass = ref * np.exp((worth - worth.max(-1, keepdims=True)) / beta)
        return mass / mass.sum(-1, keepdims=True)

    after = tilt(q, r)
    first = tilt(p, (after * r).sum(1))
    joint, ref = first[:, None] * after, p[:, None] * q
    keep = joint > 0
    kl = (joint[keep] * np.log(joint[keep] / ref[keep])).sum()
    top = r.max()
    best = top + beta * np.log((ref * np.exp((r - top) / beta)).sum())
    return [first, best - (joint * r).sum() + beta * kl]


def dropped(worth, gap=lambda x: x):
    def answer(p, q, r, b):
        after = (q.log() + r / b).softmax(1)
        first = (p.log() + worth(after, q, r, b) / b).softmax(0)
        joint, ref = first[:, None] * after, p[:, None] * q
        kl = torch.where(joint > 0, joint * (joint.log() - ref.log()), 0).sum()
        best = b * (ref.log() + r / b).flatten().logsumexp(0)
        return first, gap(best - (joint * r).sum() + b * kl)

    return answer


def earned(after, q, r, b):
    return (after * r).sum(1)


def dropped_with_overflow(p, q, r, b):
    mass = q * torch.exp(r / b)
    after = mass / mass.sum(1, keepdim=True)
    return dropped(lambda *_: (after * r).sum(1))(p, q, r, b)


WRONG_DROPPED = [
    (dropped(lambda a, q, r, b: b * (q.log() + r / b).logsumexp(1)), "this is the best policy"),
    (dropped(lambda a, q, r, b: (q * r).sum(1)), "not the reference"),
    (dropped(lambda a, q, r, b: r.max(1).values), "not the largest reward"),
    (dropped(earned, gap=lambda x: -x), "J* less J"),
    (lambda p, q, r, b: dropped(earned)(p, q, r, 1.0), "β is missing"),
    (lambda p, q, r, b: dropped(earned)(p, q.T, r.T, b), "rows and columns are swapped"),
    (dropped_with_overflow, "nan comes of"),
    (lambda *z: dropped(earned)(*z)[0], "the shape is not right"),
    (dropped(lambda a, q, r, b: (a * r).mean(1)), "the value is not right"),
]


RIGHT = {
    "03b-clamped": [clamped_on_paper, clamped_in_numpy, clamped_state_by_state],
    "03b-which": [which_by_cosines, which_by_least_squares],
    "03b-dropped": [dropped_by_recursion, dropped_in_numpy],
}
WRONG = {
    "03b-clamped": WRONG_CLAMPED,
    "03b-which": WRONG_WHICH,
    "03b-dropped": WRONG_DROPPED,
}
