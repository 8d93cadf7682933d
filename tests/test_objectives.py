import itertools
import math
from dataclasses import replace

import pytest
import torch
from problems import random_logits, random_policies, random_world
from torch import Tensor
from torch.testing import assert_close

from ppo_toy.advantages import leave_one_out, reward_to_go
from ppo_toy.objectives import (
    clipped_surrogate,
    kl_penalty_surrogate,
    penalized_objective,
    policy_gradient_surrogate,
    value_loss,
)
from ppo_toy.policies import TabularPolicy
from ppo_toy.trajectories import (
    Trajectories,
    enumerate_all,
    log_probs,
    masked_kl,
    per_step_kl,
    sample,
    score,
    step_log_probs,
)
from ppo_toy.worlds import TokenSequence

WORLDS = [
    {"seed": 0, "prompts": 2, "tokens": 3, "length": 3},
    {"seed": 1, "prompts": 3, "tokens": 3, "length": 3, "end_token": 0},
    {"seed": 2, "prompts": 1, "tokens": 4, "length": 2, "end_token": 3},
    {"seed": 3, "prompts": 4, "tokens": 2, "length": 4, "end_token": 1},
]


def slow_objective(logits: Tensor, ref_logits: Tensor, world: TokenSequence, beta: float) -> Tensor:
    """J of the table `logits`: every response from itertools, one after the other."""
    n_prompts, n_tokens, length = len(world.prompts), len(world.vocabulary), world.response_length
    n_nodes = len(logits) // n_prompts
    p, ref = logits.softmax(dim=1), ref_logits.softmax(dim=1)
    total = torch.zeros(())
    for prompt in range(n_prompts):
        seen = set()
        for response in itertools.product(range(n_tokens), repeat=length):
            if world.end_token in response:
                written = response[: response.index(world.end_token) + 1]
                response = written + (world.end_token,) * (length - len(written))
            else:
                written = response
            if response in seen:
                continue
            seen.add(response)
            node, probability, kl = 0, torch.ones(()), torch.zeros(())
            for token in written:
                row = n_nodes * prompt + node
                for v in range(n_tokens):
                    kl = kl + p[row, v] * torch.log(p[row, v] / ref[row, v])
                probability = probability * p[row, token]
                node = n_tokens * node + token + 1
            reward = world.reward(world.prompts[prompt : prompt + 1], torch.tensor([response]))
            total = total + probability * (reward[0] - beta * kl) / n_prompts
    return total


def slow_gradient(policy, reference, world, beta: float) -> Tensor:
    logits = policy.logits.detach().clone().requires_grad_()
    slow_objective(logits, reference.logits.detach(), world, beta).backward()
    return logits.grad


def gradient_of(surrogate: Tensor, policy: TabularPolicy) -> Tensor:
    return torch.autograd.grad(surrogate, policy.logits)[0]


def take(batch: Trajectories, which: list[int]) -> Trajectories:
    """The listed trajectories as a sampled batch: constant, equal weights."""
    picked = {name: x.detach()[which] for name, x in vars(batch).items()}
    return replace(Trajectories(**picked), weights=torch.full((len(which),), 1 / len(which)))


# By hand


def test_the_penalised_objective_by_hand():
    rewards, weights = torch.tensor([2.0, -1.0]), torch.tensor([0.25, 0.75])
    kl = torch.tensor([[0.5, 0.0], [1.0, 0.25]])
    # trajectory 1 earns 2 - 3 * 1/2, trajectory 2 earns -1 - 3 * (1 + 1/4)
    got = penalized_objective(rewards, kl, 3.0, weights)
    assert_close(got, torch.tensor(0.25 * (2 - 3 * 0.5) + 0.75 * (-1 - 3 * 1.25)))


