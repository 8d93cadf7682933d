"""Answers to the exercises of lesson 06 as learners write them."""

import torch

# Exercise 06-bug: right answers in other styles, then wrong ones with what they are told.


def bug_with_products(new, old, worth, counts):
    ratios = torch.where(counts, new.exp() / old.detach().exp(), 1.0)
    return torch.dot(ratios.prod(dim=1), worth.detach()) / len(worth)


def bug_in_single_precision(log_probs, old_log_probs, advantages, mask):
    total = 0
    for i in range(len(mask)):
        with torch.no_grad():
            old, a = old_log_probs[i].float(), advantages[i].float()
        total += ((log_probs[i].float() - old) * mask[i]).sum().exp() * a
    return total / len(mask)


def bug_in_logs(log_probs, old_log_probs, advantages, mask):
    x = log_probs - torch.from_numpy(old_log_probs.numpy(force=True))
    of_response = torch.stack([row[counts].sum() for row, counts in zip(x, mask, strict=True)])
    return torch.einsum("b,b->", of_response.exp(), advantages.detach()) / advantages.numel()


def bug(n, o, a, m, sign=1):
    return ((sign * (n - o) * m).sum(1).exp() * a).mean()


WRONG_BUG = [
    (lambda n, o, a, m: bug(n, o.detach(), a.detach(), m, -1), "upside down"),
    (lambda n, o, a, m: bug(n, o.detach(), a.detach(), m | True), "padding counts"),
    (lambda n, o, a, m: -bug(n, o.detach(), a.detach(), m), "sign is wrong"),
    (lambda n, o, a, m: bug(n, o.detach(), a.detach(), m) * len(a), "responses are added up"),
    (bug, "reaches old_log_probs and advantages: detach"),
    (lambda n, o, a, m: bug(n, o, a.detach(), m), "reaches old_log_probs: detach"),
    (lambda n, o, a, m: bug(n, o.detach(), a, m), "reaches advantages: detach"),
    (lambda n, o, a, m: bug(n, o, a, m).detach(), "lost its gradient"),
    (
        lambda n, o, a, m: (((n - o.detach()).exp() * m).sum(1) * a.detach()).mean(),
        "ratios are added",
    ),
    (
        lambda n, o, a, m: (((n - o.detach()).exp() * a.detach()[:, None])[m]).mean(),
        "the value is not right",
    ),
    (lambda n, o, a, m: bug(n, o, a, m)[None], "shape is not right"),
    (lambda n, o, a, m: bug(n, o.detach(), a.detach(), m) * len(a) / 2, "the value is not right"),
    (lambda n, o, a, m: bug(n, o.detach(), a.detach(), m).abs(), "take no abs"),
    (lambda n, o, a, m: bug(n, o.detach(), a.detach(), m).relu(), "do not cut it off"),
    (lambda n, o, a, m: bug(n, o.detach().mul_(m), a.detach(), m), "old_log_probs in place"),
    (
        lambda n, o, a, m: (((n - o.detach()).exp() * m).sum(1) / m.sum(1) @ a.detach()) / len(a),
        "ratios are averaged",
    ),
]


# Exercise 06-clip.


def clip_in_loops(new, old, worth, counts, eps):
    total = torch.zeros(())
    for i in range(len(new)):
        for t in range(new.shape[1]):
            if counts[i, t]:
                r, a = torch.exp(new[i, t] - old[i, t].item()), worth[i, t].item()
                held = torch.clip(r, 1 - eps, 1 + eps)
                total = total + min(r * a, held * a)
    return total / len(new)


def clip_by_signs(log_probs, old_log_probs, advantages, mask, epsilon):
    r = (log_probs.float() - old_log_probs.float().detach()).exp()
    a = torch.where(mask, advantages.float().detach(), 0.0)
    held = torch.where(a > 0, r.clamp(max=1 + epsilon), r.clamp(min=1 - epsilon))
    return torch.einsum("bt,bt->", held, a) / len(a)


