"""Answers to the exercises of lesson 12 as learners write them: worlds, runs, losses."""

import math
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from ppo_toy import exact
from ppo_toy.objectives import penalized_objective
from ppo_toy.policies import TabularPolicy, freeze
from ppo_toy.training import Schedule, train
from ppo_toy.trajectories import enumerate_all, log_probs, per_step_kl, sample, score
from ppo_toy.worlds import TokenSequence

# 12-world


class Change:
    """Coins for a purchase: 1, 2 or 5, and the fewer of them the better."""

    prompts = torch.tensor([[4], [7]])
    vocabulary = ("one", "two", "five", "done")
    response_length = 4
    end_token = 3

    def reward(self, prompts, responses):
        paid = torch.tensor([1, 2, 5, 0])[responses].sum(dim=1)
        return (paid == prompts[:, 0]) * (2.0 - 0.25 * (responses != 3).sum(dim=1))


def change(**changed):
    world = Change()
    vars(world).update(changed)
    return world


def rewarded(function):
    return partial(change, reward=function)


def rhythm():
    """No end, prompts as lists, rewards as a list of floats, weights."""

    def reward(prompts, responses):
        return [float(sum(a != b for a, b in zip(r, r[1:], strict=False))) for r in responses]

    return SimpleNamespace(
        prompts=[[0], [1]], vocabulary=["tip", "tap"], response_length=5, end_token=None,
        reward=reward, prompt_weights=[0.25, 0.75],
    )  # fmt: skip


def debts():
    """Negative rewards, nearly always the same one."""
    return change(reward=lambda p, r: -3.0 + 2.0 * (r == p[:, :1] - 4).all(dim=1))


def drawn():
    values = torch.rand(4)
    return change(reward=lambda p, r: values[r].sum(dim=1))


def readme_echo():
    return change(vocabulary=["yes", "no", "."], end_token=2, reward=lambda p, r: r[:, 0])


def without_an_end_token():
    return SimpleNamespace(prompts=[[0]], vocabulary=["a", "b"], response_length=2, reward=None)


WRONG_WORLD = [
    (without_an_end_token, "the world, a SimpleNamespace, has no end_token"),
    (lambda: Change, "the world is the class Change; give an instance of it"),
    (lambda: None, "the world, a NoneType, has no prompts"),
    (rewarded(lambda p, r: r[:, 0] / (r[:, 0] - 1.0)), "the reward of ['two', 'one', 'one', 'one'"),
    (rewarded(lambda p, r: r), "the world's reward gave (242, 4) for 242 responses"),
    (rewarded(None), "the world's reward is None; it must be a function of prompts"),
    (rewarded(lambda p, r: torch.rand(len(r))), "the reward gives two answers to one question"),
    (rewarded(lambda p, r: p[:, 0]), "all responses earn the same: there is nothing to learn"),
    (rewarded(lambda p, r: 0.001 * r[:, 0]), "make rewards ten times as large"),
    (drawn, "my_world gives another world each time; draw its numbers from a seed"),
    (partial(change, response_length=1), "a prompt has 4 responses here; bring a world of 20"),
    (partial(change, vocabulary=["one", "one", "two", "done"]), "it must be 4 distinct strings"),
    (partial(change, response_length=7), "this world has 6,560 responses; bring one of at most"),
    (partial(change, response_length=40), "responses (2 prompts, 4 tokens, length 40)"),
    (partial(change, prompts=[4, 7]), "it must be [n, P]"),
    (TokenSequence.brackets, "this world is the course's; bring one of your own"),
    (readme_echo, "this world is the course's; bring one of your own"),
]

# 12-run


