"""Answers to the exercises of lesson 09 as learners write them."""

import numpy as np
import torch

# Exercise 09-roll-out: right answers in other styles, then wrong ones with what they are told.


def roll_out_in_loops(first_logits, table, uniform, stop):
    n, length = uniform.shape
    words = np.full((n, length), stop)
    counts = np.zeros((n, length), dtype=bool)
    log_p = torch.zeros(n, length)
    for i in range(n):
        logits, t, running = first_logits, 0, True
        while running and t < length:
            p = logits.softmax(0)
            sums = np.cumsum(p.tolist())[:-1]  # the last one may be less than the largest uniform
            words[i, t] = np.searchsorted(sums, uniform[i, t].item(), "right")
            counts[i, t] = True
            log_p[i, t] = p[words[i, t]].log()
            running, logits, t = words[i, t] != stop, table[words[i, t]], t + 1
    return words, counts, log_p


def roll_out_first_and_cut_afterwards(first, after, u, end, last=-1):
    # draw everything, then find the ends
    tokens, log_probs = [], []
    log_p = first.float().log_softmax(-1).repeat(u.shape[0], 1)
    for column in u.T:
        sums = log_p.exp().cumsum(-1)[:, :last].contiguous()
        token = torch.searchsorted(sums, column[:, None].float(), right=True)
        tokens.append(token)
        log_probs.append(torch.take_along_dim(log_p, token, dim=1))
        log_p = after.float()[token[:, 0]].log_softmax(-1)
    tokens, log_probs = torch.cat(tokens, dim=1), torch.cat(log_probs, dim=1)
    is_end = (tokens == end).int()
    mask = is_end.cumsum(1) - is_end == 0
    tokens[~mask] = end
    return [tokens, mask.double(), torch.where(mask, log_probs, 0)]


def roll_out(
    row=lambda f, a, k: a[k],
    pad=True,
    cut=True,
    late=False,
    pick=None,
    stops=True,
    strict=False,
    steps=lambda u: u.shape[1],
):
    def answer(f, a, u, end):
        b, n = u.shape
        tokens, mask, logs = torch.zeros(b, n).long(), torch.zeros(b, n).bool(), torch.zeros(b, n)
        alive, logits = torch.ones(b).bool(), f.expand(b, len(f))
        for t in range(steps(u)):
            p = logits.softmax(-1)
            sums = p.cumsum(1)[:, :-1]
            k = (u[:, t : t + 1] > sums if strict else u[:, t : t + 1] >= sums).sum(1)
            k = pick(p) if pick else k
            if pad:
                k = torch.where(alive, k, end)
            if late:
                alive = alive & (k != end)
            tokens[:, t], mask[:, t] = k, alive
            log_p = p[torch.arange(b), k].log()
            logs[:, t] = torch.where(alive, log_p, 0.0) if cut else log_p
            if stops:
                alive = alive & (k != end)
            logits = row(f, a, k)
        return tokens, mask, logs

    return answer


def roll_out_as_lists(first, after, u, end):
    found = [[], [], []]
    for row in u.tolist():
        log_p, going = torch.log_softmax(first, 0), True
        for part in found:
            part.append([])
        for x in row:
            token = sum(s <= x for s in log_p.exp().cumsum(0)[:-1].tolist()) if going else end
            for part, y in zip(found, (token, going, log_p[token] * going), strict=True):
                part[-1].append(y)
            going, log_p = going and token != end, torch.log_softmax(after[token], 0)
    return found


def padded_with_0(*x):
    tokens, mask, _ = roll_out()(*x)
    return [tokens * mask]


def mixed(wrong, right, k):
    return [*right[:k], wrong[k], *right[k + 1 :]]


WRONG_ROLL_OUT = [
    (roll_out(stops=False, pad=False), "goes on after the end"),
    (roll_out(late=True), "the end token counts too: "),
    (roll_out(strict=True), "compare with ≤"),
    (lambda *x: mixed(roll_out(late=True)(*x), roll_out()(*x), 1), "counts too in the mask"),
    (lambda *x: mixed(roll_out(late=True)(*x), roll_out()(*x), 2), "has a log-probability too"),
    (lambda *x: mixed(padded_with_0(*x), roll_out()(*x), 0), "must be `end`, not 0"),
    (roll_out(cut=False), "log-probabilities must be 0"),
    (roll_out(pad=False), "tokens must be `end`"),
    (roll_out(pad=False, cut=False), "the value is not right"),
    (roll_out(lambda f, a, k: f.expand(len(k), -1)), "like a first one"),
    (roll_out(lambda f, a, k: a[:, k].T), "read by columns"),
    (roll_out(steps=lambda u: 3), "the value is not right"),
    (lambda f, a, u, end: roll_out()(f, a, u[:, :3], end), "the shape is not right"),
    (roll_out(pick=lambda p: torch.zeros(len(p)).long()), "the value is not right"),
    (lambda f, a, u, end: roll_out()(f, a, u.clamp_(max=0.99), end), "u in place"),
    (
        lambda *x: [*roll_out()(*x)[:2], roll_out()(*x)[2].abs()],
        "take no abs",
    ),
    (roll_out(pick=lambda p: p.max(-1).indices), "likeliest token"),
    (
        lambda f, a, u, end: roll_out()(f, a, u[:, [0]].repeat(1, u.shape[1]), end),
        "only the first u",
    ),
    (lambda f, a, u, end: roll_out()(f, a, 1 - u, end), "the value is not right"),
    (lambda f, a, u, end: roll_out()(f, a, u, 0), "the value is not right"),
    (lambda *x: roll_out()(*x)[:2], "shape is not right"),
    (lambda *x: [*roll_out()(*x)[:2], roll_out()(*x)[2].detach()], "lost their gradient"),
    (
        lambda *x: [*roll_out()(*x)[:2], roll_out()(*x)[2].exp() * roll_out()(*x)[1]],
        "these are probabilities",
    ),
    (lambda f, a, u, end: roll_out()(f, a.detach(), u, end), "no gradient reaches after"),
]


