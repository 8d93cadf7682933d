"""Lesson 12, your own: a world, a run in it, a loss, a prediction; judged by the truth alone.

The numbers are those of `probe`, to four decimals. To judge a run each response counts as one
word: `exact` then says what reference, policy and the best policy are worth.
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
from ppo_toy.rules import Problem, as_rule, expected_gradient

ENOUGH = 0.95  # of what there is to earn
FELT = 0.2  # of the best policy's gain in R: what twice the beta must cost
NEAR = {"R": 0.1, "KL": 0.15, "J": 0.05}  # of what the run changed: how far a prediction may be off
CALM = 2 / 3  # of the variance of README's loss
LEAST, SAME = 0.01, 1e-3  # the least to earn, in reward; what counts as equal
FEWEST = 20  # responses to a prompt

# Losses that are nearly right: what is said; what stands before the later KL and before the own,
# beta and 1 so many times each; whether the later is detached.
NO_BETA = "a KL stands there without beta, the price of its nats"
SLIPS = [
    (NO_BETA, (1, 0), (0, 1), True),
    (NO_BETA, (0, 1), (1, 0), True),
    (NO_BETA, (0, 1), (0, 1), True),
    ("the KL of a token's own state has the wrong sign", (1, 0), (-1, 0), True),
    ("the later KL, which a token is charged, is to be a number: detach it", (1, 0), (1, 0), False),
]


class End(NamedTuple):
    """Where a run began and ended, the best, and the best at beta / 2, beta and 2 * beta."""

    start: exact.Evaluation
    reached: exact.Evaluation
    best: exact.Optimum
    along: exact.Frontier


def _judge_world(seed: int, rewards: Tensor, weights: Tensor) -> str | None:
    sums_to_1 = (weights >= 0).all() and abs(weights.sum() - 1) < SAME
    if rewards.numel() > probe.MOST or not rewards.isfinite().all() or not sums_to_1:
        return f"these are no rewards and weights of at most {probe.MOST:,} responses"
    if rewards.shape[1] < FEWEST:
        return f"a prompt has {rewards.shape[1]} responses here; bring a world of {FEWEST} or more"
    apart = weights @ (rewards.amax(dim=1) - rewards.amin(dim=1))
    if apart < SAME:
        return "to each prompt all responses earn the same: there is nothing to learn"
    if apart < 10 * LEAST:
        return f"a prompt's best and worst are {apart:.3f} apart: make rewards ten times as large"
    return None


def _end(rewards: Tensor, weights: Tensor, beta: float, *logs: Tensor) -> End:
    world = SimpleNamespace(
        prompts=torch.arange(len(rewards))[:, None],
        vocabulary=[str(k) for k in range(rewards.shape[1])],
        response_length=1,
        end_token=None,
        reward=lambda prompts, words: rewards[prompts[:, 0], words[:, 0]],
        prompt_weights=weights / weights.sum(),
    )
    reference, policy = (TabularPolicy(world, x) for x in logs)
    start, reached = (exact.evaluate(x, reference, world, beta) for x in (reference, policy))
    along = exact.frontier(reference, world, [beta / 2, beta, 2 * beta])
    return End(start, reached, exact.optimum(reference, world, beta), along)


def _run(rewards, weights, log_ref, log_p, beta, felt=1) -> End | str:  # noqa: ANN001
    """Where a run ended, or what is not yet so of it; its own beta has number `felt` in `along`."""
    if fault := _judge_world(0, rewards, weights):
        return fault
    for name, x in (("reference", log_ref), ("policy", log_p)):
        if not ((x.exp().sum(dim=1) - 1).abs() < SAME).all() or x.shape != rewards.shape:
            return (
                f"the {name}'s probabilities of all responses do not add up to 1: does a row of "
                "logits know the token that it is for, or a later one?"
            )
    if ((log_p > -torch.inf) & (log_ref == -torch.inf)).any():
        return "the policy says what the reference never says: the KL is infinite"
    if (log_p - log_ref).nan_to_num(0).abs().max() < SAME:
        return "policy and reference are the same: freeze a copy first, then train"
    if not beta >= SAME:
        return f"beta is below {SAME:g}: make rewards and beta ten times as large, or more"
    start, reached, best, along = end = _end(rewards, weights, beta.item(), log_ref, log_p)
    if (to_earn := best.objective - start.reward) < LEAST:
        return (
            f"at beta = {beta:g} the best policy earns {to_earn:.4f} more than the reference: "
            "nothing to learn; a smaller beta, or a reference that now and then says what is good"
        )
    once, twice = along.reward[felt : felt + 2]
    if once - twice < FELT * (once - start.reward):
        return (
            f"the brake is hardly felt: the best policy has R = {once:.2f}, and with twice the "
            f"beta {twice:.2f}; choose a larger one"
        )
    if (share := _share(end)) >= ENOUGH:
        return end
    why = _why(end, log_p, (log_ref + rewards / beta).log_softmax(dim=1))
    return (
        f"at beta = {beta:g} J went from {start.reward:.2f} to {reached.objective:.2f}, and "
        f"{best.objective:.2f} can be reached: {share:.0%} of what there is to earn; {why}"
    )


def _share(end: End) -> float:
    """What was earned, of what there was to earn."""
    return (end.reached.objective - end.start.reward) / (end.best.objective - end.start.reward)


def _why(end: End, log_p: Tensor, log_best: Tensor) -> str:
    alike = [((x.exp() - x[0].exp()).abs() < SAME).all() for x in (log_p, log_best)]
    if end.reached.reward < end.start.reward:
        return "R fell: is a sign wrong?"
    if alike[0] and not alike[1]:
        return "it answers all prompts alike: let the policy read the prompt"
    if end.reached.kl > (end.best.kl + end.along.kl[0]) / 2:
        return (
            f"it spends {end.reached.kl:.2f} nats where the best spends {end.best.kl:.2f}: does it "
            "train with the beta that my_run is given?"
        )
    return "more steps, larger batches, or a policy that tells more states apart"


def _judge_run(seed: int, **numbers: Tensor) -> str | None:
    end = _run(**numbers)
    return end if isinstance(end, str) else None


def _judge_prediction(seed: int, said: Tensor, moved: Tensor, **numbers: Tensor) -> str | None:
    end = _run(**numbers, felt=0)
    if isinstance(end, str):
        return f"the run with twice the beta: {end}"
    if said.shape != (3,) or not said.isfinite().all():
        return "the prediction is three finite numbers: R, KL, J"
    if not moved[0].abs() <= SAME:
        return "with twice the beta R is another: a world knows neither beta nor chance"
    if not _off(said, end):
        return None
    if not moved[1].abs() <= SAME:
        return "the two runs have two references: let my_policy draw its numbers from a seed"
    return _how_wrong(*said.tolist(), numbers["beta"].item(), end)


def _off(said: Iterable[float], end: End) -> dict[str, float]:
    """Which of R, KL and J are too far off, and by how much of what the run changed."""
    there, start = (torch.tensor([x.reward, x.kl, x.objective]) for x in (end.reached, end.start))
    off = ((torch.as_tensor(said) - there) / (there - start)).tolist()
    return {name: x for name, x in zip(NEAR, off, strict=True) if abs(x) > NEAR[name]}


def _how_wrong(reward: float, kl: float, objective: float, beta: float, end: End) -> str:
    said, before = (reward, kl, objective), end.along.kl[0]
    if not all(_off(order, end) for order in itertools.permutations(said)):
        return "in another order they would be right: R, KL, J"
    if not _off(said, end._replace(reached=end.best)):
        return (
            f"so ends the best policy; the run ended at R = {end.reached.reward:.2f}, "
            f"KL = {end.reached.kl:.2f}, with {_share(end):.0%} of what there is to earn: let it "
            "come nearer, by more steps or annealed"
        )
    due, slack = reward - beta * kl, max(LEAST, NEAR["J"] * (end.best.objective - end.start.reward))
    if abs(due + beta / 2 * kl - objective) < slack < abs(beta / 2 * kl):
        return "this J still has the old beta in it: a nat costs twice as much now"
    if abs(due - objective) > slack:
        return (
            f"the three contradict each other: at twice the beta, J = {due:.2f} follows from your "
            f"R and KL, and you said {objective:.2f}"
        )
    if abs(kl / before - 1) < 0.05:
        return "this is where the run with beta ends: at twice the price less is bought"
    if abs(kl / before - 0.5) < 0.03:
        return "the KL does not halve: the more nats are spent, the less the next one earns"
    if objective > end.best.objective + slack:
        return f"no policy earns that much at twice the beta: J* is {end.best.objective:.2f}"
    name, off = next(iter(_off(said, end).items()))
    return (
        f"{name} ended {'lower' if off > 0 else 'higher'} than you said, by {abs(off):.0%} of what "
        f"the run changed in it; {NEAR[name]:.0%} would pass. Was it told from the policy? That "
        "needs one very near the best: train longer, or ask the frontier"
    )


def _judge_loss(seed: int, spread: Tensor, faults: Tensor, **means: Tensor) -> str | None:
    due, noisy = probe.problems(seed)
    for k, case in enumerate(due):
        true = exact.gradient(*case)[0]
        if not (means[f"mean_{k}"] - true).norm() <= SAME * (1 + true.norm()):
            if slip := _slip(due, means):
                return slip
            names = [[*FAULTS][int(i)] for i in faults] or ["unknown"]
            if names == ["only scaled"]:
                return "right but for a factor: sum over tokens, take the mean over responses"
            return f"the referee says: {'; and '.join(f'{x} ({FAULTS[x][:-1]})' for x in names)}"
    plain = torch.stack([probe.variance(as_rule(_plain, loss=True), case) for case in noisy])
    ratio = (spread / plain).mean().item()
    if 0 < ratio <= CALM:
        return None
    return (
        f"right in the mean, but its gradient varies {ratio:.2f} times as much as that of README's "
        "loss; two thirds are asked: what is drawn here although it is known?"
    )


def _slip(due: list[Problem], means: dict[str, Tensor]) -> str | None:
    """Which of the losses that are nearly right has these mean gradients."""
    for sentence, later, own, held in SLIPS:

        def loss(log_probs, kl, rewards, beta, later=later, own=own, held=held):  # noqa: ANN001, ANN202
            to_come = kl.flip(1).cumsum(1).flip(1) - kl
            charged = (later[0] * beta + later[1]) * (to_come.detach() if held else to_come)
            pull = log_probs * (rewards[:, None] - charged) - (own[0] * beta + own[1]) * kl
            return -pull.sum(1).mean()

        rule = as_rule(loss, loss=True)
        wrong = (expected_gradient(rule, case) for case in due)
        if all(
            (means[f"mean_{k}"] - x).norm() <= SAME * (1 + x.norm()) for k, x in enumerate(wrong)
        ):
            return sentence
    return None


def _plain(log_probs, ref_log_probs, rewards, mask, beta) -> Tensor:  # noqa: ANN001
    """README's: each token pays for the log-ratios of the tokens drawn from there on."""
    k1 = (log_probs - ref_log_probs).detach() * mask
    to_pay = k1.flip(1).cumsum(1).flip(1)
    return -(log_probs * (rewards[:, None] - beta * to_pay) * mask).sum(1).mean()


EXERCISES = [
    OpenExercise("12-" + ask.__name__.removeprefix("of_"), ask, *others)
    for ask, *others in (
        (probe.of_world, _judge_world, "it passes the door, and every response is listed",
            ("TokenBandit", "TokenSequence", "ToyReviews")),
        (probe.of_run, _judge_run, "95 % of what there is to earn is reached", ("optimum",)),
        (probe.of_loss, _judge_loss, "the referee finds no fault, and it is calm", ("gradient",)),
        (probe.of_prediction, _judge_prediction, "the run with twice the beta ends where you said"),
    )
]  # fmt: skip
