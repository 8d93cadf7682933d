"""Answers to the exercises of lesson 03 as learners write them."""

import numpy as np
import torch


def kl_of(a, b):
    return (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(dim=-1)


# Exercise 03-batch-gradient: right answers in other styles, then wrong ones with what they're told.


def derivative(make):
    """An answer from a surrogate of theta, the log-probabilities drawn and the other arguments."""

    def answer(theta, theta_ref, drawn, reward, price):
        theta = theta.clone().requires_grad_()
        log_p = theta.log_softmax(-1)[drawn]
        make(theta, log_p, theta_ref, reward, price).backward()
        return theta.grad

    return answer


@derivative
def gradient_by_distributions(theta, log_p, theta_ref, reward, price):
    pi, ref = (torch.distributions.Categorical(logits=x) for x in (theta, theta_ref))
    return (log_p * reward).mean() - price * torch.distributions.kl_divergence(pi, ref)


def gradient_in_numpy(logits, ref_logits, words, rewards, beta):
    p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum() for x in (logits, ref_logits))
    scores = np.eye(len(p))[words.numpy()] - p
    net = np.log(p / q) - p @ np.log(p / q)
    return rewards.numpy() @ scores / len(words) - beta * p * net


def gradient_in_plain_python(logits, ref_logits, words, rewards, beta):
    p, q = logits.softmax(0).tolist(), ref_logits.softmax(0).tolist()
    kl = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    out = [-beta * a * (np.log(a / b) - kl) for a, b in zip(p, q, strict=True)]
    for k, r in zip(words.tolist(), rewards.tolist(), strict=True):
        out = [g + r * ((v == k) - p[v]) / len(words) for v, g in enumerate(out)]
    return out


def gradient_in_single_precision(logits, ref_logits, words, rewards, beta):
    logits, ref_logits, rewards = (x.float() for x in (logits, ref_logits, rewards))
    return gradient_by_distributions(logits, ref_logits, words, rewards, beta)


WRONG_GRADIENTS = [
    (lambda x, lp, q, r, b: r.mean() - b * kl_of(x, q), "the bug is still there"),
    (lambda x, lp, q, r, b: (lp * r).mean(), "the brake is missing"),
    (lambda x, lp, q, r, b: (lp * r).mean() + b * kl_of(x, q), "the brake is added"),
    (lambda x, lp, q, r, b: b * kl_of(x, q) - (lp * r).mean(), "uphill"),
    (lambda x, lp, q, r, b: (lp * r).mean() - kl_of(x, q), "β is missing"),
    (lambda x, lp, q, r, b: (lp * r).sum() - b * kl_of(x, q), "are added up"),
    (
        lambda x, lp, q, r, b: (lp * (r - b * kl_of(x, q)).detach()).mean() - b * kl_of(x, q),
        "must not be in the first term",
    ),
    (lambda x, lp, q, r, b: (lp.exp() * r).mean() - b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * (r - r.mean())).mean() - b * kl_of(x, q), "no baseline"),
    (lambda x, lp, q, r, b: (lp * r).mean() - b * kl_of(q, x), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r).mean() - b * b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r).sum() / len(x) - b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r).mean() - b * lp.mean(), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r).sum() / 4 - b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r.abs()).mean() - b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r.clamp_(0)).mean() - b * kl_of(x, q), "rewards in place"),
]
WRONG_GRADIENTS = [(derivative(make), message) for make, message in WRONG_GRADIENTS]


# Exercise 03-form-a.


def form_a_in_loops(gain, kl, reward, price):
    total = 0.0
    for i in range(len(gain)):
        others = [reward[j].item() for j in range(len(reward)) if j != i]
        for t in range(gain.shape[1]):
            later = sum(x.item() for x in kl[i, t + 1 :])
            lead = reward[i].item() - sum(others) / len(others)
            total = total + gain[i, t] * (lead - price * later) - price * kl[i, t]
    return total / len(gain)


def form_a_by_matrices(log_probs, kl, rewards, beta):
    b, t = kl.shape
    after = torch.ones(t, t, dtype=kl.dtype).tril(-1)  # [t', t]: 1 where t' > t
    lead = (torch.eye(b, dtype=kl.dtype) - (1 - torch.eye(b)) / (b - 1)) @ rewards
    with torch.no_grad():
        bracket = lead.unsqueeze(1) - beta * kl @ after
    return torch.einsum("bt,bt->", log_probs, bracket) / b - beta * kl.sum(1).mean()


def form_a_in_single_precision(log_probs, kl, rewards, beta):
    r, n = rewards.detach().float(), len(rewards)
    owed = kl.detach().sum(1, keepdim=True) - kl.detach().cumsum(1)
    lead = (r - r.mean()) * n / (n - 1)
    return ((lead[:, None] - beta * owed) * log_probs - beta * kl).sum() / n


def from_here_on(k):
    return k.flip(1).cumsum(1).flip(1)


def put(
    lp, kl, r, b, *, base=lambda r: (sum(r) - r) / (len(r) - 1), keep=True, direct=1, hold=True,
    charge=lambda k: from_here_on(k) - k,
):  # fmt: skip
    r = r.detach() if keep else r
    bracket = (r - base(r))[:, None] - b * charge(kl)
    return (lp * (bracket.detach() if hold else bracket) - b * direct * kl).sum() / len(r)