# Exercise 09-surrogate.


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
    (lambda n, q, r, m, b: surrogate()(n, q, r, m, b) / m.sum() * m.numel(), "times T"),
    (surrogate(lambda f: 0), "not subtracted"),
    (surrogate(torch.mean), "the response itself is in the mean"),
    (surrogate(lambda f: f.sum() - f), "divide by B - 1"),
    (
        surrogate(torch.mean, detach=False),
        "only the others are; and detach ref_log_probs and rewards",
    ),
    (surrogate(lambda f: (f.sum() - f) / len(f)), "divided by B; divide"),
    (surrogate_by_step, "not of the tokens from t on"),
    (lambda n, q, *a: surrogate()(n, 0 * q, *a), "reference is missing"),
    (
        lambda n, q, r, m, b: surrogate(last=lambda x: x / m.sum(1))(n, q, r, m, b),
        "probabilities are averaged",
    ),
    (surrogate(mask_ratio=False), "padding counts in the log-ratio"),
    (surrogate(mask_sum=False), "padding counts in the last sum"),
    (surrogate(mask_ratio=False, mask_sum=False), "mask is not used at all"),
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


# Exercise 09-two-rulers.


def rulers_in_loops(log_p, log_q, earned, price):
    j = j_ref = j_best = 0
    for lp, lq, r in zip(log_p.tolist(), log_q.tolist(), earned.tolist(), strict=True):
        lp, lq, r = np.array(lp), np.array(lq), np.array(r)
        j += (np.exp(lp) * (r - price * (lp - lq))).sum() / len(log_p)
        j_ref += (np.exp(lq) * r).sum() / len(log_p)
        j_best += price * np.log((np.exp(lq) * np.exp(r / price)).sum()) / len(log_p)
    return np.array([(j - j_ref) / (j_best - j_ref)]).item(), (j_best - j) / price


def rulers_by_the_best_policy(log_pi, log_ref, rewards, beta):
    log_pi, log_ref, rewards = log_pi.float(), log_ref.float(), rewards.float()
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


def rulers(mean=torch.mean, z=lambda q, r, b: b * (q.exp() * (r / b).exp()).sum(1).log(), flip=1):
    def answer(x, q, r, b):
        kl = (x.exp() * (x - q)).sum(1) if flip > 0 else (q.exp() * (q - x)).sum(1)
        j, ref = mean((x.exp() * r).sum(1) - b * kl), mean((q.exp() * r).sum(1))
        best = mean(z(q, r, b))
        return ((j - ref) / (best - ref)).mean(), ((best - j) / b).mean()

    return answer


WRONG_RULERS = [
    (rulers(lambda x: x), "a mean of shares"),
    (rulers(torch.sum), "prompts are added up"),
    (rulers(z=lambda q, r, b: (q.exp() * (r / b).exp()).sum(1).log()), "before log 𝒵"),
    (rulers(z=lambda q, r, b: b * (q.exp() * (r * b).exp()).sum(1).log()), "β multiplies"),
    (rulers(z=lambda q, r, b: b * (q + r / b).exp().sum(1).mean().log()), "𝒵 of its own"),
    (rulers(z=lambda q, r, b: r.max(dim=1)[0]), "not the largest reward"),
    (rulers(flip=-1), "KL in J is turned round"),
    (rulers(z=lambda q, r, b: b * (r / b).logsumexp(1)), "the value is not right"),
    (lambda *a: (rulers()(*a)[0], a[-1] * rulers()(*a)[1]), "the gap is in reward"),
    (lambda *a: (1 - rulers()(*a)[0], rulers()(*a)[1]), "this is what is missing"),
    (lambda *a: rulers()(*a)[::-1], "the two are swapped"),
    (lambda *a: rulers()(*a)[0], "shape is not right"),
    (lambda *a: torch.stack(rulers()(*a)).abs(), "take no abs"),
    (lambda *a: torch.stack(rulers()(*a)).clamp(min=0), "do not cut it off"),
    (lambda *a: torch.stack(rulers()(*a)).clamp(max=1), "the value is not right"),
    (lambda *a: torch.stack(rulers()(*a)).clamp(min=0.01), "the value is not right"),
    (lambda *a: rulers()(*(x[:2] for x in a[:3]), a[3]), "the value is not right"),
    (lambda x, q, r, b: rulers()(x, q, r.sub_(r.mean()), b), "rewards in place"),
]