class Purse(nn.Module):
    """Knows the place, what was paid, and the prompt; or forgets it; or peeks at the next coin."""

    def __init__(self, *, reads=True, peeks=False, spread=0.0):
        super().__init__()
        self.reads, self.peeks = reads, peeks
        self.table = nn.Embedding(2 * 5 * 21, 4)
        nn.init.normal_(self.table.weight, std=spread)

    def forward(self, prompts, responses):
        paid = torch.tensor([1, 2, 5, 0])[responses].cumsum(dim=1)
        paid = nn.functional.pad(paid, (0, 1) if self.peeks else (1, 0))
        which = (prompts == 7) & self.reads
        return self.table((which * 5 + torch.arange(paid.shape[1])) * 21 + paid)


def trained(generator, beta, *, world=Change, policy=Purse, steps=120, frozen=True, **options):
    settings = {"batch_size": 256, "learning_rate": 0.1, "beta": beta} | options
    world, policy = world(), policy()
    reference = freeze(policy)
    if steps:
        settings |= {"steps": steps, "schedule": Schedule(anneal=True)}
        train(policy, reference, world, generator=generator, **settings)
    return world, reference if frozen else policy, policy


def with_options(beta=0.2, **options):
    def my_run(generator, beta=beta):
        return trained(generator, **{"beta": beta, **options})

    return my_run


def run_with_a_table(generator, beta=0.5):
    """In double precision, from a reference of its own, in a world of another kind."""
    likes = torch.Generator().manual_seed(3)
    policy = partial(TabularPolicy.random, rhythm(), generator=likes, scale=0.5)
    return trained(generator, beta, world=rhythm, policy=policy)


def run_by_hand(generator, beta=0.2, world=Change, policy=Purse):
    """Without `train`: the exact gradient, counted over the whole list."""
    world, policy = world(), policy()
    reference = freeze(policy)
    adam = torch.optim.Adam(policy.parameters(), lr=0.1)
    for _ in range(100):
        batch = enumerate_all(policy, world)
        kl = per_step_kl(policy, reference, batch)
        adam.zero_grad()
        (-penalized_objective(score(world, batch), kl, beta, batch.weights)).backward()
        adam.step()
    return [world, reference, policy]


def at_best(generator, beta=0.2):
    """A run that went the wrong way."""
    world, reference, _ = trained(generator, beta, steps=0)
    turned = change(reward=lambda p, r: -world.reward(p, r))
    return world, reference, exact.optimum(reference, turned, beta).policy


def of_tables(change_of):
    """A run that returns two tables."""

    def my_run(generator, beta=0.2):
        policy = TabularPolicy(Change())
        return Change(), *change_of(freeze(policy), policy)

    return my_run


def silent(reference, policy):
    """It never begins with the coin that the policy begins with."""
    reference.logits[:, 0] = -math.inf
    return reference, policy


run_with_purse = with_options()
WRONG_RUN = [
    (with_options(steps=4), "of what there is to earn; more steps, larger batches"),
    (with_options(policy=partial(Purse, reads=False)), "it answers all prompts alike"),
    (with_options(policy=partial(Purse, peeks=True, spread=1.0)), "it is for, or a later one"),
    (with_options(beta=0.05), "the brake is hardly felt: the best policy has R ="),
    (with_options(beta=500.0), "nothing to learn; a smaller beta"),
    (with_options(beta=1e-5, steps=1), "beta is below 0.001: make rewards and beta ten times"),
    (with_options(frozen=False), "policy and reference are the same: freeze a copy first"),
    (with_options(steps=0), "policy and reference are the same: freeze a copy first"),
    (lambda generator, beta=0.8: trained(generator, 0.2), "does it train with the beta that"),
    (at_best, "R fell: is a sign wrong?"),
    (of_tables(silent), "the policy says what the reference never says"),
    (of_tables(lambda x, y: (x, y.repeat(2))), "the policy has an axis of runs; a single run is"),
    (lambda generator, beta: None, "my_run's beta has no positive number for a default"),
    (lambda generator, beta=0.2: Change(), "my_run returns three things"),
    (with_options(world=rewarded(lambda p, r: p[:, 0]), steps=1), "all responses earn the same"),
    (with_options(world=partial(change, response_length=7), steps=0), "responses; bring one of"),
]

