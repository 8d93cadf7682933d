"""Rules that choose the next beta from the present beta and a measured KL.

Units matter: a target of 6 nats per response and one of 0.1 nats per token are different
budgets. These functions only compare `kl` with `kl_target`; give both in the same unit.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppo_toy.axes import check_range
from ppo_toy.contract import Policy, device_of

Controller = Callable[[float, float], float]
HUGE = 1e6  # nats; a controller that makes 0 of 0 at this KL does so at any


def fixed(beta: float, kl: float) -> float:
    """Returns `beta` as it was, whatever the KL."""
    return beta


def double_or_halve(beta: float, kl: float, *, kl_target: float) -> float:
    """Returns beta doubled, halved, or as it was.

        kl < kl_target / 1.5  ->  beta / 2
        kl > kl_target * 1.5  ->  beta * 2

    On either boundary beta stays.

    Args:
        beta: the present coefficient, reward per nat, >= 0.
        kl: the measured KL, in the unit of `kl_target`.
        kl_target: the KL to hold, in nats, > 0.

    Raises:
        ValueError: `kl_target` is not positive, or `beta` or `kl` is not a number.

    Source: Schulman et al. (2017), Proximal Policy Optimization Algorithms, section 4.
    """
    _check(beta, kl, kl_target)
    if kl < kl_target / 1.5:
        return beta / 2
    if kl > kl_target * 1.5:
        return beta * 2
    return beta


def proportional(
    beta: float, kl: float, *, kl_target: float, batch_size: int, horizon: float
) -> float:
    """Returns beta moved in proportion to the relative error of the KL.

        error = clip(kl / kl_target - 1, -0.2, 0.2)
        beta  = beta * (1 + error * batch_size / horizon)

    Args:
        beta: the present coefficient, reward per nat, >= 0.
        kl: the measured KL, in the unit of `kl_target`.
        kl_target: the KL to hold, in nats, > 0.
        batch_size: responses since the last call, >= 1.
        horizon: responses in which an error held at 0.2 moves beta by about a fifth;
            > batch_size / 5, so that beta cannot turn negative.

    Raises:
        ValueError: an argument is out of its range.

    Source: Ziegler et al. (2019), Fine-Tuning Language Models from Human Preferences,
    section 2.2; there K_beta = 0.1 stands for batch_size / horizon.
    """
    _check(beta, kl, kl_target)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if not horizon > batch_size / 5:
        raise ValueError(
            f"horizon is {horizon}; it must be above batch_size / 5 = {batch_size / 5}"
        )
    error = min(max(kl / kl_target - 1, -0.2), 0.2)
    return beta * (1 + error * batch_size / horizon)


def _check(beta: float, kl: float, kl_target: float) -> None:
    check_range("kl_target", kl_target, "G > 0, < inf")
    if not beta >= 0:
        raise ValueError(f"beta is {beta}; it must be 0 or more")
    if kl != kl:
        raise ValueError("kl is NaN; a coefficient cannot be chosen from it")


def for_each_run(
    name: str, numbers: float | Tensor, policy: Policy, axes: str = "G >= 0"
) -> float | Tensor:
    """A coefficient as one number for each run of a policy, [G] or [], on its device."""
    if name == "clip" and numbers is math.inf:
        return numbers
    runs = getattr(policy, "runs", ())
    check_range(name, numbers, axes)
    numbers = torch.as_tensor(numbers, dtype=torch.float64)
    if numbers.shape not in ((), runs):
        raise ValueError(f"{name} has shape {tuple(numbers.shape)}; the policy's runs are {runs}")
    return numbers.expand(runs).to(device_of(policy))


def at_first(name: str, beta: float | Tensor, controller: Controller, policy: Policy) -> Tensor:
    """The first beta of each run; a ValueError if it is 0 and its controller leaves it there."""
    beta = for_each_run(name, beta, policy)
    if controller is not fixed and (beta == 0).any():
        rule = getattr(controller, "func", controller)  # of a functools.partial
        keeps_0 = rule in (double_or_halve, proportional)
        if keeps_0 or (not beta.any() and controller(0.0, HUGE) == 0):
            raise ValueError(
                f"{name} is {beta.tolist()}; of 0 its controller makes 0 whatever the KL: start "
                "above 0"
            )
    return beta


def adapted(name: str, controller: Controller, beta: Tensor, kl: Tensor) -> Tensor:
    """The next beta of each run, by its controller from the present one and the KL."""
    if controller is fixed:
        return beta
    pairs = zip(beta.flatten().tolist(), kl.flatten().tolist(), strict=True)
    betas = [controller(*pair) for pair in pairs]
    check_range(name, betas, "G >= 0")
    return beta.new_tensor(betas).view_as(beta)