# Exercise 09-updates.


def updates_with_torch(theta, q, k, a, price, eps, step):
    old = torch.distributions.Categorical(logits=theta.float())
    ref = torch.distributions.Categorical(logits=q.float())
    x = torch.nn.Parameter(theta.float().clone())
    ascent = torch.optim.SGD([x], lr=step, maximize=True)
    for _ in range(3):
        new = torch.distributions.Categorical(logits=x)
        ratio = (new.log_prob(k) - old.log_prob(k)).exp()
        gain = torch.minimum(ratio * a, ratio.clip(1 - eps, 1 + eps) * a).mean()
        ascent.zero_grad()
        (gain - price * torch.distributions.kl_divergence(new, ref)).backward()
        ascent.step()
    new = torch.distributions.Categorical(logits=x)
    return x.detach(), torch.distributions.kl_divergence(old, new).item()


def updates(old="start", last="start", rounds=3, clip=True, kl_ref="new ref", direction=1):
    def kl(p, q):
        return (p.exp() * (p - q)).sum()

    def answer(logits, ref_logits, words, advantages, beta, epsilon, step_size):
        theta = logits.clone()
        p = {"start": logits.log_softmax(-1), "ref": ref_logits.log_softmax(-1)}
        for _ in range(rounds):
            theta = theta.detach().requires_grad_()
            p["new"] = theta.log_softmax(-1)
            p["before"] = p["new"].detach()
            ratio = torch.exp(p["new"][words] - p[old][words])
            gain = ratio * advantages
            if clip:
                held = ratio.clamp(1 - epsilon, 1 + epsilon)
                gain = torch.min(gain, held * advantages)
            first, second = kl_ref.split()
            objective = gain.mean() - beta * kl(p[first], p[second])
            objective.backward()
            with torch.no_grad():
                theta += direction * step_size * theta.grad
        return theta.detach(), kl(p[last], theta.detach().log_softmax(-1))

    return answer


def updates_on_paper_with_a_mean_of_words(x, q, words, a, *rest):
    return updates()(x, q, words, a * len(words) / len(x), *rest)


def updates_on_paper(logits, ref_logits, words, advantages, beta, epsilon, step_size):
    x, q = logits.numpy().copy(), ref_logits.softmax(0).numpy()
    old = np.exp(x) / np.exp(x).sum()
    for _ in range(3):
        p = np.exp(x) / np.exp(x).sum()
        slope = -beta * p * (np.log(p / q) - p @ np.log(p / q))
        for w, a in zip(words.tolist(), advantages.tolist(), strict=True):
            r = p[w] / old[w]
            if (r <= 1 + epsilon) if a > 0 else (r >= 1 - epsilon):
                slope += a * r * (np.eye(len(p))[w] - p) / len(words)
        x += step_size * slope
    return x.tolist(), old @ np.log(old / (np.exp(x) / np.exp(x).sum()))


WRONG_UPDATES = [
    (updates_on_paper_with_a_mean_of_words, "divided by V"),
    (updates("before", "before"), "the bug is still there"),
    (updates("before"), "in the ratio π_old is still taken anew"),
    (updates(last="before"), "the KL is that of the last update"),
    (updates("ref"), "reference stands in the ratio"),
    (updates(kl_ref="start new"), "the brake is the KL to π_old"),
    (updates(kl_ref="ref new"), "the brake's KL is turned round"),
    (updates(kl_ref="ref ref"), "the KL to the reference is missing"),
    (updates(clip=False), "the clip is gone"),
    (updates(rounds=1), "only one update"),
    (updates(rounds=4), "the value is not right"),
    (updates(direction=-1), "it goes downhill"),
    (updates(last="ref"), "the value is not right"),
    (lambda *a: updates()(*a)[0], "shape is not right"),
    (lambda *a: [updates()(*a)[0].abs(), updates()(*a)[1]], "take no abs"),
    (lambda *a: updates()(*a[:-1], 0.8), "the value is not right"),
    (lambda x, *z: updates()(x.sub_(x.mean()), *z), "logits in place"),
]


RIGHT = {
    "09-roll-out": [
        roll_out_in_loops,
        roll_out_first_and_cut_afterwards,
        roll_out(),
        roll_out_as_lists,
    ],
    "09-surrogate": [surrogate_in_loops, surrogate_with_a_matrix, surrogate(), surrogate_by_pairs],
    "09-two-rulers": [rulers_in_loops, rulers_by_the_best_policy, rulers(), rulers_in_torch],
    "09-updates": [updates_with_torch, updates(), updates_on_paper],
}

WRONG = {
    "09-roll-out": WRONG_ROLL_OUT,
    "09-surrogate": WRONG_SURROGATE,
    "09-two-rulers": WRONG_RULERS,
    "09-updates": WRONG_UPDATES,
}