WRONG_FORMS = [
    (lambda *z: put(*z, hold=False), "the bracket has to be constant"),
    (lambda *z: put(*z, hold=False, keep=False), "a gradient reaches rewards: detach"),
    (lambda *z: put(*z, base=torch.mean), "holds the response's own reward"),
    (lambda *z: put(*z, base=lambda r: 0), "the baseline is missing"),
    (lambda *z: put(*z, base=lambda r: r.sum() - r), "the value is not right"),
    (lambda *z: put(*z, base=lambda r: (r.sum() - r) / len(r)), "the others are B − 1"),
    (
        lambda x, k, r, b: (
            put(x, k, r, b, base=lambda r: 0)
            - (x * ((sum(f := r - b * k.sum(1)) - f) / (len(r) - 1)).detach()[:, None]).sum()
            / len(r)
        ),
        "without KL",
    ),
    (lambda *z: put(*z, charge=from_here_on), "own KL does not belong"),
    (lambda *z: put(*z, charge=lambda k: k.sum(1, keepdim=True)), "only later KL belongs"),
    (lambda *z: put(*z, charge=lambda k: k.cumsum(1) - k), "turn it around"),
    (lambda *z: put(*z, charge=lambda k: k.cumsum(1)), "the value is not right"),
    (lambda *z: put(*z, charge=lambda k: 0 * k), "the future KL is missing"),
    (lambda *z: put(*z, direct=0), "the direct term is missing"),
    (lambda x, k, *z: put(x, k.detach(), *z), "lost its gradient"),
    (lambda *z: put(*z[:3], 1.0), "β is missing"),
    (lambda *z: put(*z[:3], 0.0), "the value is not right"),
    (lambda *z: -put(*z), "its sign is"),
    (lambda *z: put(*z) * len(z[2]), "the responses are added up"),
    (lambda *z: put(*z) / z[0].shape[1], "the steps are averaged"),
    (lambda *z: put(*z) * len(z[2]) / z[0].shape[1], "divide by B"),
    (lambda x, *z: put(x.detach(), *z), "no gradient reaches log_probs"),
    (lambda *z: put(*z).item(), "no gradient reaches log_probs and kl"),
    (lambda x, k, r, b: put(x, k, r.abs(), b), "the value is not right"),
    (lambda x, k, r, b: put(x, k, r.sub_(1), b), "rewards in place"),
]


# Exercise 03-omission.


def omission_by_differentiation(pi, k1, earned, owed, price, found):
    theta = pi.log().requires_grad_()
    p = theta.softmax(0)
    terms = p @ earned, -price * kl_of(theta, pi.log() - k1), -price * (p @ owed)
    r, d, f = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in terms)
    lacks = r + d + f - found  # the part that is not there
    sizes = [(part - lacks).norm() for part in (0 * r, r, d, f)]
    return lacks.norm() / (r + d + f).norm(), sizes.index(min(sizes))


def omission_in_numpy(p, log_ratio, reward_after, kl_after, beta, found):
    p, x, r, k, g = (y.numpy() for y in (p, log_ratio, reward_after, kl_after, found))
    r, d, f = ((np.diag(p) - np.outer(p, p)) @ y for y in (r, -beta * x, -beta * k))
    off = np.linalg.norm(g - np.stack([r + d + f, d + f, r + f, r + d]), axis=1)
    return off[0] / np.linalg.norm(r + d + f), off.argmin()


def diagnosed(
    p, x, r, k, b, found, *, part=lambda p, y: p * (y - p @ y), signs=(-1, -1), unit=None
):
    parts = [part(p, y) for y in (r, signs[0] * b * x, signs[1] * b * k)]
    whole = sum(parts)
    off = torch.stack([(found - whole + y).norm() for y in (0, *parts)])
    return off[0] / (whole.norm() if unit is None else unit(whole, found)), off.argmin()


WRONG_OMISSIONS = [
    (lambda *z: diagnosed(*z, part=lambda p, y: p * y), "the value is not right"),
    (lambda *z: diagnosed(*z, part=lambda p, y: p * (y - y.mean())), "the value is not right"),
    (lambda *z: diagnosed(*z, signs=(-1, 1)), "the future KL is added"),
    (lambda *z: diagnosed(*z, signs=(1, -1)), "the direct term is added"),
    (lambda *z: diagnosed(*z, signs=(1, 1)), "both KLs are added"),
    (lambda *z: diagnosed(*z[:2], z[2] * z[4], *z[3:]), "the value is not right"),
    (lambda *z: diagnosed(*z, unit=lambda w, f: f.norm()), "length of the true gradient"),
    (lambda *z: diagnosed(*z, unit=lambda w, f: 1.0), "the value is not right"),
    (lambda *z: [y + n for n, y in enumerate(diagnosed(*z))], "0 stands for nothing missing"),
    (lambda *z: diagnosed(*z[:4], 1.0, z[5]), "β is missing"),
    (lambda p, x, *z: diagnosed(p, (p @ x).expand(len(x)), *z), "the value is not right"),
    (lambda *z: diagnosed(*z)[::-1], "the value is not right"),
    (lambda *z: diagnosed(*z)[0], "the shape is not right"),
    (lambda *z: (diagnosed(*z)[0], 0), "the value is not right"),
    (lambda x, *z: diagnosed(x, *z[:-1], z[-1].neg_()), "found in place"),
]


RIGHT = {
    "03-batch-gradient": [
        gradient_by_distributions,
        gradient_in_numpy,
        gradient_in_single_precision,
        gradient_in_plain_python,
    ],
    "03-form-a": [form_a_in_loops, form_a_by_matrices, form_a_in_single_precision],
    "03-omission": [omission_by_differentiation, omission_in_numpy, diagnosed],
}

WRONG = {
    "03-batch-gradient": WRONG_GRADIENTS,
    "03-form-a": WRONG_FORMS,
    "03-omission": WRONG_OMISSIONS,
}
