"""Answers to the exercises of lesson 06 as learners write them."""

import math

import torch

# Exercise 06-left: right answers in other styles, then wrong ones with what they are told.


def left_in_loops(log_probs, old_log_probs, mask):
    tokens, responses = [], []
    for new, old, counts in zip(log_probs, old_log_probs, mask, strict=True):
        x = [(n - o).item() for n, o, c in zip(new, old, counts, strict=True) if c]
        tokens += x
        responses.append(sum(x))

    def share(x):
        r = [math.exp(y - max(x)) for y in x]
        return sum(r) ** 2 / (len(r) * sum(y * y for y in r))

    return share(responses), share(tokens)


def left(share=None, pick=lambda x, m: x[m], whole=lambda x, m: (x * m).sum(1), sign=1):
    def by_weights(x):
        return 1 / (x.softmax(0) ** 2).sum() / x.numel()

    def answer(new, old, mask):
        x = sign * (new - old)
        return (share or by_weights)(whole(x, mask)), (share or by_weights)(pick(x, mask))

    return answer


def left_by_variance(new, old, mask):
    x = torch.where(mask, new - old, 0.0)
    both = []
    for y in (x.sum(1), x[mask]):
        r = (y - y.max()).exp()
        both.append(1 / (1 + r.var(correction=0) / r.mean() ** 2))
    return both


WRONG_LEFT = [
    (left(lambda x: x.exp().sum() ** 2 / (x.exp() ** 2).sum() / len(x)), "exp(800)"),
    (left(lambda x: 1 / (x.exp() ** 2).mean()), "holds where the mean ratio is 1"),
    (left(lambda x: 1 / (x.softmax(0) ** 2).sum()), "these are sizes"),
    (left(sign=-1), "upside down"),
    (left(pick=lambda x, m: x.flatten()), "the value is not right"),
    (left(pick=lambda x, m: x.flatten(), whole=lambda x, m: x.sum(1)), "the padding counts: cut"),
    (left(pick=lambda x, m: (x * m).flatten()), "not the ratio 1"),
    (left(whole=lambda x, m: (x * m).sum(1) / m.sum(1)), "not their mean"),
    (left(whole=lambda x, m: (x * m).sum(0)), "the value is not right"),
    (lambda *a: left()(*a)[::-1], "the value is not right"),
    (lambda *a: left()(*a)[0], "expected 2 numbers"),
    (lambda n, o, m: left()(n.sub_(1), o, m), "log_probs in place"),
]


# Exercise 06-whose-kl.


def whose_in_loops(logs):
    codes = []
    for run in logs:
        zero = run.abs() < 1e-6
        if not zero[0, 0]:
            codes.append(3)
        elif not zero[:, 0].all():
            codes.append(2)
        else:
            codes.append(int(zero.all() and run.shape[1] > 1))
    return codes


def whose(limit=1e-6, looked_at=slice(None), guard=True, codes=(0, 1, 2, 3), of=torch.all):
    def answer(kl):
        zero = kl.abs() <= limit
        fine, same, stale, other = codes
        code = torch.full((len(kl),), fine)
        at_rest = of(zero.all(dim=2), dim=1)
        code[at_rest & (kl.shape[2] > 1 or not guard)] = same
        code[~zero[:, looked_at, 0].all(dim=1)] = stale
        code[~zero[:, 0, 0]] = other
        return code

    return answer


WRONG_WHOSE = [
    (whose(0), "rounding leaves no exact 0"),
    (whose(guard=False), "there 0 is right"),
    (whose(of=torch.any), "taught nothing is no fault"),
    (whose(looked_at=slice(-1, None)), "not only the last"),
    (whose(looked_at=slice(1, 2)), "not only the second"),
    (whose(codes=(0, 1, 2, 2)), "is fault 3"),
    (whose(codes=(0, 1, 3, 2)), "2 and 3 are swapped"),
    (whose(codes=(0, 2, 1, 3)), "the value is not right"),
    (whose(codes=(1, 0, 2, 3)), "the value is not right"),
    (whose(0.01), "the value is not right"),
    (lambda kl: whose()(kl) > 0, "the value is not right"),
    (lambda kl: whose()(kl)[:, None], "shape is not right"),
    (lambda kl: whose()(kl.round_(decimals=6)), "kl_old in place"),
]


# Exercise 06-anchors.