# 12-loss


def calm_from_logits(logits, ref_logits, log_probs, rewards, mask, beta):
    log_p, log_ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_ref)).sum(-1) * mask
    to_go = kl.detach().flip(1).cumsum(1).flip(1)
    pulls = log_probs * (rewards.unsqueeze(1) - beta * (to_go - kl.detach())) - beta * kl
    return -(pulls * mask).sum() / len(rewards)


def calm_token_by_token(log_probs, kl, rewards, beta):
    loss = 0
    for t in range(kl.shape[1]):
        to_come = kl[:, t + 1 :].sum(dim=1).detach()
        loss = loss + beta * kl[:, t] - log_probs[:, t] * (rewards - beta * to_come)
    return loss.mean()


def after(kl):
    return kl.flip(1).cumsum(1).flip(1) - kl


def calm(later=lambda kl, beta: beta * after(kl.detach()), own=lambda beta: beta, size=-1.0):
    def my_loss(log_probs, kl, rewards, beta):
        earned = rewards[:, None] - later(kl, beta)
        return size * (log_probs * earned - own(beta) * kl).sum(1).mean()

    return my_loss


def readme_loss(log_probs, ref_log_probs, rewards, mask, beta):
    k1 = (log_probs - ref_log_probs).detach() * mask
    to_pay = k1.flip(1).cumsum(1).flip(1)
    return -(log_probs * (rewards[:, None] - beta * to_pay) * mask).sum(1).mean()


def k1_as_loss(log_probs, ref_log_probs, rewards, beta):
    return -(log_probs * rewards[:, None] - beta * (log_probs - ref_log_probs)).sum(1).mean()


def padding_counts(log_probs, ref_log_probs, rewards, mask, beta):
    return readme_loss(log_probs, ref_log_probs, rewards, mask | True, beta)


WRONG_LOSS = [
    (calm(later=lambda kl, beta: 0 * kl), "the referee says: future KL dropped (No token pays"),
    (calm(own=lambda beta: 0), "the referee says: own token dropped"),
    (calm(own=lambda beta: 2 * beta), "the referee says: own token twice"),
    (calm(own=lambda beta: 1), "a KL stands there without beta"),
    (calm(later=lambda kl, beta: after(kl.detach())), "a KL stands there without beta"),
    (calm(own=lambda beta: -beta), "the KL of a token's own state has the wrong sign"),
    (calm(later=lambda kl, beta: beta * after(kl)), "is to be a number: detach it"),
    (calm(size=1), "the referee says: reward sign flipped"),
    (calm(size=-2), "right but for a factor: sum over tokens, take the mean over responses"),
    (calm(later=lambda kl, beta: beta * kl.detach().sum(1, True)), "right in the mean, but"),
    (lambda log_probs, rewards, beta: -(log_probs.sum(1) * rewards).mean(), "KL never applied"),
    (k1_as_loss, "the referee says: k1 as loss"),
    (padding_counts, "the referee says: padding leaked"),
    (readme_loss, "times as much as that of README's loss; two thirds are asked"),
    (lambda x, y: x, "it must take (policy, reference, trajectories, rewards, beta)"),
    (lambda log_probs, beta: None, "the rule fails"),
    (lambda log_probs, beta: log_probs.detach().sum(), "no gradient: all of it is detached"),
]

# 12-prediction: of a run in each case


def from_the_frontier(world, reference, policy, beta):
    best = exact.optimum(reference, world, 2 * beta)
    return best.reward, best.kl, best.objective


def from_the_mixture(world, reference, policy, beta):
    """Row by row, as floats."""
    batch, n = enumerate_all(policy, world), len(world.prompts)
    log_ref, log_p = (log_probs(x, batch).sum(1).double().view(n, -1) for x in (reference, policy))
    reward = kl = 0.0
    for ref, now, earned in zip(log_ref, log_p, score(world, batch).view(n, -1), strict=True):
        mass = (0.5 * ref + 0.5 * now).exp()
        p = mass / mass.sum()
        reward += (p @ earned.double()).item() / n
        kl += (p @ (p.log() - ref)).item() / n
    return [reward, kl, reward - 2 * beta * kl]


