"""The brake: exact Kullback-Leibler divergences, and the estimates made from one sample.

All logarithms are natural, so every divergence is in nats.
"""

import math

import torch
from torch import Tensor

from ppo_toy.axes import takes


@takes(logits_p="...", logits_q="...")
def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Exact KL(p || q) of categorical distributions, one for each leading index.

        KL(p || q) = sum_v p(v) * (log p(v) - log q(v))

    A token with p(v) = 0 adds nothing to the value or to the gradient. The result is inf where
    q(v) = 0 < p(v), however small, and its gradient is then not a number. Both arguments are
    differentiated.

    Args:
        logits_p: unnormalised log-probabilities of p, [..., V].
        logits_q: unnormalised log-probabilities of q, [..., V].

    Returns:
        The divergences, >= 0 up to rounding, in nats, [...].

    Raises:
        ValueError: the two shapes differ; broadcasting would hide a missing axis.

    Source: Cover and Thomas (2006), Elements of Information Theory, section 2.3.
    """
    return _kl(logits_p.log_softmax(dim=-1), logits_q.log_softmax(dim=-1))


@takes(log_p="... V", log_q="... V")
def kl_of_log_probs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`kl_divergence` of distributions that are normalised already, which saves doing it again.

    Args:
        log_p: log-probabilities of p, [..., V], in nats.
        log_q: log-probabilities of q, [..., V], in nats; broadcast against those of p.
    """
    return _kl(log_p, log_q)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    # Replacing the log-ratio, not the product, keeps 0 * inf out of the gradient.
    log_ratio = torch.where(log_p > -math.inf, log_p - log_q, 0.0)
    kl = (p * log_ratio).sum(dim=-1)
    if kl.isnan().any():  # a probability too small for its type is 0, and 0 * inf should be inf
        vanished = (p == 0) & log_ratio.isposinf()
        kl = torch.where(vanished, math.inf, p * log_ratio).sum(dim=-1)
    return kl


@takes(log_p="B T V", log_q="B T V", mask="B T")
def masked_kl(log_p: Tensor, log_q: Tensor, mask: Tensor) -> Tensor:
    """KL(p || q) at each step, [B, T], of log-probabilities [B, T, V]; 0 where masked.

    Either may lack the axis of runs that the other has. Both are differentiated.

    Raises:
        ValueError: the shapes do not fit together.
    """
    # An infinite divergence behind the mask would leave NaN in the gradient.
    log_q = torch.where(mask.unsqueeze(-1), log_q, log_p.detach())
    return _kl(log_p, log_q).masked_fill(~mask, 0)


@takes(log_p="...", log_q="...")
def kl_estimate(log_p: Tensor, log_q: Tensor, kind: str) -> Tensor:
    """Estimates KL(p || q) from one token drawn from p, element by element.

        k1 = log p - log q              unbiased; negative whenever q(v) > p(v)
        k2 = (log p - log q)^2 / 2      biased; never negative
        k3 = q/p - 1 - log(q/p)         unbiased where q has no mass outside p; never negative

    These are statements about values. The gradient of an estimate is not an estimate of the
    gradient: differentiated, k1 gives 0 on average, and k3 the gradient of KL(q || p). Both
    arguments are differentiated; detach what should not be.

    Args:
        log_p: log-probabilities of the drawn tokens under p, which drew them, in nats, [...].
        log_q: log-probabilities of the same tokens under q, in nats, [...].
        kind: "k1", "k2" or "k3".

    Returns:
        One estimate per token, in nats, [...].

    Raises:
        ValueError: the shapes differ, or `kind` is none of the three.

    Source: Schulman (2020), Approximating KL Divergence.
    """
    log_ratio = log_p - log_q
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kind is {kind!r}; it is one of 'k1', 'k2', 'k3'")
