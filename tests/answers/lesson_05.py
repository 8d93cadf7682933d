"""Answers to the exercises of lesson 05 as learners write them."""

import torch

# Exercise 05-to-go: right answers in other styles, then wrong ones with what they are told.


def to_go_by_flipping(reward, divergence, price, counts):
    divergence = torch.where(counts, divergence, 0.0)
    from_here_on = divergence.flip(1).cumsum(1).flip(1)
    return (reward.unsqueeze(1) - price * (from_here_on - divergence)) * counts


def to_go_by_a_triangle(rewards, kl, beta, mask):
    later = torch.ones(kl.shape[1], kl.shape[1]).tril(-1).double()  # [t', t]
    g = rewards[:, None].float() - beta * (kl.masked_fill(~mask, 0) @ later).float()
    return g * mask


def to_go_as_lists(rewards, kl, beta, mask):
    rows = []
    for r, row, counts in zip(rewards, kl, mask, strict=True):
        n = int(counts.sum())
        rows.append([r - beta * row[t + 1 : n].sum() if t < n else 0 for t in range(len(row))])
    return rows


def to_go_in_a_loop(rewards, kl, beta, mask):
    g = torch.zeros_like(kl)
    later = torch.zeros_like(rewards)
    for t in reversed(range(kl.shape[1])):
        g[:, t] = (rewards - beta * later) * mask[:, t]
        later = torch.where(mask[:, t], later + kl[:, t], later)
    return g


def to_go(keep_present=False, leak=False, cut=True, detach=False):
    def answer(rewards, kl, beta, mask):
        kl = kl if leak else torch.where(mask, kl, 0.0)
        kl = kl.detach() if detach else kl
        later = kl.flip(1).cumsum(1).flip(1) - (0 if keep_present else kl)
        g = rewards[:, None] - beta * later
        return g * mask if cut else g

    return answer


WRONG_TO_GO = [
    (to_go(leak=True), "padding is charged"),
    (to_go(cut=False), "behind the mask it must be 0"),
    (to_go(leak=True, cut=False), "the mask is not used at all"),
    (to_go(keep_present=True), "KL of the present step is in it"),
    (to_go(detach=True), "no gradient reaches kl"),
    (lambda r, kl, b, m: to_go()(r, kl, b, m).detach(), "no gradient reaches rewards"),
    (lambda r, kl, b, m: to_go()(r, kl, 1.0, m), "β is missing"),
    (lambda r, kl, b, m: to_go()(r, kl, -b, m), "KL is added"),
    (lambda r, kl, b, m: r[:, None] * m, "this is R alone"),
    (
        lambda r, kl, b, m: (r - b * kl.masked_fill(~m, 0).sum(1))[:, None] * m,
        "pays for the whole response",
    ),
    (
        lambda r, kl, b, m: (r[:, None] - b * kl.masked_fill(~m, 0).cumsum(1)) * m,
        "runs from the front",
    ),
    (lambda r, kl, b, m: r - b * kl.masked_fill(~m, 0).sum(1), "shape is not right"),
    (lambda r, kl, b, m: to_go()(r, kl, b / 2, m), "the value is not right"),
    (lambda r, kl, b, m: to_go(leak=True)(r, kl * m, b, m), "nan comes of"),
    (lambda *a: to_go()(*a).abs(), "take no abs"),
    (lambda *a: to_go()(*a).clamp(min=0), "do not cut it off"),
    (lambda r, kl, b, m: to_go()(r, kl[:, :3], b, m[:, :3]), "shape is not right"),
    (lambda r, kl, b, m: to_go()(r, kl.masked_fill_(~m, 0), b, m), "kl in place"),
]


# Exercise 05-gae.


def gae_by_a_double_sum(rewards, v, counts, g, lam):
    b, n = rewards.shape
    rewards, v = (torch.where(counts, x, 0.0) for x in (rewards, v))
    v = torch.cat([v, torch.zeros(b, 1)], dim=1)
    delta = rewards + g * v[:, 1:] - v[:, :-1]
    powers = torch.tensor(
        [[(g * lam) ** max(k - t, 0) * (k >= t) for k in range(n)] for t in range(n)]
    )
    return torch.einsum("bk,tk->bt", delta, powers.double()) * counts


def gae_into_a_ready_tensor(step_rewards, values, mask, gamma, lam):
    a = torch.zeros(step_rewards.shape)
    for i in range(len(mask)):
        length = int(mask[i].sum())
        following, value_after = 0.0, 0.0
        for t in range(length - 1, -1, -1):
            delta = step_rewards[i, t] + gamma * value_after - values[i, t]
            following = delta + gamma * lam * following
            a[i, t] = following
            value_after = values[i, t]
    return a


def gae_as_lists(step_rewards, values, mask, gamma, lam):
    rows = []
    for r, v, counts in zip(step_rewards, values, mask.tolist(), strict=True):
        row = [0.0] * (len(counts) - sum(counts))
        for t in reversed(range(sum(counts))):
            more = gamma * v[t + 1] + gamma * lam * row[0] if t + 1 < sum(counts) else 0
            row.insert(0, r[t] - v[t] + more)
        rows.append(row)
    return rows


def gae_in_columns(leak=False, gamma_next=True, factor=lambda g, lam: g * lam, detach=False):
    def answer(r, v, mask, g, lam):
        a, last, n = torch.zeros_like(r), torch.zeros(len(r)), r.shape[1]
        r, v = (x if leak else x.masked_fill(~mask, 0) for x in (r, v))
        for t in reversed(range(n)):
            after = v[:, t + 1] if t + 1 < n else 0 * v[:, 0]
            after = after.detach() if detach else after
            delta = r[:, t] + (g if gamma_next else 1) * after - v[:, t]
            last = (delta + factor(g, lam) * last) * mask[:, t]
            a[:, t] = last
        return a

    return answer


