"""Answers to the exercises of lesson 09 as learners write them."""

import numpy as np
import torch

# Exercise 09-surrogate: right answers in other styles, then wrong ones with what they are told.


def surrogate_in_loops(new, ref, earned, counts, price):
    n = len(earned)
    worth = []
    for i in range(n):
        log_ratio = sum(new[i, t] - ref[i, t] for t in range(new.shape[1]) if counts[i, t])
        worth.append((earned[i] - price * log_ratio).item())
    total = 0
    for i in range(n):
        others = sum(worth[j] for j in range(n) if j != i) / (n - 1)
        total = total + (worth[i] - others) * new[i][counts[i]].sum()
    return total / n


def surrogate_with_a_matrix(log_probs, ref_log_probs, rewards, mask, beta):
    m, n = mask.float(), len(mask)
    log_ratio = torch.einsum("bt,bt->b", (log_probs - ref_log_probs).float(), m)
    centre = (torch.eye(n) * n - 1).float() / (n - 1)
    with torch.no_grad():
        advantages = centre @ (rewards.float() - beta * log_ratio)
    return advantages @ (log_probs.float() * m).sum(-1) / n


def surrogate(
    others=lambda f: (f.sum() - f) / (len(f) - 1),
    detach=True,
    mask_ratio=True,
    mask_sum=True,
    end=torch.mean,
    last=lambda x: x,
):
    def answer(n, q, r, m, b):
        ratio = torch.where(m, n - q, 0.0) if mask_ratio else n - q
        f = r - b * ratio.sum(-1)
        advantage = f - others(f)
        advantage = advantage.detach() if detach else advantage
        return end(advantage * last((n * m if mask_sum else n).sum(-1)))

    return answer


def surrogate_by_step(new, ref, rewards, mask, beta):
    ratio = (new - ref).masked_fill(~mask, 0)
    total, n = 0, len(new)
    for t in range(new.shape[1]):
        f = rewards - beta * ratio[:, t:].sum(1)
        a = f - torch.stack([f[[j for j in range(n) if j != i]].mean() for i in range(n)])
        total = total + a.detach() @ (new[:, t] * mask[:, t])
    return total / n


def surrogate_with_k1_in_the_loss(new, ref, rewards, mask, beta):
    a = rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
    k1 = ((new - ref.detach()) * mask).sum(1)
    return (a.detach() * (new * mask).sum(1) - beta * k1).mean()


def surrogate_by_pairs(log_probs, ref_log_probs, rewards, mask, beta):
    of_response = torch.where(mask, log_probs, 0.0).sum(1)
    f = rewards - beta * (of_response - torch.where(mask, ref_log_probs, 0.0).sum(1))
    table = (f[:, None] - f[None, :]).detach()
    return torch.einsum("ij,i->", table, of_response) / (len(f) * (len(f) - 1))


WRONG_SURROGATE = [
    (surrogate(detach=False), "reaches ref_log_probs and rewards: detach"),
    (lambda n, q, r, *a: surrogate(detach=False)(n, q.detach(), r.detach(), *a), "are constants"),
    (surrogate_with_k1_in_the_loss, "k1 in the loss"),
    (surrogate(end=lambda x: x.sum() / 3), "the value is not right"),
    (lambda *a: surrogate()(*a).abs(), "take no abs"),
    (lambda n, q, r, m, b: surrogate()(n, q, r.sub_(1), m, b), "rewards in place"),
    (surrogate(lambda f: 0), "not subtracted"),
    (surrogate(torch.mean), "the response itself is in the mean"),
    (surrogate(lambda f: f.sum() - f), "the value is not right"),
    (
        surrogate(torch.mean, detach=False),
        "only the others are; and detach ref_log_probs and rewards",
    ),
    (surrogate(lambda f: (f.sum() - f) / len(f)), "divided by B; divide"),
    (surrogate_by_step, "not of the tokens from t on"),
    (lambda n, q, *a: surrogate()(n, 0 * q, *a), "reference is missing"),
    (
        lambda n, q, r, m, b: surrogate(last=lambda x: x / m.sum(1))(n, q, r, m, b),
        "the value is not right",
    ),
    (surrogate(mask_ratio=False), "padding counts in the log-ratio"),
    (surrogate(mask_sum=False), "padding counts in the last sum"),
    (surrogate(mask_ratio=False, mask_sum=False), "the value is not right"),
    (surrogate(end=torch.sum), "not divided by B"),
    (surrogate(end=lambda x: -x.mean()), "sign is wrong"),
    (surrogate(end=lambda x: x), "shape is not right"),
    (lambda n, q, r, m, b: surrogate()(n, q, r, m, 1.0), "β is missing"),
    (lambda n, q, r, m, b: surrogate()(n, q, r, m, 0.0), "the penalty is missing"),
    (lambda n, q, r, m, b: surrogate()(n, q, r, m, -b), "log-ratio is added"),
    (lambda n, q, r, m, b: surrogate()(n, q, b * r, m, 1.0), "the value is not right"),
    (lambda n, *a: surrogate()(n.detach(), *a), "no gradient reaches log_probs"),
    (lambda n, q, *a: surrogate(detach=False)(n, q.detach(), *a), "reaches rewards: detach"),
]


