"""Lesson 09, RLHF, its second exercise: the surrogate of form (B)."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import hide, normal, random_mask, same, sizes, uniform


def _batch(generator: Generator, k: int) -> dict:
    b, t = sizes(k, 2)
    mask = random_mask(b, t, generator)
    ref = -0.5 - normal(b, t, generator=generator).abs()
    new = (ref + 0.5 * normal(b, t, generator=generator)).round(decimals=2)
    padded = {"log_probs": new.masked_fill(~mask, 99), "ref_log_probs": ref.masked_fill(~mask, 9)}
    rewards, beta = normal(b, generator=generator), uniform(0.3, 0.8, generator)
    return padded | {"rewards": rewards, "mask": mask, "beta": beta}


def _by_pairs(log_probs, ref_log_probs, rewards, mask, beta) -> Tensor:
    """A_i is the sum of f_i - f_j over j, divided by B - 1."""
    rows = list(zip(log_probs, ref_log_probs.detach(), rewards.tolist(), mask, strict=True))
    f = [r - beta * (n.detach().exp() / q.exp())[m].prod().log().item() for n, q, r, m in rows]
    total = 0
    for f_i, (n, _, _, m) in zip(f, rows, strict=True):
        total = total + sum(f_i - f_j for f_j in f) * n[m].sum()
    return total / (len(f) - 1) / len(f)


def _loo(f: Tensor, f_of_others: Tensor) -> Tensor:
    return f - (f_of_others.sum() - f_of_others) / (len(f) - 1)


def _going(n, q, r, m, b):
    """The baseline of the package: the mean of those that are still going at the same step."""
    f = (r - b * hide(n - q, m).sum(1))[:, None] * m
    others = (f.sum(0) - f) / (m.sum(0) - 1).clamp(min=1)
    return (hide(f - others, m).detach() * hide(n, m)).sum(1).mean()


def _to_go(n, q, r, m, b, same_step=True):
    """A token pays for the tokens from it on, as in a reward-to-go."""
    f = r[:, None] - b * hide(n - q, m).flip(1).cumsum(1).flip(1)
    told = f if same_step else f[:, :1]  # column 0 is the whole response's
    others = (told.sum(0) - told) / (len(f) - 1)
    return ((f - others).detach() * hide(n, m)).sum(1).mean()


def _in_the_loss(n, q, r, m, b):
    return (_loo(r, r).detach() * hide(n, m).sum(1) - b * hide(n - q, m).sum(1)).mean()


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return x.sum(1) / mask.sum(1)


def _form_b(
    a=lambda f, r: _loo(f, f), fix=Tensor.detach, k=lambda x, m: x.sum(1), hide=hide, last=hide,
    end=lambda x, m: x.mean(), use=same, price=same, less=torch.sub, whole=lambda x, m: x.sum(1),
):  # fmt: skip
    """The surrogate with something else in the place of some of it."""

    def answer(n, q, r, m, b):
        advantage = a(r - price(b) * k(hide(less(n, q), m), m), r)
        return end(fix(advantage) * use(whole(last(n, m), m)), m)

    return answer


SURROGATE = Exercise(
    name="09-surrogate",
    draw=_batch,
    route=_by_pairs,
    differentiate=("log_probs",),
    constants=("ref_log_probs", "rewards"),
    own=("policy_gradient_surrogate", "leave_one_out", "train"),
    mistakes={
        "the advantages are constants: detach them": _form_b(fix=same),
        "right on average, but the others that have ended count in the mean too": _going,
        "the penalty is that of the whole response, not of the tokens from t on": _to_go,
        "the penalty is that of the whole response (as the others'), not of the tokens from t on":
            (lambda *x: _to_go(*x, same_step=False)),
        "the mean of the others is not subtracted": _form_b(a=same),
        "the response itself is in the mean; only the others are":
            _form_b(a=lambda f, r: f - f.mean()),
        "the others' mean reward is subtracted; take their net worth": _form_b(a=_loo),
        "the others are added up; divide by B - 1": _form_b(a=lambda f, r: 2 * f - f.sum()),
        "the others are divided by B; divide by B - 1":
            _form_b(a=lambda f, r: f - (f.sum() - f) / len(f)),
        "the reference is missing in the penalty": _form_b(less=lambda n, q: n),
        "padding counts in the log-ratio": _form_b(hide=same),
        "padding counts in the last sum": _form_b(last=same),
        "the mask is not used at all": _form_b(hide=same, last=same),
        "the penalty is missing": _form_b(price=lambda b: 0),
        "β is missing": _form_b(price=lambda b: 1),
        "the log-ratio is added; subtract policy less reference": _form_b(price=lambda b: -b),
        "the log-ratios are averaged; add them up": _form_b(k=_mean),
        "the last log-probabilities are averaged; add them up": _form_b(whole=_mean),
        "it is not divided by B": _form_b(end=lambda x, m: x.sum()),
        "this is a mean over tokens; divide by B": _form_b(end=lambda x, m: x.sum() / m.sum()),
        "the sign is wrong: it is to be maximised": _form_b(end=lambda x, m: -x.mean()),
        "A multiplies a probability, not its logarithm": _form_b(use=torch.exp),
        "this is k1 in the loss, and its mean gradient is 0: charge it in A": _in_the_loss,
        "a mean of the responses' means; add up their tokens": _form_b(k=_mean, whole=_mean),
        "the mean over tokens times T is no mean over responses":
            _form_b(end=lambda x, m: x.sum() / m.sum() * m.shape[1]),
    },
)  # fmt: skip
