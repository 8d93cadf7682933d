"""Lesson 12, your own: a world, a run in it, a loss, a prediction; judged by the truth alone.

The numbers are those of `probe`. Whatever a world's responses are, they are listed; so to judge a
run each counts as one word, and `exact` says what the reference, the policy and the best are worth.
"""

import itertools
from collections.abc import Iterable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_toy import exact
from ppo_toy.classroom import probe
from ppo_toy.classroom.open_ended import OpenExercise
from ppo_toy.faults import FAULTS
from ppo_toy.policies import TabularPolicy
from ppo_toy.rules import as_rule

ENOUGH = 0.95  # of what there is to earn
LEAST = 0.01  # to earn, in reward: numbers are known to four decimals
FELT = 0.2  # of the best policy's gain in R, which twice the beta must cost
NEAR = {"R": 0.1, "KL": 0.15, "J": 0.05}  # a prediction's, in shares of what the run changed
CALM = 2 / 3  # of the variance of README's loss
SAME = 1e-3  # in nats, in reward, and in shares of a gradient


class End(NamedTuple):
    """Where a run ended, and what could be reached: at its beta, and at half of it and twice."""

    start: exact.Evaluation
    reached: exact.Evaluation
    best: exact.Optimum
    along: exact.Frontier

    @property
    def share(self) -> float:
        """1 - KL(policy || best) / KL(reference || best): of what there was to earn."""
        return (self.reached.objective - self.start.reward) / self.to_earn

    @property
    def to_earn(self) -> float:
        """How far the best policy's J lies above the reference's, in reward."""
        return self.best.objective - self.start.reward


def _world_fault(seed: int, rewards: Tensor, weights: Tensor) -> str | None:
    if rewards.numel() > probe.MOST or rewards.shape[:1] != weights.shape:
        return f"at most {probe.MOST:,} responses are judged, in a table with a row for each prompt"
    if not (rewards.isfinite().all() and (weights >= 0).all() and abs(weights.sum() - 1) < SAME):
        return "rewards must be finite, and the prompts' weights a distribution"
    apart = weights @ (rewards.amax(dim=1) - rewards.amin(dim=1))
    if rewards.shape[1] < 2 or apart < SAME:
        return "to each prompt all responses earn the same: there is nothing to learn"
    if apart < 10 * LEAST:
        return f"a prompt's best and worst are {apart:.3f} apart: make rewards ten times as large"
    return None


def _end(rewards: Tensor, weights: Tensor, logs: list[Tensor], beta: float) -> End:
    n, responses = rewards.shape
    world = SimpleNamespace(
        prompts=torch.arange(n)[:, None],
        vocabulary=[str(k) for k in range(responses)],
        response_length=1,
        end_token=None,
        reward=lambda prompts, words: rewards[prompts[:, 0], words[:, 0]],
        prompt_weights=weights / weights.sum(),
    )
    reference, policy = (TabularPolicy(world, x) for x in logs)
    return End(
        exact.evaluate(reference, reference, world, beta),
        exact.evaluate(policy, reference, world, beta),
        exact.optimum(reference, world, beta),
        exact.frontier(reference, world, [beta / 2, beta, 2 * beta]),
    )


def _run(
    rewards: Tensor, weights: Tensor, log_ref: Tensor, log_p: Tensor, beta: Tensor, felt: int = 1
) -> End | str:
    """Where a run ended, or what is not yet so of it; its own beta has number `felt` in `along`."""
    if fault := _world_fault(0, rewards, weights):
        return fault
    for name, x in (("reference", log_ref), ("policy", log_p)):
        if x.shape != rewards.shape or not ((x.exp().sum(dim=1) - 1).abs() < SAME).all():
            return f"the {name}'s probabilities of all responses do not add up to 1"
    if ((log_p > -torch.inf) & (log_ref == -torch.inf)).any():
        return "the policy says what the reference never says: the KL is infinite"
    if (log_p - log_ref).nan_to_num(0).abs().max() < SAME:
        return "policy and reference are the same: freeze a copy first, then train"
    end = _end(rewards, weights, [log_ref, log_p], beta.item())
    if end.to_earn < LEAST:
        return (
            f"at beta = {beta:g} the best policy earns {end.to_earn:.4f} more than the reference: "
            "nothing to learn; a smaller beta, or a reference that now and then says what is good"
        )
    once, twice = end.along.reward[felt : felt + 2]
    if once - twice < FELT * (once - end.start.reward):
        return (
            f"the brake is hardly felt: the best policy has R = {once:.2f}, and with twice the "
            f"beta {twice:.2f}; choose a larger one"
        )
    return end if end.share >= ENOUGH else _why(end, log_ref, log_p, beta.item(), rewards)


