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
    (lambda x, lp, q, r, b: (lp * r).mean() - b * kl_of(q, x), "arguments are swapped"),
    (lambda x, lp, q, r, b: (lp * r).mean() - b * b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r).sum() / len(x) - b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r).mean() - b * lp.mean(), "is no KL"),
    (lambda x, lp, q, r, b: (lp * r).sum() / 4 - b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r.abs()).mean() - b * kl_of(x, q), "the value is not right"),
    (lambda x, lp, q, r, b: (lp * r.clamp_(0)).mean() - b * kl_of(x, q), "rewards in place"),
]
WRONG_GRADIENTS = [(derivative(make), message) for make, message in WRONG_GRADIENTS]


# Exercise 03-form-a.


def form_a_in_loops(theta, theta_ref, drawn, reward, counts, price):
    total = 0.0
    for i in range(len(theta)):
        for t in range(length := int(counts[i].sum())):
            later = sum(kl_of(theta[i, k], theta_ref[i, k]).item() for k in range(t + 1, length))
            log_p = theta[i, t].log_softmax(0)[drawn[i, t]]
            total = total + log_p * (reward[i].item() - price * later)
            total = total - price * kl_of(theta[i, t], theta_ref[i, t].detach())
    return total / len(theta)


def form_a_by_a_matrix(logits, ref_logits, tokens, rewards, mask, beta):
    x, q = logits.float() * mask[..., None], ref_logits.detach().float() * mask[..., None]
    kl = kl_of(x, q)
    after = torch.ones(kl.shape[1], kl.shape[1]).tril(-1).float()  # [t', t]: 1 where t' > t
    with torch.no_grad():
        bracket = (rewards.float()[:, None] - beta * kl @ after) * mask
    gain = -torch.nn.functional.cross_entropy(x.flatten(0, 1), tokens.flatten(), reduction="none")
    return (gain.view_as(bracket) * bracket - beta * kl).sum() / mask.shape[0]


def form_a_by_selection(logits, ref_logits, tokens, rewards, mask, beta):
    kl = torch.zeros(mask.shape, dtype=logits.dtype)
    kl[mask] = kl_of(logits[mask], ref_logits[mask].detach())
    owed = kl.detach().sum(1, keepdim=True) - kl.detach().cumsum(1)
    hot = torch.nn.functional.one_hot(tokens, logits.shape[-1]).double()
    gain = torch.einsum("btv,btv->bt", logits.log_softmax(-1), hot)
    rows = ((gain * (rewards.detach()[:, None] - beta * owed)) * mask).sum(1) - beta * kl.sum(1)
    return rows.mean()


def from_here_on(k):
    return k.flip(1).cumsum(1).flip(1)


def put(x, q, t, r, m, b, *, keep=True, charge=lambda k: from_here_on(k) - k, direct=1, hold=True):
    if keep:
        q, r = q.detach(), r.detach()
    kl = kl_of(x, q) * m
    bracket = r[:, None] - b * charge(kl)
    gain = x.log_softmax(2).gather(2, t[:, :, None])[:, :, 0]
    return ((gain * (bracket.detach() if hold else bracket) - b * direct * kl) * m).sum() / len(x)


WRONG_FORMS = [
    (lambda *z: put(*z, hold=False), "the bracket has to be constant"),
    (lambda *z: put(*z, hold=False, keep=False), "detach"),
    (lambda *z: put(*z, keep=False), "reaches ref_logits: "),
    (lambda *z: put(*z, charge=from_here_on), "own KL does not belong"),
    (lambda *z: put(*z, charge=lambda k: k.sum(1, keepdim=True)), "only later KL belongs"),
    (lambda *z: put(*z, charge=lambda k: k.cumsum(1) - k), "turn it around"),
    (lambda *z: put(*z, charge=lambda k: 0 * k), "the future KL is missing"),
    (lambda *z: put(*z, direct=0), "the direct term is missing"),
    (lambda *z: put(*z[:5], 1.0), "β is missing"),
    (lambda *z: put(*z[:5], 0.0), "the KL is missing"),
    (lambda *z: -put(*z), "the sign is wrong"),
    (lambda *z: put(*z) * len(z[4]), "the responses are added up"),
    (lambda *z: put(*z) * len(z[4]) / z[4].sum(), "averaged over all tokens"),
    (lambda *z: put(*z) / z[4].shape[1], "divide by B"),
    (lambda *z: put(*z).item(), "no gradient reaches logits"),
    (lambda x, *z: put(x, *z) * len(x) / x.shape[2], "the value is not right"),
    (lambda x, q, *z: put(x, q.mul_(1.1), *z), "ref_logits in place"),
    (lambda x, q, t, r, *z: put(x, q, t, r.sub_(1), *z), "rewards in place"),
    (lambda x, q, t, r, m, b: put(x, q, t, r, m | True, b), "the padding counts"),
    (lambda x, q, t, r, m, b: put(x, q, t, r.abs(), m, b), "the value is not right"),
]


