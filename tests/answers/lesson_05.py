"""Answers to the exercises of lesson 05 as learners write them."""

import torch

# Exercise 05-to-go: right answers in other styles, then wrong ones with what they are told.


def to_go_by_flipping(reward, divergence, price, counts):
    divergence = torch.where(counts, divergence, 0.0)
    from_here_on = divergence.flip(2).cumsum(2).flip(2)
    g = reward.unsqueeze(2) - price.view(-1, 1, 1) * (from_here_on - divergence)
    return g.float() * counts


def to_go_as_lists(rewards, kl, beta, mask):
    runs = []
    for r, divergences, price, counts in zip(rewards, kl, beta, mask, strict=True):
        rows = []
        for i in range(len(r)):
            own = [t for t in range(len(counts[i])) if counts[i, t]]
            row = [0] * len(counts[i])
            for t in own:
                row[t] = r[i] - price * sum(divergences[i, s] for s in own if s > t)
            rows.append(row)
        runs.append(rows)
    return runs


def to_go_in_a_loop(rewards, kl, beta, mask):
    g = torch.zeros_like(kl)
    later = torch.zeros_like(rewards)
    for t in reversed(range(kl.shape[2])):
        g[..., t] = (rewards - beta[:, None] * later) * mask[..., t]
        later = torch.where(mask[..., t], later + kl[..., t], later)
    return g


def to_go(keep_present=False, leak=False, cut=True):
    def answer(rewards, kl, beta, mask):
        kl = kl if leak else torch.where(mask, kl, 0.0)
        later = kl.flip(2).cumsum(2).flip(2) - (0 if keep_present else kl)
        g = rewards[..., None] - beta[:, None, None] * later
        return g.masked_fill(~mask, 0) if cut else g

    return answer


def to_go_clamped(small):
    """Guesses the padding by its size, as one could when it was always 99."""
    return lambda r, kl, b, m: to_go(leak=True)(r, kl.where(small(kl), 0), b, m)


WRONG_TO_GO = [
    (to_go(leak=True, cut=False), "the mask is not used at all"),
    (to_go(cut=False), "where the mask is False it must be 0"),
    (to_go_clamped(lambda kl: kl < 50), "the value is not right"),
    (to_go_clamped(lambda kl: (kl < 50) & (kl > 0)), "the value is not right"),
    (to_go_clamped(torch.isfinite), "the value is not right"),
    (lambda r, kl, b, m: to_go(leak=True)(r, kl * m, b, m), "nan comes of"),
    (
        lambda r, kl, b, m: to_go()(r, kl.masked_fill(~m.cumprod(2).bool(), 0), b, m),
        "goes on behind the tool's",
    ),
    (to_go(keep_present=True), "KL of the present step is in it"),
    (lambda r, kl, b, m: to_go()(r, kl, b**0, m), "β is missing"),
    (lambda r, kl, b, m: to_go()(r, kl, b.mean().expand(len(b)), m), "the value is not right"),
    (lambda r, kl, b, m: to_go()(r, kl, b[:1].expand(len(b)), m), "each run has a β of its own"),
    (lambda r, kl, b, m: to_go()(r, kl, -b, m), "KL is added"),
    (lambda r, kl, b, m: r[..., None] * m, "this is R alone"),
    (
        lambda r, kl, b, m: (r - b[:, None] * kl.masked_fill(~m, 0).sum(2))[..., None] * m,
        "pays for the whole response",
    ),
    (
        lambda r, kl, b, m: (r[..., None] - b[:, None, None] * kl.where(m, 0).cumsum(2)) * m,
        "runs from the front",
    ),
    (lambda r, kl, b, m: r - b[:, None] * kl.where(m, 0).sum(2), "shape is not right"),
    (lambda *a: to_go()(*a).abs(), "take no abs"),
    (lambda r, kl, b, m: to_go()(r, kl.masked_fill_(~m, 0), b, m), "kl in place"),
]


# Exercise 05-gae.