def clip(
    pick=torch.minimum,
    ratio=lambda n, o: torch.exp(n - o),
    end=lambda x, m: (x * m).sum() / len(m),
    detach=(True, True),
):
    def answer(n, o, a, m, e):
        o, a = o.detach() if detach[0] else o, a.detach() if detach[1] else a
        r = ratio(n, o)
        return end(pick(r * a, torch.clamp(r, 1 - e, 1 + e) * a), m)

    return answer


WRONG_CLIP = [
    (clip(torch.maximum), "maximum is taken"),
    (clip(lambda r, c: c), "the minimum is missing"),
    (clip(lambda r, c: r), "the clip is missing"),
    (clip(lambda r, c: -torch.minimum(r, c)), "sign is wrong"),
    (clip(ratio=lambda n, o: torch.exp(o - n)), "upside down"),
    (clip(ratio=lambda n, o: n - o), "exponential is missing"),
    (clip(ratio=lambda n, o: n / o), "the value is not right"),
    (clip(end=lambda x, m: x.sum(1).mean()), "padding counts"),
    (clip(end=lambda x, m: x[m].mean()), "averaged over all tokens"),
    (clip(end=lambda x, m: (x * m).mean()), "averaged over [B, T]"),
    (clip(end=lambda x, m: ((x * m).sum(1) / m.sum(1)).mean()), "a mean of means"),
    (clip(end=lambda x, m: x[m].sum()), "responses are added up"),
    (clip(end=lambda x, m: (x * m).sum(1)), "shape is not right"),
    (clip(detach=(False, True)), "reaches old_log_probs: detach"),
    (clip(detach=(True, False)), "reaches advantages: detach"),
    (clip(detach=(False, False)), "reaches old_log_probs and advantages: detach"),
    (lambda *a: clip()(*a).detach(), "no gradient reaches log_probs"),
    (clip(end=lambda x, m: (x * m).sum() / 2), "the value is not right"),
    (clip(end=lambda x, m: x[m].mean() * m.shape[1]), "over tokens times T"),
    (clip(end=lambda x, m: (x * m).sum() / m.shape[1]), "divided by T"),
    (lambda *a: clip()(*a).abs(), "take no abs"),
    (lambda n, o, a, m, e: clip()(n, o, a.mul_(m), m, e), "advantages in place"),
    (
        lambda n, o, a, m, e: (
            ((n - o.detach()).exp().clamp(max=1 + e) * a.detach()).masked_fill(~m, 0).sum() / len(m)
        ),
        "by A before the minimum",
    ),
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
            total = total - price_old * (q * (q / p).log()).sum()
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


def anchors(first="on", second="nr", detach="oar", end=None, upside_down=False, signs=1):
    def kl(p, q):
        return (p.exp() * (p - q)).sum(-1)

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
    (anchors("no"), "old policy stands first"),
    (anchors("on", "rn"), "second KL: the KL's arguments are swapped"),
    (anchors("no", "rn"), "both KLs are turned round"),
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
    (anchors("nn", "nn"), "both KLs are missing"),
    (lambda *a: anchors()(*a).abs(), "take no abs"),
    (lambda x, o, f, *a: anchors()(x, o, f[:, :3], *a) if False else x.sum(), "value is not"),
    (lambda x, o, f, *a: anchors()(x, o.sub_(1), f, *a), "old_logits in place"),
]


RIGHT = {
    "06-bug": [bug_with_products, bug_in_single_precision, bug_in_logs],
    "06-clip": [clip_in_loops, clip_by_signs, clip()],
    "06-anchors": [anchors_in_loops, anchors_by_torch, anchors()],
}

WRONG = {
    "06-bug": WRONG_BUG,
    "06-clip": WRONG_CLIP,
    "06-anchors": WRONG_ANCHORS,
}