# Exercise 09-which-step.


def step_in_loops(betas, objective, rewards, kl):
    found = []
    logs = (x.numpy() for x in (betas, objective, rewards, kl))
    for b, j, r, k in zip(*logs, strict=True):
        cut = len(j) // 2
        if not np.allclose(j, r - b * k, rtol=0, atol=1e-6):
            found.append(5)
        elif (abs(k) <= 1e-6).all():
            found.append(4 if r[cut:].mean() - r[:cut].mean() > 0.5 else 8)
        elif abs(k[0]) > 1e-6:
            found.append(4)
        else:
            found.append(9 if j[:cut].mean() - j[cut:].mean() > 0.5 else 0)
    return found


def step(
    limit=1e-6,
    halves=None,
    still=(4, 8),
    begins=4,
    off="every",
    down=9,
    first="J",
    sign=1,
    ends=False,
):
    def rise(x):
        n = x.shape[1] // 2
        return halves(x) if halves else x[:, n:].mean(dim=1) - x[:, :n].mean(dim=1)

    def answer(betas, objective, rewards, kl):
        due = rewards - sign * betas.unsqueeze(1) * kl
        wrong = (objective - due).abs() > 1e-6
        wrong = {"every": wrong.any(1), "last": wrong[:, -1], "first": wrong[:, 0]}[off]
        zero = kl.abs() <= limit
        code = torch.zeros(len(betas), dtype=torch.long)
        code[rise(objective) < -0.5] = down
        code[~zero[:, 0]] = begins
        up = rewards[:, -1] - rewards[:, 0] if ends else rise(rewards)
        code[zero.all(1)] = torch.where(up > 0.5, *still)[zero.all(1)]
        code[wrong & (code == 0) if first == "rest" else wrong] = 5
        return code

    return answer


WRONG_STEP = [
    (step(0), "rounding leaves no exact 0"),
    (step(halves=lambda x: x[:, -1] - x[:, 0]), "single steps mislead"),
    (step(still=(8, 8)), "the reference moves along, step 4"),
    (step(still=(4, 4)), "nothing moves, step 8"),
    (step(still=(8, 4)), "the value is not right"),
    (step(begins=0), "does not begin at 0 is a fault of step 4"),
    (step(off="first"), "look at it in every step"),
    (step(down=0), "a J that falls is a fault of step 9"),
    (step(first="rest"), "can fall, too: that is step 5"),
    (step(sign=-1), "the value is not right"),
    (step(ends=True), "nothing moves, step 8"),
    (lambda b, *logs: step()(torch.ones_like(b), *logs), "β is missing"),
    (lambda b, j, r, kl: step()(b, r - b[:, None] * kl, r, kl), "J is not looked at"),
    (lambda *logs: step()(*logs) > 0, "the value is not right"),
    (lambda *logs: step()(*logs)[:, None], "shape is not right"),
    (lambda b, j, r, kl: step()(b, j, r, kl.round_(decimals=6)), "kl in place"),
]


# Exercise 09-two-rulers.