def advantage_in_loops(rewards, lp, ref, v, price, lam, counts):
    a = torch.zeros(lp.shape)
    for i in range(len(counts)):
        following, value_after = 0.0, 0.0
        length = int(counts[i].sum())
        for t in range(length - 1, -1, -1):
            r = -price * (lp[i, t] - ref[i, t]).item() + (
                rewards[i].item() if t == length - 1 else 0
            )
            following = r + value_after - v[i, t].item() + lam * following
            a[i, t], value_after = following, v[i, t].item()
    return a


def advantage_as_lists(r, lp, ref, v, beta, lam, mask):
    rows = []
    for i, counts in enumerate(mask.tolist()):
        n = sum(counts)
        row = [0.0] * (len(counts) - n)
        for t in reversed(range(n)):
            more = v[i, t + 1] + lam * row[0] if t + 1 < n else r[i]
            row.insert(0, (more - beta * (lp[i, t] - ref[i, t]) - v[i, t]).detach())
        rows.append(row)
    return rows


def advantage(
    leak=False, last_column=False, charge=lambda x: x, factor=lambda lam: lam, after=1, now=1
):
    def answer(rewards, lp, ref, v, beta, lam, mask):
        ratio, v = (x if leak else x.masked_fill(~mask, 0) for x in (lp - ref, v))
        n = mask.shape[1]
        last = torch.full_like(mask.sum(1), n) if last_column else mask.sum(1)
        r = -beta * charge(ratio)
        r = r + rewards[:, None] * (torch.arange(n) == last[:, None] - 1)
        a, running = [], torch.zeros_like(rewards)
        for t in reversed(range(n)):
            following = after * v[:, t + 1] if t + 1 < n else 0.0
            running = r[:, t] + following - now * v[:, t] + factor(lam) * running
            running = running.masked_fill(~mask[:, t], 0)
            a.insert(0, running)
        return torch.stack(a, dim=1)

    return answer


def constant(answer):
    return lambda *a: answer(*a).detach()


def with_gradient(k):
    """The right answer that forgot to cut one of its two inputs off."""
    return lambda *a: advantage()(
        *[x.detach() if i in (1, 3) and i != k else x for i, x in enumerate(a)]
    )


def cut_at_the_end(r, lp, ref, v, beta, lam, mask):
    """R where it belongs, and in all else the padding only cut off the result."""
    leaky = advantage(leak=True)(0 * r, lp, ref, v, beta, lam, mask | True)
    return (leaky + advantage()(r, ref, ref, 0 * v, beta, lam, mask)).detach().where(mask, 0)


WRONG_GAE = [
    (advantage(), "a gradient reaches log_probs and values: detach"),
    (with_gradient(1), "a gradient reaches log_probs: detach"),
    (with_gradient(3), "a gradient reaches values: detach"),
    (constant(advantage(leak=True)), "value behind the last token counts"),
    (constant(advantage(last_column=True)), "not to the last column"),
    (constant(advantage(charge=torch.neg)), "KL is added"),
    (advantage(charge=torch.neg), "KL is added; it has to be subtracted; and detach"),
    (constant(advantage(charge=lambda x: 0 * x)), "the log-ratios are missing"),
    (constant(advantage(charge=lambda x: (-x).exp() - 1 + x)), "this charges k3"),
    (constant(advantage(charge=lambda x: x**2 / 2)), "this charges k2"),
    (constant(advantage(charge=torch.abs)), "the value is not right"),
    (constant(advantage(factor=lambda lam: 1)), "λ is missing"),
    (constant(advantage(factor=lambda lam: 0)), "later surprises are missing"),
    (constant(advantage(after=0)), "the next value is missing"),
    (constant(advantage(now=0)), "the present value is not subtracted"),
    (constant(advantage(after=0, now=0)), "the values are missing"),
    (lambda *a: advantage(leak=True)(*a[:-1], a[-1] | True).detach(), "not used at all"),
    (cut_at_the_end, "padding leaks in"),
    (
        lambda r, *a: advantage(leak=True)(r, *[x * a[-1] for x in a[:3]], *a[3:]).detach(),
        "nan comes of",
    ),
    (lambda *a: advantage()(*a).detach().abs(), "take no abs"),
    (lambda *a: advantage()(*a).detach().relu(), "do not cut it off"),
    (lambda r, lp, ref, v, *a: advantage()(r, lp, ref, v.masked_fill_(~a[-1], 0), *a), "values in"),
]