def test_each_run_has_its_own_beta_in_the_penalised_objective():
    rewards = torch.tensor([[2.0, -1.0], [1.0, 4.0]])
    kl = torch.tensor([[[0.5, 0.0], [1.0, 0.25]], [[0.25, 0.25], [2.0, 0.0]]])
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    got = penalized_objective(rewards, kl, torch.tensor([3.0, 0.5]), weights)
    first = 0.25 * (2 - 3 * 0.5) + 0.75 * (-1 - 3 * 1.25)
    second = 0.5 * (1 - 0.5 * 0.5) + 0.5 * (4 - 0.5 * 2)
    assert_close(got, torch.tensor([first, second]))


def test_the_policy_gradient_surrogate_by_hand():
    log_p = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    advantages = torch.tensor([[3.0, -1.0], [-4.0, 0.0]])
    kl = torch.tensor([[0.5, 0.25], [1.0, 0.0]])
    got = policy_gradient_surrogate(log_p, kl, advantages, 2.0, torch.tensor([0.25, 0.75]))
    first = (-1.0 * 3.0 + 2.0 * 1.0) - 2.0 * (0.5 + 0.25)
    second = 0.5 * 4.0 - 2.0 * 1.0
    assert_close(got, torch.tensor(0.25 * first + 0.75 * second))


def test_each_run_has_its_own_beta_in_the_policy_gradient_surrogate():
    log_p, kl, advantages = random_logits(0, 3, 2, 4, 3)
    weights, betas = torch.tensor([0.125, 0.25, 0.125, 0.5]), torch.tensor([0.5, 2.0])
    got = policy_gradient_surrogate(log_p, kl, advantages, betas, weights.expand(2, 4))
    for run, beta in enumerate([0.5, 2.0]):
        alone = policy_gradient_surrogate(log_p[run], kl[run], advantages[run], beta, weights)
        assert_close(got[run], alone)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate"),
    [
        (1.5, 2.0, 1.25 * 2.0),  # more of a good token: only up to the edge
        (1.5, -2.0, 1.5 * -2.0),  # more of a bad token: the whole cost
        (0.5, 2.0, 0.5 * 2.0),  # less of a good token: the whole cost
        (0.5, -2.0, 0.75 * -2.0),  # less of a bad token: only up to the edge
        (1.125, 2.0, 1.125 * 2.0),
        (0.875, -2.0, 0.875 * -2.0),
    ],
)
def test_the_clipped_surrogate_by_hand(ratio, advantage, surrogate):
    old = torch.tensor([[-2.0]])
    got = clipped_surrogate(old + math.log(ratio), old, torch.tensor([[advantage]]), clip=0.25)
    assert_close(got, torch.tensor([[surrogate]]))


def test_each_run_has_its_own_clip():
    old = torch.zeros(2, 3, 2)
    got = clipped_surrogate(
        old + math.log(2.0), old, torch.ones(2, 3, 2), clip=torch.tensor([0.25, 0.5])
    )
    # the ratio is 2 everywhere and the advantage 1: the upper edge of each run
    assert_close(got[0], torch.full((3, 2), 1.25))
    assert_close(got[1], torch.full((3, 2), 1.5))


def test_the_kl_penalised_surrogate_by_hand():
    old = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]])
    ratio = torch.tensor([[1.5, 0.5], [2.0, 0.25]])
    advantages = torch.tensor([[2.0, -4.0], [-1.0, 8.0]])
    kl_old = torch.tensor([[0.125, 0.5], [0.25, 1.0]])
    got = kl_penalty_surrogate(old + ratio.log(), old, advantages, kl_old, 2.0)
    first = [1.5 * 2.0 - 2.0 * 0.125, 0.5 * -4.0 - 2.0 * 0.5]
    second = [2.0 * -1.0 - 2.0 * 0.25, 0.25 * 8.0 - 2.0 * 1.0]
    assert_close(got, torch.tensor([first, second]))