def anchors_in_loops(theta, theta_old, theta_ref, word, worth, price_old, price_ref):
    total = 0
    with torch.no_grad():
        old, ref = theta_old.softmax(-1), theta_ref.softmax(-1)
    for i in range(word.shape[0]):
        for t in range(word.shape[1]):
            p, q, f, v = theta[i, t].softmax(0), old[i, t], ref[i, t], word[i, t]
            total = total + p[v] / q[v] * worth[i, t].item()
            total = total - price_old * (torch.xlogy(q, q) - q * p.log()).sum()
            total = total - price_ref * (p * (p / f).log()).sum()
    return total / word.shape[0]


def anchors_by_torch(logits, old_logits, ref_logits, tokens, advantages, beta_old, beta_ref):
    new = torch.distributions.Categorical(logits=logits.float())
    old = torch.distributions.Categorical(logits=old_logits.float().detach())
    ref = torch.distributions.Categorical(logits=ref_logits.detach().float())
    divergence = torch.distributions.kl_divergence
    ratio = (new.log_prob(tokens) - old.log_prob(tokens)).exp()
    brakes = beta_old * divergence(old, new) + beta_ref * divergence(new, ref)
    return (ratio * advantages.detach() - brakes).sum(-1).mean()


def anchors(
    first="on", second="nr", detach="oar", end=None, upside_down=False, signs=1, careless=False
):
    def kl(p, q):
        log_ratio = p - q if careless else torch.where(p > -math.inf, p - q, 0.0)
        return (p.exp() * log_ratio).sum(-1)

    def answer(x, o, f, k, a, b_old, b_ref):
        named = zip("oar", (o, a, f), strict=True)
        o, a, f = (constant.detach() if name in detach else constant for name, constant in named)
        log = {"n": x.log_softmax(-1), "o": o.log_softmax(-1), "r": f.log_softmax(-1)}
        log_ratio = (log["n"] - log["o"]).gather(-1, k.unsqueeze(-1)).squeeze(-1)
        y = (-log_ratio if upside_down else log_ratio).exp() * a
        y = y - signs * b_old * kl(*(log[c] for c in first))
        y = y - signs * b_ref * kl(*(log[c] for c in second))
        return end(y) if end else y.sum(1).mean()

    return answer


WRONG_ANCHORS = [
    (anchors(careless=True), "0 · log 0 counts as 0"),
    (anchors("no"), "old policy stands first"),
    (anchors("on", "rn"), "second KL: the KL's arguments are swapped"),
    (anchors("no", "rn"), "the value is not right"),
    (anchors("nr", "on"), "the two prices are swapped"),
    (anchors("rn", "on"), "the value is not right"),
    (anchors("nn"), "KL to the old policy is missing"),
    (anchors("on", "nn"), "KL to the reference is missing"),
    (anchors(signs=-1), "KLs are added"),
    (anchors(end=lambda y: y.mean()), "steps are averaged"),
    (anchors(end=lambda y: y.mean(1).sum()), "divided by T"),
    (anchors(end=lambda y: y.sum(0).mean()), "divided by T"),
    (anchors(end=lambda y: y.sum()), "responses are added up"),
    (anchors(upside_down=True), "upside down"),
    (anchors(detach="ar"), "reaches old_logits: detach"),
    (anchors(detach="or"), "reaches advantages: detach"),
    (anchors(detach="oa"), "reaches ref_logits: detach"),
    (anchors(detach="r"), "reaches old_logits and advantages: detach"),
    (lambda *a: anchors()(*a).item(), "no gradient reaches logits"),
    (anchors(end=lambda y: y.sum() / 2), "the value is not right"),
    (anchors("nn", "nn"), "the value is not right"),
    (lambda *a: anchors()(*a).abs(), "take no abs"),
    (lambda x, o, f, *a: anchors()(x, o, f[:, :3], *a) if False else x.sum(), "value is not"),
    (lambda x, o, f, *a: anchors()(x, o.sub_(1), f, *a), "old_logits in place"),
]


RIGHT = {
    "06-left": [left_in_loops, left_by_variance, left()],
    "06-whose-kl": [whose_in_loops, whose()],
    "06-anchors": [anchors_in_loops, anchors_by_torch, anchors()],
}

WRONG = {
    "06-left": WRONG_LEFT,
    "06-whose-kl": WRONG_WHOSE,
    "06-anchors": WRONG_ANCHORS,
}