def from_a_run_of_ones_own(world, reference, policy, beta):
    _, reference, policy = run_by_hand(torch.Generator().manual_seed(5), 2 * beta)
    batch = sample(policy, world, 20_000, generator=torch.Generator().manual_seed(1))
    kl = per_step_kl(policy, reference, batch).detach().sum(1).mean()
    reward = score(world, batch).mean()
    return torch.stack([reward, kl, reward - 2 * beta * kl])


def said(change):
    """The truth at twice the beta and at beta, changed."""

    def my_prediction(world, reference, policy, beta):
        there, here = (exact.optimum(reference, world, x * beta) for x in (2, 1))
        return change(there, here, beta)

    return run_by_hand, my_prediction


def beside(reward, kl):
    return said(lambda there, here, beta: (
        there.reward + reward, there.kl + kl, there.reward + reward - 2 * beta * (there.kl + kl)
    ))  # fmt: skip


def in_another_world(generator, beta=0.2):
    return run_by_hand(generator, beta, rewarded(lambda p, r: r[:, 0] * beta))


def from_another_start(generator, beta=0.2):
    torch.manual_seed(generator.initial_seed())
    return run_by_hand(generator, beta, policy=partial(Purse, spread=2.0))


WRONG_PREDICTION = [
    (
        said(lambda there, here, b: (here.reward, here.kl, here.reward - 2 * b * here.kl)),
        "this is where the run with beta ends",
    ),
    (said(lambda t, h, b: (t.reward, h.kl / 2, t.reward - b * h.kl)), "the KL does not halve"),
    (said(lambda t, h, b: (t.reward, t.kl, t.reward - b * t.kl)), "this J still has the old beta"),
    (said(lambda t, h, b: (t.reward, t.kl, h.objective)), "the three contradict each other"),
    (said(lambda t, h, b: (t.objective, t.reward, t.kl)), "in another order they would be right"),
    (beside(-0.3, 0.0), "R ended higher than you said, by"),
    (beside(0.4, 0.0), "no policy earns that much at twice the beta"),
    (beside(0.0, 0.25), "KL ended lower than you said, by"),
    (said(lambda t, h, b: (t.reward, t.kl)), "the prediction is three finite numbers"),
    (said(lambda t, h, b: (t.reward, t.kl, math.nan)), "the prediction is three finite numbers"),
    (said(lambda t, h, b: None), "the prediction is None; due are three numbers"),
    ((with_options(steps=4), from_the_frontier), "twice the beta: at beta = 0.4 J went from"),
    (
        (lambda generator, beta=0.2: run_by_hand(generator, 0.2), from_the_frontier),
        "does it train with the beta that my_run is given?",
    ),
    ((with_options(beta=0.05), from_the_frontier), "twice the beta: the brake is hardly felt"),
    ((in_another_world, from_the_frontier), "with twice the beta R is another: a world knows"),
    ((from_another_start, from_the_frontier), "the two runs have two references: let my_policy"),
]


RIGHT = {
    "12-world": [Change, rhythm, debts],
    "12-run": [run_with_purse, run_with_a_table, run_by_hand],
    "12-loss": [calm_from_logits, calm_token_by_token],
    "12-prediction": [
        (run_with_purse, from_the_frontier),
        (run_by_hand, from_the_mixture),
        (run_with_a_table, from_the_frontier),
        (run_by_hand, from_a_run_of_ones_own),
    ],
}
WRONG = {
    "12-world": WRONG_WORLD,
    "12-run": WRONG_RUN,
    "12-loss": WRONG_LOSS,
    "12-prediction": WRONG_PREDICTION,
}