def test_each_run_has_its_own_beta_in_the_kl_penalised_surrogate():
    old, advantages = torch.full((2, 3, 1), -1.0), torch.ones(2, 3, 1)
    kl_old = torch.tensor([0.25, 0.5, 1.0]).view(3, 1).expand(2, 3, 1)
    got = kl_penalty_surrogate(old, old, advantages, kl_old, torch.tensor([1.0, 4.0]))
    # the ratio is 1 and so is the advantage: 1 - beta * KL
    first = [[1 - 0.25], [1 - 0.5], [1 - 1.0]]
    second = [[1 - 4 * 0.25], [1 - 4 * 0.5], [1 - 4 * 1.0]]
    assert_close(got, torch.tensor([first, second]))


def test_the_value_loss_by_hand():
    values = torch.tensor([[3.0, 1.0, 99.0], [0.5, 99.0, 99.0]])
    returns = torch.tensor([[1.0, 2.0, -99.0], [2.0, -99.0, -99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    got = value_loss(values, returns, mask, torch.tensor([0.25, 0.75]))
    # errors 2, -1 and -1.5; a half of each square
    assert_close(got, torch.tensor(0.25 * (4 + 1) / 2 + 0.75 * 2.25 / 2))


def test_the_value_loss_has_one_number_for_each_run():
    values, returns = random_logits(0, 2, 2, 4, 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]).bool().expand(2, 4, 3)
    weights = torch.tensor([[0.125, 0.25, 0.125, 0.5], [0.5, 0.25, 0.125, 0.125]])
    got = value_loss(values, returns, mask, weights)
    for run in range(2):
        one = value_loss(values[run], returns[run], mask[run], weights[run])
        assert_close(got[run], one)


# Properties


@pytest.mark.parametrize("seed", range(3))
def test_on_samples_the_gradient_of_the_objective_does_not_see_the_reward(seed):
    world = random_world(seed, end_token=0)
    policy, reference = random_policies(world, seed)
    batch = sample(policy, world, 16, generator=torch.Generator().manual_seed(seed))
    rewards = score(world, batch)
    kl = per_step_kl(policy, reference, batch)
    gradients = [
        torch.autograd.grad(
            penalized_objective(r, kl, 0.5, batch.weights), policy.logits, retain_graph=True
        )[0]
        for r in (rewards, 7 * rewards, torch.zeros_like(rewards))
    ]
    only_kl = torch.autograd.grad(-0.5 * kl.sum() / 16, policy.logits)[0]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert_close(gradients[0], only_kl)
    assert only_kl.abs().max() > 0.001


@pytest.mark.parametrize("seed", range(3))
def test_the_penalised_objective_is_differentiated_in_all_its_tensors(seed):
    rewards, weights = random_logits(seed, 2, 4).requires_grad_().unbind()
    kl = random_logits(seed + 9, 4, 3).requires_grad_()
    objective = penalized_objective(rewards, kl, 0.5, weights)
    by_reward, by_kl, by_weight = torch.autograd.grad(objective, (rewards, kl, weights))
    assert_close(by_reward, weights)
    assert_close(by_kl, (-0.5 * weights).unsqueeze(1).expand(4, 3))
    earned = [rewards[i].item() - 0.5 * sum(kl[i].tolist()) for i in range(4)]
    assert_close(by_weight, torch.tensor(earned))


def test_undetached_advantages_and_weights_make_no_difference_to_the_surrogate():
    world = random_world(0, end_token=0)
    policy, reference = random_policies(world, 0)
    batch = enumerate_all(policy, world)
    log_p, kl = log_probs(policy, batch), per_step_kl(policy, reference, batch)
    advantages = reward_to_go(score(world, batch), kl, 0.5, batch.mask)
    assert advantages.requires_grad
    assert batch.weights.requires_grad
    beta = torch.tensor(0.5, requires_grad=True)
    attached = policy_gradient_surrogate(log_p, kl, advantages, beta, batch.weights)
    detached = policy_gradient_surrogate(
        log_p, kl, advantages.detach(), 0.5, batch.weights.detach()
    )
    assert_close(attached, detached)
    by_policy, by_beta = torch.autograd.grad(
        attached, (policy.logits, beta), retain_graph=True, allow_unused=True
    )
    assert torch.equal(by_policy, gradient_of(detached, policy))
    assert by_beta is None


def test_the_old_policy_and_the_advantages_are_constants_of_ppos_surrogates():
    new, old, advantages, kl_old = random_logits(0, 4, 3, 2).unbind()
    inputs = [x.clone().requires_grad_() for x in (new, old, advantages)]
    clipped = clipped_surrogate(*inputs, clip=0.25).sum()
    penalised = kl_penalty_surrogate(*inputs, kl_old, torch.tensor(2.0)).sum()
    for surrogate in (clipped, penalised):
        by_new, by_old, by_advantage = torch.autograd.grad(surrogate, inputs, allow_unused=True)
        assert by_new is not None
        assert by_old is None
        assert by_advantage is None


def test_where_the_ratio_is_1_the_clipped_gradient_is_the_advantage():
    log_p = random_logits(0, 4, 3).requires_grad_()
    advantages = random_logits(1, 4, 3)
    clipped_surrogate(log_p, log_p, advantages, clip=0.25).sum().backward()
    # d ratio = ratio * d log pi, and the ratio is 1: the same as the gradient of log pi * A
    assert_close(log_p.grad, advantages)
    assert advantages.min() < 0 < advantages.max()


WEIGHTS = torch.tensor([0.125, 0.25, 0.125, 0.5], dtype=torch.float64)
SURROGATES = {
    "penalised": lambda new, old, a, kl, c: penalized_objective(a[:, 0], kl, c, WEIGHTS),
    "policy gradient": lambda new, old, a, kl, c: policy_gradient_surrogate(new, kl, a, c, WEIGHTS),
    "clipped": lambda new, old, a, kl, c: clipped_surrogate(new, old, a, clip=c),
    "KL-penalised": lambda new, old, a, kl, c: kl_penalty_surrogate(new, old, a, kl, c),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_a_coefficient_may_be_a_float_or_a_tensor_of_one_number(name):
    new, old, advantages, kl = random_logits(0, 4, 4, 3)
    results = []
    for number in (0.25, torch.tensor(0.25, requires_grad=True)):
        inputs = new.clone().requires_grad_(), kl.clone().requires_grad_()
        got = SURROGATES[name](inputs[0], old, advantages, inputs[1], number)
        gradients = torch.autograd.grad(got.square().sum(), inputs, allow_unused=True)
        results.append((got, *(x for x in gradients if x is not None)))
    assert len(results[0]) > 1
    for by_float, by_tensor in zip(*results, strict=True):
        assert torch.equal(by_float, by_tensor)
    assert (SURROGATES[name](new, old, advantages, kl, 0.5) != results[0][0]).any()


def test_without_a_clip_the_surrogate_is_ratio_times_advantage():
    log_p, old, advantages = random_logits(0, 3, 4, 3)
    got = clipped_surrogate(log_p, old, advantages, clip=math.inf)
    for i, t in itertools.product(range(4), range(3)):
        ratio = math.exp(log_p[i, t].item()) / math.exp(old[i, t].item())
        assert_close(got[i, t], ratio * advantages[i, t])


def test_a_wide_clip_does_not_turn_the_surrogate_negative_for_a_good_token():
    # 1 - 3 is below every ratio, so only the upper edge can act
    log_p, old = torch.tensor([[math.log(8.0), -5.0]]), torch.zeros(1, 2)
    got = clipped_surrogate(log_p, old, torch.ones(1, 2), clip=3.0)
    assert_close(got, torch.tensor([[4.0, math.exp(-5.0)]]))


# Edges and errors


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.5, 2.0, 0.0),  # past the edge, in the direction of its gain
        (0.5, -2.0, 0.0),
        (1.5, -2.0, 1.5 * -2.0),  # past the edge, but going back is a gain
        (0.5, 2.0, 0.5 * 2.0),
        (1.125, 2.0, 1.125 * 2.0),  # within
        (0.875, -2.0, 0.875 * -2.0),
    ],
)
def test_the_clipped_gradient_is_0_where_the_clip_acts_and_only_there(ratio, advantage, slope):
    log_p = torch.tensor([[math.log(ratio)]], requires_grad=True)
    clipped_surrogate(
        log_p, torch.zeros(1, 1), torch.tensor([[advantage]]), clip=0.25
    ).sum().backward()
    assert_close(log_p.grad, torch.tensor([[slope]]))