WRONG_GAE = [
    (gae_in_columns(leak=True), "value behind the last token counts"),
    (gae_in_columns(gamma_next=False), "γ is missing before the next value"),
    (gae_in_columns(factor=lambda g, lam: lam), "γ is missing in the recursion"),
    (gae_in_columns(factor=lambda g, lam: g), "λ is missing"),
    (gae_in_columns(False, False, lambda g, lam: lam), "γ is missing in both places"),
    (gae_in_columns(factor=lambda g, lam: 0), "later surprises are missing"),
    (gae_in_columns(detach=True), "the next value lost its gradient"),
    (gae_in_columns(factor=lambda g, lam: 1 - lam), "the value is not right"),
    (lambda *a: gae_in_columns()(*a).detach(), "no gradient reaches step_rewards"),
    (
        lambda r, v, m, g, lam: gae_in_columns()(r, v.detach(), m, g, lam),
        "no gradient reaches values",
    ),
    (
        lambda r, v, m, g, lam: gae_in_columns()(r, torch.zeros_like(v), m, g, lam),
        "the values are missing",
    ),
    (
        lambda r, v, m, g, lam: gae_in_columns(leak=True)(r, v, m | True, g, lam),
        "the mask is not used at all",
    ),
    (
        lambda r, v, m, g, lam: gae_in_columns(leak=True)(r, v, m | True, g, lam) * m,
        "padding leaks in",
    ),
    (lambda *a: gae_in_columns()(*a).abs(), "take no abs"),
    (lambda *a: gae_in_columns()(*a).relu(), "do not cut it off"),
    (lambda r, v, m, *a: gae_in_columns(leak=True)(r * m, v * m, m, *a), "nan comes of"),
    (lambda r, v, m, g, lam: gae_in_columns()(r, v.masked_fill_(~m, 0), m, g, lam), "values in"),
    (lambda r, v, m, *a: gae_in_columns()(r[:, :3], v[:, :3], m[:, :3], *a), "shape is not"),
]


# Exercise 05-best-tokens.


def best_tokens_in_loops(p, q, reward, price):
    after = torch.stack(
        [price * (q[u] * (reward[u] / price).exp()).sum().log() for u in range(len(p))]
    )
    start = price * (p * (after / price).exp()).sum().log()
    first = p * ((after - start) / price).exp()
    return [start, first, q * ((reward - after[:, None]) / price).exp()]


def best_tokens_in_single_precision(p_first, p_second, rewards, beta):
    second = p_second.float().log() + rewards.float() / beta
    joint = (p_first.float().log()[:, None] + second).flatten()
    whole = joint.softmax(0).view_as(second)
    return beta * joint.logsumexp(0), whole.sum(1), second.softmax(1)


def best_tokens(
    value, policy=lambda p, w, b: (p * (w / b).exp()) / (p * (w / b).exp()).sum(-1, True)
):
    def answer(p, q, r, b):
        after = value(q, r, b)
        return b * (p * (after / b).exp()).sum().log(), policy(p, after, b), policy(q, r, b)

    return answer


def soft(q, r, b):
    return b * (q * (r / b).exp()).sum(-1).log()


def tilted(q, r, b):
    return (q.log() + r / b).softmax(-1)


def best_tokens_with_beta_in_the_exponent(p, q, r, b):
    after = b * (q * (b * r).exp()).sum(1).log()
    first, second = p * (b * after).exp(), q * (b * r).exp()
    return b * first.sum().log(), first / first.sum(), second / second.sum(1, keepdim=True)


WRONG_BEST_TOKENS = [
    (best_tokens(lambda q, r, b: (tilted(q, r, b) * r).sum(1)), "the KL paid in it is forgotten"),
    (best_tokens(lambda q, r, b: (q * r).sum(1)), "the reference goes on"),
    (best_tokens(lambda q, r, b: r.amax(1)), "the maximum is a smooth one"),
    (best_tokens(lambda q, r, b: r.mean(1)), "the value is not right"),
    (best_tokens(lambda q, r, b: (q * (r / b).exp()).sum(1).log()), "states after the first"),
    (lambda p, q, r, b: best_tokens(soft)(p, q, r, 1.0), "β is missing"),
    (best_tokens_with_beta_in_the_exponent, "β multiplies"),
    (lambda p, q, r, b: best_tokens(soft)(p, q, r.T, b), "rows and columns are swapped"),
    (best_tokens(soft, lambda p, w, b: p * (w / b).exp()), "do not sum to 1"),
    (best_tokens(soft, lambda p, w, b: (w / b).softmax(-1)), "the value is not right"),
    (lambda p, q, r, b: best_tokens(soft)(p, q, r, b)[0], "shape is not right"),
    (lambda p, q, r, b: best_tokens(soft)(p, q, r.sub_(1), b), "rewards in place"),
    (lambda p, q, r, b: best_tokens(soft)(p, q, r.detach(), b), "no gradient reaches rewards"),
    (
        lambda p, q, r, b: best_tokens(lambda *a: soft(*a).detach())(p, q, r, b),
        "gradient is not right",
    ),
]


RIGHT = {
    "05-to-go": [to_go_by_flipping, to_go_by_a_triangle, to_go_in_a_loop, to_go_as_lists],
    "05-gae": [gae_by_a_double_sum, gae_into_a_ready_tensor, gae_in_columns(), gae_as_lists],
    "05-best-tokens": [best_tokens_in_loops, best_tokens_in_single_precision, best_tokens(soft)],
}

WRONG = {
    "05-to-go": WRONG_TO_GO,
    "05-gae": WRONG_GAE,
    "05-best-tokens": WRONG_BEST_TOKENS,
}