def _why(end: End, log_ref: Tensor, log_p: Tensor, beta: float, rewards: Tensor) -> str:
    def alike(x: Tensor) -> bool:
        return bool(((x.exp() - x[0].exp()).abs() < SAME).all())

    told = (
        f"at beta = {beta:g} J went from {end.start.reward:.2f} to {end.reached.objective:.2f}, "
        f"and {end.best.objective:.2f} can be reached: {end.share:.0%} of what there is to earn; "
    )
    if end.reached.reward < end.start.reward:
        return told + "R fell: is a sign wrong?"
    if alike(log_p) and not alike((log_ref + rewards / beta).log_softmax(dim=1)):
        return told + "it answers all prompts alike: let the policy read the prompt"
    if end.reached.kl > (end.best.kl + end.along.kl[0]) / 2:
        return told + (
            f"it spends {end.reached.kl:.2f} nats where the best spends {end.best.kl:.2f}: does it "
            "train with the beta that my_run is given?"
        )
    return told + "more steps, larger batches, or a policy that tells more states apart"


def _judge_run(seed: int, **numbers: Tensor) -> str | None:
    end = _run(**numbers)
    return end if isinstance(end, str) else None


def _judge_prediction(seed: int, said: Tensor, **numbers: Tensor) -> str | None:
    end = _run(**numbers, felt=0)
    if isinstance(end, str):
        return f"the run with twice the beta: {end}"
    if said.shape != (3,) or not said.isfinite().all():
        return "the prediction is three finite numbers: R, KL, J"
    return _how_wrong(*said.tolist(), numbers["beta"].item(), end) if _off(said, end) else None


def _off(said: Iterable[float], end: End) -> dict[str, float]:
    """Which of R, KL and J are too far off, and by how much of what the run changed."""
    at, start = end.reached, end.start
    changed = at.reward - start.reward, at.kl, at.objective - start.objective
    true = at.reward, at.kl, at.objective
    off = [(x - y) / z for x, y, z in zip(said, true, changed, strict=True)]
    return {name: x for name, x in zip(NEAR, off, strict=True) if abs(x) > NEAR[name]}


def _how_wrong(reward: float, kl: float, objective: float, beta: float, end: End) -> str:
    for order in itertools.permutations((reward, kl, objective)):
        if not _off(order, end):
            return "in another order they would be right: R, KL, J"
    slack, due = max(LEAST, 0.05 * end.to_earn), reward - beta * kl
    if abs(due + beta / 2 * kl - objective) < slack < abs(beta / 2 * kl):
        return "this J still has the old beta in it: a nat costs twice as much now"
    if abs(due - objective) > slack:
        return (
            f"the three contradict each other: at twice the beta, J = {due:.2f} follows from your "
            f"R and KL, and you said {objective:.2f}"
        )
    before = end.along.kl[0]
    if abs(kl / before - 1) < 0.05:
        return "this is where the run with beta ends: at twice the price less is bought"
    if abs(kl / before - 0.5) < 0.03:
        return "the KL does not halve: the more nats are spent, the less the next one earns"
    if objective > end.best.objective + slack:
        return f"no policy earns that much at twice the beta: J* is {end.best.objective:.2f}"
    name, off = next(iter(_off((reward, kl, objective), end).items()))
    return (
        f"{name} ended {'lower' if off > 0 else 'higher'} than you said, by {abs(off):.0%} of what "
        f"the run changed in it; {NEAR[name]:.0%} would pass"
    )


def _judge_loss(seed: int, spread: Tensor, faults: Tensor, **gradients: Tensor) -> str | None:
    for k, case in enumerate(probe.problems(seed)):
        found, true = gradients[f"gradient_{k}"], exact.gradient(*case)[0]
        if not (found - true).norm() <= SAME * (1 + true.norm()):
            names = [list(FAULTS)[int(i) % len(FAULTS)] for i in faults] or ["unknown"]
            said = "; ".join(f"{name} ({FAULTS[name][:-1]})" for name in names)
            return f"the referee says: {said}"
    rule = as_rule(_plain, loss=True)
    plain = torch.stack([probe.variance(rule, case) for case in probe.noisy(seed)])
    ratio = (spread / plain).mean().item()
    if not (spread.shape == plain.shape and 0 < ratio <= CALM):
        return (
            f"right in the mean, but its gradient varies {ratio:.2f} times as much as that of "
            "README's loss; two thirds are asked: what is drawn here although it is known?"
        )
    return None


def _plain(log_probs, ref_log_probs, rewards, mask, beta):  # noqa: ANN001, ANN202
    """README's: the log-ratio of the tokens drawn, charged to each token before."""
    k1 = (log_probs - ref_log_probs).detach() * mask
    to_pay = k1.flip(1).cumsum(1).flip(1)
    return -(log_probs * (rewards[:, None] - beta * to_pay) * mask).sum(1).mean()


EXERCISES = [
    OpenExercise(
        "12-world", probe.of_world, _world_fault,
        "it passes the door, and every response is listed",
        own=("TokenBandit", "TokenSequence", "ToyReviews"),
    ),
    OpenExercise(
        "12-run", probe.of_run, _judge_run,
        "95 % of what there is to earn is reached", own=("optimum",),
    ),
    OpenExercise(
        "12-loss", probe.of_loss, _judge_loss, "the referee finds no fault, and it is calm",
        own=("policy_gradient_surrogate", "_gradient"),
    ),
    OpenExercise(
        "12-prediction", probe.of_prediction, _judge_prediction,
        "the run with twice the beta ends where you said",
    ),
]  # fmt: skip