@pytest.mark.parametrize("clip", [0.0, -0.25, math.nan])
def test_a_clip_that_is_not_positive_is_an_error(clip):
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=f"clip is {clip};"):
        clipped_surrogate(x, x, x, clip=clip)
    with pytest.raises(ValueError, match=f"clip is {clip};"):
        clipped_surrogate(x, x, x, clip=torch.tensor(clip))
    with pytest.raises(ValueError, match=rf"clip is \[1.0, {clip}\]"):
        clipped_surrogate(x.expand(2, 1, 1), x, x, clip=torch.tensor([1.0, clip]))


@pytest.mark.parametrize("seed", range(3))
def test_the_kl_to_the_old_policy_has_no_gradient_at_the_first_minibatch(seed):
    world = random_world(seed, end_token=0)
    policy, _ = random_policies(world, seed)
    batch = sample(policy, world, 16, generator=torch.Generator().manual_seed(seed))
    log_pi = step_log_probs(policy, batch)
    kl_old = masked_kl(log_pi.detach(), log_pi, batch.mask)
    assert (kl_old == 0).all()
    zero = torch.zeros_like(kl_old)
    surrogate = kl_penalty_surrogate(zero, zero, zero, kl_old, 100.0)
    gradient = gradient_of(surrogate.sum(), policy)
    # 0 on paper, p * (sum of p) - p in floats: 100 times 16 responses, each off by 1e-16 or so
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_away_from_the_old_policy_the_kl_pulls_back_towards_it():
    world = random_world(0)
    policy, old = random_policies(world, 0)
    batch = enumerate_all(old, world)
    log_pi, log_old = step_log_probs(policy, batch), step_log_probs(old, batch).detach()
    kl_old = masked_kl(log_old, log_pi, batch.mask)
    zero = torch.zeros_like(kl_old)
    surrogate = kl_penalty_surrogate(zero, zero, zero, kl_old, 2.0)
    weights = batch.weights.detach()
    gradient = gradient_of((weights * surrogate.sum(dim=1)).sum(), policy)
    # d/dlogits of -KL(old || new) is old - new, times beta and how often old reaches the row
    p, q = policy.logits.detach().softmax(dim=1), old.logits.detach().softmax(dim=1)
    reached = torch.zeros(len(p))
    for row in range(len(p)):
        reached[row] = weights[(old.rows(batch.prompts, batch.tokens)[:, :-1] == row).any(1)].sum()
    assert_close(gradient, 2.0 * reached.unsqueeze(1) * (q - p))