# Exercise 05-dropped.


def diagnose_by_least_squares(p, q, table, pi, sigma):
    x, y = (sigma / q).log(), (table - table.mean(1, keepdim=True)).flatten()
    centred = (x - x.mean(1, keepdim=True)).flatten()
    price = 1 / torch.linalg.lstsq(y[:, None], centred[:, None]).solution.item()
    rows = torch.stack([-(sigma * x).sum(1), torch.ones(len(p))], dim=1).double()
    told = (pi / p).log() - (sigma * table).sum(1) / price
    return price, torch.linalg.lstsq(rows, told[:, None]).solution[0, 0]


def diagnose_by_one_pair(p, q, table, pi, sigma):
    x = sigma.log() - q.log()
    u = max(range(len(p)), key=lambda i: table[i].max() - table[i].min())
    a, b = table[u].argmax(), table[u].argmin()
    beta = (table[u, a] - table[u, b]) / (x[u, a] - x[u, b])
    gross, kl = (sigma * table).sum(1), (sigma * x).sum(1)
    i, j = kl.argmax(), kl.argmin()
    w = beta * (pi.log() - p.log())
    return [beta, (gross[i] - gross[j] - w[i] + w[j]) / (beta * (kl[i] - kl[j]))]


def diagnose(log=torch.log, mean=lambda q, s: s, paid=lambda q, s, x: (s * x).sum(1), base=True):
    def answer(p, q, table, pi, sigma):
        x = log(sigma) - log(q)
        contrast = table - table.mean(1, keepdim=True)
        beta = (contrast**2).sum() / (contrast * x).sum()
        kl = paid(q, sigma, x)
        missing = (mean(q, sigma) * table).sum(1) - beta * (log(pi) - log(p))
        if base:
            missing, kl = missing - missing.mean(), kl - kl.mean()
        return beta, (missing * kl).sum() / (beta * (kl * kl).sum())

    return answer


def then(change):
    return lambda *a: change(*diagnose()(*a))


def first_row_only(p, q, table, pi, sigma):
    x = (sigma / q).log()
    beta = (table[0, 0] - table[0, 1]) / (x[0, 0] - x[0, 1])
    return beta, diagnose()(p, q, table, pi, sigma)[1]


WRONG_DROPPED = [
    (then(lambda beta, c: (1 / beta, c)), "upside down"),
    (diagnose(log=torch.log2), "take natural logarithms"),
    (then(lambda beta, c: (beta, 1 - c)), "c is the share charged"),
    (then(lambda beta, c: (beta, c - 1)), "net value"),
    (then(lambda beta, c: (beta, -c)), "the sign of c"),
    (then(lambda beta, c: (beta, beta * c)), "divide by β too"),
    (then(lambda beta, c: (c, beta)), "swapped"),
    (diagnose(mean=lambda q, s: q), "not the reference"),
    (diagnose(paid=lambda q, s, x: -(q * x).sum(1)), "the policy stands first"),
    (diagnose(paid=lambda q, s, x: (q * x).sum(1)), "weighted by the reference"),
    (diagnose(base=False), "in common says nothing"),
    (then(lambda beta, c: (beta, c.clamp(0, 1))), "is not right"),
    (then(lambda beta, c: beta), "shape is not right"),
    (first_row_only, "the value is not right"),
]


RIGHT = {
    "05-to-go": [to_go_by_flipping, to_go_in_a_loop, to_go_as_lists],
    "05-gae": [advantage_in_loops, advantage_as_lists, constant(advantage())],
    "05-dropped": [diagnose_by_least_squares, diagnose_by_one_pair, diagnose()],
}

WRONG = {"05-to-go": WRONG_TO_GO, "05-gae": WRONG_GAE, "05-dropped": WRONG_DROPPED}