def rulers_in_loops(log_p, log_q, earned, price):
    j = j_ref = j_best = 0
    for lp, lq, r in zip(log_p.tolist(), log_q.tolist(), earned.tolist(), strict=True):
        lp, lq, r = np.array(lp), np.array(lq), np.array(r)
        j += (np.exp(lp) * (r - price * (lp - lq))).sum() / len(log_p)
        j_ref += (np.exp(lq) * r).sum() / len(log_p)
        top = r.max()
        z = (np.exp(lq) * np.exp((r - top) / price)).sum()
        j_best += (top + price * np.log(z)) / len(log_p)
    return np.array([(j - j_ref) / (j_best - j_ref)]).item(), (j_best - j) / price


def rulers_by_the_best_policy(log_pi, log_ref, rewards, beta):
    best = torch.distributions.Categorical(logits=log_ref + rewards / beta)
    kl = torch.distributions.kl_divergence
    gap = kl(torch.distributions.Categorical(logits=log_pi), best).mean()
    return 1 - gap / kl(torch.distributions.Categorical(logits=log_ref), best).mean(), gap


def rulers_in_torch(log_pi, log_ref, rewards, beta):
    p, q = log_pi.exp(), log_ref.exp()
    j = (torch.einsum("pn,pn->p", p, rewards) - beta * (p * (log_pi - log_ref)).sum(1)).mean()
    top = beta * torch.logsumexp(log_ref + rewards / beta, 1).mean()
    ref = torch.einsum("pn,pn->", q, rewards) / len(q)
    return torch.stack([(j - ref) / (top - ref), (top - j) / beta])


def rulers(mean=torch.mean, z=lambda q, r, b: b * (q + r / b).logsumexp(1), flip=1):
    def answer(x, q, r, b):
        kl = (x.exp() * (x - q)).sum(1) if flip > 0 else (q.exp() * (q - x)).sum(1)
        j, ref = mean((x.exp() * r).sum(1) - b * kl), mean((q.exp() * r).sum(1))
        best = mean(z(q, r, b))
        return ((j - ref) / (best - ref)).mean(), ((best - j) / b).mean()

    return answer


WRONG_RULERS = [
    (rulers(lambda x: x), "a mean of shares"),
    (rulers(torch.sum), "the value is not right"),
    (rulers(z=lambda q, r, b: (q + r / b).logsumexp(1)), "before log Z"),
    (rulers(z=lambda q, r, b: b * (q.exp() * (r / b).exp()).sum(1).log()), "exp(800)"),
    (rulers(z=lambda q, r, b: b * (q + r / b).logsumexp(1).exp().mean().log()), "Z of its own"),
    (rulers(z=lambda q, r, b: r.max(dim=1)[0]), "not the largest reward"),
    (rulers(flip=-1), "KL in J is turned round"),
    (rulers(z=lambda q, r, b: b * (r / b).logsumexp(1)), "the value is not right"),
    (lambda *a: (rulers()(*a)[0], a[-1] * rulers()(*a)[1]), "the gap is in reward"),
    (lambda *a: (1 - rulers()(*a)[0], rulers()(*a)[1]), "the value is not right"),
    (lambda *a: rulers()(*a)[::-1], "the two are swapped"),
    (lambda *a: rulers()(*a)[0], "shape is not right"),
    (lambda *a: torch.stack(rulers()(*a)).abs(), "take no abs"),
    (lambda *a: torch.stack(rulers()(*a)).clamp(min=0), "do not cut it off"),
    (lambda *a: torch.stack(rulers()(*a)).clamp(max=0.99), "the value is not right"),
    (lambda *a: torch.stack(rulers()(*a)).clamp(min=0.01), "the value is not right"),
    (lambda *a: rulers()(*(x[:2] for x in a[:3]), a[3]), "the value is not right"),
    (lambda x, q, r, b: rulers()(x, q, r.sub_(r.mean()), b), "rewards in place"),
]


RIGHT = {
    "09-surrogate": [surrogate_in_loops, surrogate_with_a_matrix, surrogate(), surrogate_by_pairs],
    "09-which-step": [step_in_loops, step()],
    "09-two-rulers": [rulers_in_loops, rulers_by_the_best_policy, rulers(), rulers_in_torch],
}

WRONG = {
    "09-surrogate": WRONG_SURROGATE,
    "09-which-step": WRONG_STEP,
    "09-two-rulers": WRONG_RULERS,
}