def test_the_value_loss_has_the_weighted_error_as_its_gradient_and_0_where_masked():
    values = torch.tensor([[3.0, 1.0, 99.0], [0.5, 99.0, 99.0]], requires_grad=True)
    returns = torch.tensor([[1.0, 2.0, -99.0], [2.0, -99.0, -99.0]], requires_grad=True)
    weights = torch.tensor([0.25, 0.75], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    value_loss(values, returns, mask, weights).backward()
    # errors 2, -1 and -1.5
    expected = [[0.25 * 2, 0.25 * -1, 0.0], [0.75 * -1.5, 0.0, 0.0]]
    assert_close(values.grad, torch.tensor(expected))
    assert returns.grad is None
    assert weights.grad is None


# Independent routes


@pytest.mark.parametrize("kwargs", WORLDS)
def test_on_every_response_the_objective_is_the_sum_over_itertools(kwargs):
    world = random_world(**kwargs)
    policy, reference = random_policies(world, 5)
    batch = enumerate_all(policy, world)
    kl = per_step_kl(policy, reference, batch)
    got = penalized_objective(score(world, batch), kl, 0.5, batch.weights)
    assert_close(got, slow_objective(policy.logits, reference.logits, world, 0.5))


@pytest.mark.parametrize("end_token", [None, 1])
def test_on_every_response_its_gradient_is_that_of_finite_differences(end_token):
    world = random_world(4, tokens=2, length=3, end_token=end_token)
    policy, reference = random_policies(world, 4)
    batch = enumerate_all(policy, world)
    kl = per_step_kl(policy, reference, batch)
    objective = penalized_objective(score(world, batch), kl, 0.5, batch.weights)
    got = gradient_of(objective, policy)
    logits, h = policy.logits.detach(), 1e-5
    expected = torch.zeros_like(logits)
    for row, v in itertools.product(*map(range, logits.shape)):
        step = torch.zeros_like(logits)
        step[row, v] = h
        up = slow_objective(logits + step, reference.logits.detach(), world, 0.5)
        down = slow_objective(logits - step, reference.logits.detach(), world, 0.5)
        expected[row, v] = (up - down) / (2 * h)
    assert_close(got, expected)
    assert got.abs().max() > 0.01


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("kwargs", WORLDS)
def test_the_expected_gradient_of_the_surrogate_is_the_gradient_of_j(kwargs, beta):
    world = random_world(**kwargs)
    policy, reference = random_policies(world, 6)
    batch = enumerate_all(policy, world)
    kl = per_step_kl(policy, reference, batch)
    returns = reward_to_go(score(world, batch), kl, beta, batch.mask)
    surrogate = policy_gradient_surrogate(
        log_probs(policy, batch), kl, returns, beta, batch.weights
    )
    got, expected = gradient_of(surrogate, policy), slow_gradient(policy, reference, world, beta)
    # tighter than the default: the two routes are the same sum in another order
    assert_close(got, expected, rtol=0, atol=1e-8)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("kwargs", WORLDS)
def test_a_baseline_that_knows_only_the_state_leaves_the_expected_gradient(kwargs):
    world = random_world(**kwargs)
    policy, reference = random_policies(world, 7)
    batch = enumerate_all(policy, world)
    kl = per_step_kl(policy, reference, batch)
    returns = reward_to_go(score(world, batch), kl, 0.7, batch.mask)
    baseline = 10 * random_logits(8, len(policy.logits))
    rows = policy.rows(batch.prompts, batch.tokens)[:, :-1]
    surrogate = policy_gradient_surrogate(
        log_probs(policy, batch), kl, returns - baseline[rows], 0.7, batch.weights
    )
    expected = slow_gradient(policy, reference, world, 0.7)
    # tighter than the default: nothing but rounding, of numbers up to about 30
    assert_close(gradient_of(surrogate, policy), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("end_token", [None, 0])
def test_leave_one_out_leaves_the_expected_gradient_and_lowers_its_variance(end_token):
    world = random_world(9, tokens=2, length=2, end_token=end_token)
    # All rewards are raised by 3: without a baseline, that is 3 * grad log pi of noise.
    raised = replace(world, reward=lambda x, y: world.reward(x, y) + 3)
    policy, reference = random_policies(world, 9)
    everything = enumerate_all(policy, raised)
    p = everything.weights.detach()
    mean, square = {}, {}
    for baseline in (False, True):
        mean[baseline], square[baseline] = torch.zeros_like(policy.logits), 0.0
        for i, j in itertools.product(range(len(p)), repeat=2):
            batch = take(everything, [i, j])
            kl = per_step_kl(policy, reference, batch)
            advantages = reward_to_go(score(raised, batch), kl, 0.7, batch.mask)
            if baseline:
                advantages = leave_one_out(advantages, batch.mask)
            surrogate = policy_gradient_surrogate(
                log_probs(policy, batch), kl, advantages, 0.7, batch.weights
            )
            gradient = gradient_of(surrogate, policy)
            mean[baseline] = mean[baseline] + p[i] * p[j] * gradient
            square[baseline] = square[baseline] + p[i] * p[j] * gradient.square().sum()
    exact = slow_gradient(policy, reference, world, 0.7)
    assert_close(mean[False], exact)
    assert_close(mean[True], exact)
    # both have the same mean, so the smaller second moment is the smaller variance
    assert square[True] < 0.5 * square[False]


@pytest.mark.parametrize(("length", "the_same"), [(1, True), (2, False), (3, False)])
def test_dropping_the_kl_of_later_steps_is_wrong_on_sequences_only(length, the_same):
    world = random_world(10, length=length)
    policy, reference = random_policies(world, 10)
    batch = enumerate_all(policy, world)
    kl = per_step_kl(policy, reference, batch)
    only_reward = score(world, batch).unsqueeze(1).expand(kl.shape)
    surrogate = policy_gradient_surrogate(
        log_probs(policy, batch), kl, only_reward, 0.7, batch.weights
    )
    expected = slow_gradient(policy, reference, world, 0.7)
    off = (gradient_of(surrogate, policy) - expected).norm() / expected.norm()
    if the_same:
        assert off < 1e-12
    else:
        assert off > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_the_clipped_surrogate_is_equation_7_in_a_slow_loop(seed):
    log_p, old, advantages = random_logits(seed, 3, 8, 5)
    got = clipped_surrogate(log_p, old, advantages, clip=0.25)
    acted = 0
    for i, t in itertools.product(range(8), range(5)):
        ratio = math.exp(log_p[i, t].item()) / math.exp(old[i, t].item())
        a = advantages[i, t].item()
        clipped = 1.25 if ratio > 1.25 else 0.75 if ratio < 0.75 else ratio
        expected = ratio * a if ratio * a < clipped * a else clipped * a
        acted += expected != ratio * a
        assert_close(got[i, t], torch.tensor(expected))
    assert 0 < acted < 40


def test_at_the_first_minibatch_all_surrogates_have_the_policy_gradient():
    world = random_world(11, end_token=0)
    policy, reference = random_policies(world, 11)
    batch = sample(policy, world, 16, generator=torch.Generator().manual_seed(0))
    log_p, kl = log_probs(policy, batch), per_step_kl(policy, reference, batch)
    advantages = reward_to_go(score(world, batch), kl, 0.7, batch.mask)
    log_pi = step_log_probs(policy, batch)
    kl_old = masked_kl(log_pi.detach(), log_pi, batch.mask)
    tokens = (
        clipped_surrogate(log_p, log_p, advantages, clip=0.25),
        kl_penalty_surrogate(log_p, log_p, advantages, kl_old, 3.0),
    )
    surrogates = [(x.sum(dim=1) * batch.weights).sum() for x in tokens]
    surrogates.append(policy_gradient_surrogate(log_p, kl, advantages, 0.0, batch.weights))
    first, second, third = (
        torch.autograd.grad(x, policy.logits, retain_graph=True)[0] for x in surrogates
    )
    assert_close(first, third)
    assert_close(second, third)


def test_the_surrogates_of_tokens_in_one_row_keep_their_shape():
    old, new, advantages = torch.zeros(3), torch.tensor([0.0, 0.5, -0.5]), torch.ones(3)
    assert clipped_surrogate(new, old, advantages, clip=0.2).shape == (3,)
    assert kl_penalty_surrogate(new, old, advantages, torch.zeros(3), 0.5).shape == (3,)