# Exercise 03-omission.


def omission_by_differentiation(theta, theta_ref, earned, owed, price, rows):
    theta = theta.clone().requires_grad_()
    p = theta.softmax(0)
    terms = p @ earned, -price * kl_of(theta, theta_ref), -price * (p @ owed)
    r, d, f = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in terms)
    lacks = [(row - (r + d + f)).neg() for row in rows]  # the part that is not there
    names = [
        min(enumerate([0 * r, r, d, f, d + f]), key=lambda c: (c[1] - x).norm()) for x in lacks
    ]
    return [x.norm() / (r + d + f).norm() for x in lacks], [k for k, _ in names]


def omission_in_numpy(logits, ref_logits, reward_after, kl_after, beta, found):
    p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum() for x in (logits, ref_logits))
    jacobian = np.diag(p) - np.outer(p, p)
    r, d, f = (
        jacobian @ x
        for x in (reward_after.numpy(), -beta * np.log(p / q), -beta * kl_after.numpy())
    )
    kept = np.stack([r + d + f, d + f, r + f, r + d, r])
    off = np.linalg.norm(found.numpy()[:, None] - kept, axis=2)
    return off[:, 0] / np.linalg.norm(kept[0]), off.argmin(1)


def diagnosed(x, q, r, k, b, found, *, part=lambda p, y: p * (y - p @ y), sign=-1, unit=None):
    p, x, q = x.softmax(0), x.log_softmax(0), q.log_softmax(0)
    parts = [part(p, y) for y in (r, -b * (x - q), sign * b * k)]
    whole = sum(parts)
    kept = [whole, whole - parts[0], whole - parts[1], whole - parts[2], parts[0]]
    off = torch.stack([(found - y).norm(dim=1) for y in kept])
    return off[0] / (whole.norm() if unit is None else unit(whole, found)), off.argmin(0)


def swapped(x, q, r, k, b, found):
    error, missing = diagnosed(x, q, r, k, b, found)
    return missing, error


WRONG_OMISSIONS = [
    (lambda *z: diagnosed(*z, part=lambda p, y: p * y), "the mean is missing"),
    (lambda *z: diagnosed(*z, part=lambda p, y: p * (y - y.mean())), "weighted by π"),
    (lambda *z: diagnosed(*z, sign=1), "the future KL is added"),
    (lambda *z: diagnosed(*z[:2], z[2] * z[4], *z[3:]), "the value is not right"),
    (lambda *z: diagnosed(*z, unit=lambda w, f: f.norm(dim=1)), "length of the true gradient"),
    (lambda *z: diagnosed(*z, unit=lambda w, f: 1.0), "the value is not right"),
    (lambda *z: [y + n for n, y in enumerate(diagnosed(*z))], "0 stands for nothing missing"),
    (lambda *z: diagnosed(*z[:4], 1.0, z[5]), "β is missing"),
    (lambda x, q, *z: diagnosed(q, x, *z), "the value is not right"),
    (swapped, "the value is not right"),
    (lambda *z: diagnosed(*z)[0], "the shape is not right"),
    (lambda *z: (diagnosed(*z)[0], 0 * diagnosed(*z)[1]), "the value is not right"),
    (lambda x, *z: diagnosed(x, *z[:-1], z[-1].neg_()), "found in place"),
]


RIGHT = {
    "03-batch-gradient": [
        gradient_by_distributions,
        gradient_in_numpy,
        gradient_in_single_precision,
        gradient_in_plain_python,
    ],
    "03-form-a": [form_a_in_loops, form_a_by_a_matrix, form_a_by_selection],
    "03-omission": [omission_by_differentiation, omission_in_numpy, diagnosed],
}

WRONG = {
    "03-batch-gradient": WRONG_GRADIENTS,
    "03-form-a": WRONG_FORMS,
    "03-omission": WRONG_OMISSIONS,
}
