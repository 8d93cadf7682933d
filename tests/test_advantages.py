import itertools
import math

import pytest
import torch
from problems import random_logits, random_policies, random_world
from torch import Tensor
from torch.testing import assert_close

from ppo_toy.advantages import gae, leave_one_out, reward_to_go, token_rewards, whiten
from ppo_toy.trajectories import enumerate_all, per_step_kl, score

LENGTHS = [4, 1, 3, 2]


def mask_of(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def ragged(seed: int, *lead: int) -> Tensor:
    """Random numbers for responses of LENGTHS, 99 in every place that is masked."""
    return random_logits(seed, *lead, 4, 4).masked_fill(~mask_of(LENGTHS, 4), 99.0)


def slow_gae(rewards: Tensor, values: Tensor, lengths: list[int], gamma: float, lam: float):
    """Eq. 16 as it stands: for each t a sum over k of (gamma lam)^k delta_{t+k}."""
    advantages = torch.zeros_like(rewards)
    for i, length in enumerate(lengths):
        for t in range(length):
            for k in range(length - t):
                here, after = t + k, t + k + 1
                v_next = values[i, after].item() if after < length else 0.0
                delta = rewards[i, here].item() + gamma * v_next - values[i, here].item()
                advantages[i, t] += (gamma * lam) ** k * delta
    return advantages


# By hand


def test_a_token_answers_for_the_reward_less_the_kl_of_later_steps():
    rewards = torch.tensor([5.0, -2.0])
    kl = torch.tensor([[0.5, 1.0, 0.25], [0.75, 2.0, 99.0]])
    mask = mask_of([3, 2], 3)
    got = reward_to_go(rewards, kl, 2.0, mask)
    # its own KL is not in it, and that of the last step is in no other than the steps before
    first = [5 - 2 * (1.0 + 0.25), 5 - 2 * 0.25, 5.0]
    second = [-2 - 2 * 2.0, -2.0, 0.0]
    assert_close(got, torch.tensor([first, second]))


def test_each_token_pays_for_its_kl_and_the_last_one_earns_the_reward():
    rewards = torch.tensor([5.0, -2.0, 3.0])
    kl = torch.tensor([[0.5, 1.0, 0.25], [0.75, 2.0, 99.0], [0.125, 99.0, 99.0]])
    got = token_rewards(rewards, kl, 2.0, mask_of([3, 2, 1], 3))
    first = [-2 * 0.5, -2 * 1.0, 5 - 2 * 0.25]
    second = [-2 * 0.75, -2 - 2 * 2.0, 0.0]
    assert_close(got, torch.tensor([first, second, [3 - 2 * 0.125, 0.0, 0.0]]))


def test_leave_one_out_takes_off_the_mean_of_the_others_that_reach_the_step():
    returns = torch.tensor([[1.0, 4.0, 7.0], [3.0, -2.0, 99.0], [8.0, 99.0, 99.0]])
    got = leave_one_out(returns, mask_of([3, 2, 1], 3))
    first = [1 - (3 + 8) / 2, 4 - -2.0, 7.0]  # nobody else has a third token
    second = [3 - (1 + 8) / 2, -2 - 4.0, 0.0]
    third = [8 - (1 + 3) / 2, 0.0, 0.0]
    assert_close(got, torch.tensor([first, second, third]))


def test_leave_one_out_keeps_the_gradient_of_draws_and_not_that_of_a_weighted_list():
    # Two words with probabilities 3/4 and 1/4 and rewards 1 and 0, in the first logit:
    # the gradient of the expected reward is p1 p2 (1 - 0), that of log p(word) is p2 or -p1.
    p, score_of, one = (
        torch.tensor([3 / 4, 1 / 4]),
        torch.tensor([1 / 4, -3 / 4]),
        mask_of([1, 1], 1),
    )
    right, two_draws = 3 / 4 * 1 / 4, 0.0
    for i, j in itertools.product((0, 1), repeat=2):
        left = leave_one_out(torch.tensor([[1.0 - i], [1.0 - j]]), one)[:, 0]
        two_draws += p[i] * p[j] * (left @ score_of[[i, j]]) / 2
    assert_close(two_draws, torch.tensor(right))
    the_list = (p * score_of) @ leave_one_out(torch.tensor([[1.0], [0.0]]), one)[:, 0]
    assert_close(the_list, torch.tensor(2 * right))


def test_generalized_advantages_of_two_responses_by_hand():
    rewards = torch.tensor([[1.0, 2.0], [4.0, 99.0]])
    values = torch.tensor([[0.5, 3.0], [6.0, 99.0]])
    got = gae(rewards, values, mask_of([2, 1], 2), gamma=0.5, lam=0.25)
    first_delta, second_delta = 1 + 0.5 * 3 - 0.5, 2 - 3.0
    expected = [[first_delta + 0.5 * 0.25 * second_delta, second_delta], [4 - 6.0, 0.0]]
    assert_close(got, torch.tensor(expected))


def test_an_episode_cut_short_has_a_future_and_one_that_ended_has_none():
    rewards = torch.tensor([[1.0, 2.0, 99.0, 4.0]])
    values = torch.tensor([[0.5, 3.0, 99.0, 6.0]])
    # the first episode ends, the second is cut short in a state that is worth 8
    after = torch.tensor([[3.0, 0.0, 99.0, 8.0]])
    mask = torch.tensor([[True, True, False, True]])
    got = gae(rewards, values, mask, gamma=0.5, lam=0.25, next_values=after)
    first, second, third = 1 + 0.5 * 3 - 0.5, 2 - 3.0, 4 + 0.5 * 8 - 6
    assert_close(got, torch.tensor([[first + 0.5 * 0.25 * second, second, 0.0, third]]))


def test_whitening_divides_by_the_spread_of_the_batch_itself():
    x = torch.tensor([[1.0, 3.0, 99.0], [8.0, 99.0, 99.0]])
    got = whiten(x, mask_of([2, 1], 3))
    # mean 4; squares 9, 1 and 16; the variance is 26 / 3, not 26 / 2
    spread = math.sqrt(26 / 3 + 1e-8)
    expected = [[-3 / spread, -1 / spread, 0.0], [4 / spread, 0.0, 0.0]]
    assert_close(got, torch.tensor(expected))


def test_whitening_adds_1e_8_to_the_variance():
    # mean 0 and variance 1e-8, which the addition doubles
    got = whiten(torch.tensor([[1e-4, -1e-4]]), torch.ones(1, 2).bool())
    assert_close(got, torch.tensor([[math.sqrt(0.5), -math.sqrt(0.5)]]))


# Properties


@pytest.mark.parametrize("seed", range(3))
def test_a_function_of_runs_treats_each_run_alone(seed):
    mask = mask_of(LENGTHS, 4).expand(3, 4, 4).clone()
    mask[1] = mask[1].flip(0)
    kl, values = ragged(seed, 3), ragged(seed + 1, 3)
    rewards, betas = random_logits(seed + 2, 3, 4), torch.tensor([0.0, 0.5, 2.0])
    together = (
        reward_to_go(rewards, kl, betas, mask),
        token_rewards(rewards, kl, betas, mask),
        leave_one_out(kl, mask),
        gae(kl, values, mask, gamma=0.9, lam=0.8),
        whiten(kl, mask),
    )
    for run in range(3):
        alone = (
            reward_to_go(rewards[run], kl[run], betas[run].item(), mask[run]),
            token_rewards(rewards[run], kl[run], betas[run].item(), mask[run]),
            leave_one_out(kl[run], mask[run]),
            gae(kl[run], values[run], mask[run], gamma=0.9, lam=0.8),
            whiten(kl[run], mask[run]),
        )
        for of_all, one in zip(together, alone, strict=True):
            assert_close(of_all[run], one)


@pytest.mark.parametrize("seed", range(3))
def test_what_stands_in_masked_positions_has_no_effect(seed):
    mask = mask_of(LENGTHS, 4)
    x, values = ragged(seed), ragged(seed + 1)
    other_x, other_values = x.masked_fill(~mask, -7.0), values.masked_fill(~mask, 1e6)
    rewards = random_logits(seed, 4)
    for got, same in (
        (reward_to_go(rewards, x, 0.5, mask), reward_to_go(rewards, other_x, 0.5, mask)),
        (token_rewards(rewards, x, 0.5, mask), token_rewards(rewards, other_x, 0.5, mask)),
        (leave_one_out(x, mask), leave_one_out(other_x, mask)),
        (
            gae(x, values, mask, gamma=0.9, lam=0.8),
            gae(other_x, other_values, mask, gamma=0.9, lam=0.8),
        ),
        (whiten(x, mask), whiten(other_x, mask)),
    ):
        assert torch.equal(got, same)
        assert (got[~mask] == 0).all()


def test_no_function_writes_to_its_inputs():
    mask, x, values, rewards = mask_of(LENGTHS, 4), ragged(0), ragged(1), random_logits(2, 4)
    inputs = (mask, x, values, rewards)
    before = [tensor.clone() for tensor in inputs]
    reward_to_go(rewards, x, 0.5, mask)
    token_rewards(rewards, x, 0.5, mask)
    leave_one_out(x, mask)
    gae(x, values, mask, gamma=0.9, lam=0.8)
    whiten(x, mask)
    for tensor, as_it_was in zip(inputs, before, strict=True):
        assert torch.equal(tensor, as_it_was)


@pytest.mark.parametrize("seed", range(3))
def test_with_lam_0_an_advantage_is_the_one_step_error(seed):
    rewards, values = ragged(seed), ragged(seed + 1)
    got = gae(rewards, values, mask_of(LENGTHS, 4), gamma=0.9, lam=0.0)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            after = 0.9 * values[i, t + 1] if t + 1 < length else 0.0
            assert_close(got[i, t], rewards[i, t] + after - values[i, t])


@pytest.mark.parametrize("seed", range(3))
def test_with_lam_1_an_advantage_is_the_discounted_return_less_the_value(seed):
    rewards, values = ragged(seed), ragged(seed + 1)
    got = gae(rewards, values, mask_of(LENGTHS, 4), gamma=0.9, lam=1.0)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            discounted = sum(0.9 ** (s - t) * rewards[i, s].item() for s in range(t, length))
            assert_close(got[i, t], discounted - values[i, t])


def test_with_gamma_0_only_the_present_reward_counts():
    rewards, values, mask = ragged(0), ragged(1), mask_of(LENGTHS, 4)
    got = gae(rewards, values, mask, gamma=0.0, lam=0.8)
    assert_close(got, (rewards - values).masked_fill(~mask, 0))


@pytest.mark.parametrize("seed", range(3))
def test_episodes_in_one_row_are_as_episodes_in_rows_of_their_own(seed):
    rewards, values, after = random_logits(seed, 3, 2, 9).unbind()
    episodes = [slice(0, 3), slice(4, 5), slice(6, 9)]
    mask = torch.zeros(2, 9, dtype=torch.bool)
    for episode in episodes:
        mask[:, episode] = True
    rewards, values, after = (x.masked_fill(~mask, 99.0) for x in (rewards, values, after))
    got = gae(rewards, values, mask, gamma=0.9, lam=0.8, next_values=after)
    for episode in episodes:
        whole = mask[:, episode]
        pieces = (x[:, episode] for x in (rewards, values))
        alone = gae(*pieces, whole, gamma=0.9, lam=0.8, next_values=after[:, episode])
        assert_close(got[:, episode], alone)
    assert (got[~mask] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_state_after_a_token_is_by_default_the_next_one_or_the_end(seed):
    rewards, values, mask = ragged(seed), ragged(seed + 1), mask_of(LENGTHS, 4)
    after = torch.full((4, 4), 99.0)
    for i, length in enumerate(LENGTHS):
        after[i, :length] = torch.tensor([*values[i, 1:length].tolist(), 0.0])
    got = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    assert_close(got, gae(rewards, values, mask, gamma=0.9, lam=0.8, next_values=after))


@pytest.mark.parametrize("seed", range(3))
def test_whitened_numbers_have_mean_0_and_variance_1(seed):
    mask = mask_of(LENGTHS, 4)
    x = whiten(5 + 3 * ragged(seed), mask)[mask]
    assert_close(x.mean(), torch.tensor(0.0))
    # the variance is v / (v + 1e-8), and v is about 9: off by 1e-9, within the default
    assert_close(x.square().mean(), torch.tensor(1.0))


def test_whitening_keeps_the_order():
    x = random_logits(0, 4, 4)
    white = whiten(x, torch.ones(4, 4).bool())
    assert torch.equal(white.flatten().argsort(), x.flatten().argsort())


# Edges and errors


def test_a_constant_input_is_whitened_to_0():
    mask = mask_of(LENGTHS, 4)
    x = torch.full((4, 4), 2.5).masked_fill(~mask, 99.0).requires_grad_()
    white = whiten(x, mask)
    white.square().sum().backward()
    assert_close(white, torch.zeros(4, 4))
    assert torch.isfinite(x.grad).all()


def test_a_single_entry_is_whitened_to_0():
    mask = torch.zeros(2, 2, dtype=torch.bool)
    mask[1, 0] = True
    assert_close(whiten(torch.full((2, 2), 99.0), mask), torch.zeros(2, 2))


def test_whitening_under_an_empty_mask_is_an_error():
    with pytest.raises(ValueError, match="mask is False everywhere"):
        whiten(torch.ones(2, 3), torch.zeros(2, 3).bool())


def test_a_trajectory_alone_keeps_its_returns():
    returns = torch.tensor([[1.0, -2.0, 99.0]])
    got = leave_one_out(returns, mask_of([2], 3))
    assert_close(got, torch.tensor([[1.0, -2.0, 0.0]]))


@pytest.mark.parametrize("name", ["gamma", "lam"])
@pytest.mark.parametrize("number", [-0.25, 1.25, math.nan])
def test_a_discount_outside_0_to_1_is_an_error(name, number):
    x = torch.zeros(1, 1)
    arguments = {"gamma": 1.0, "lam": 1.0, name: number}
    with pytest.raises(ValueError, match=f"{name} is {number}"):
        gae(x, x, torch.ones(1, 1).bool(), **arguments)


def test_on_a_bandit_a_token_answers_for_its_reward_alone():
    rewards = torch.tensor([5.0, -2.0])
    got = reward_to_go(rewards, torch.tensor([[9.0], [8.0]]), 2.0, torch.ones(2, 1).bool())
    assert_close(got, torch.tensor([[5.0], [-2.0]]))


# Independent routes


@pytest.mark.parametrize("seed", range(3))
def test_the_reward_to_go_is_its_double_sum_in_a_slow_loop(seed):
    rewards, kl, mask = random_logits(seed, 4), ragged(seed + 1), mask_of(LENGTHS, 4)
    got = reward_to_go(rewards, kl, 0.7, mask)
    expected = torch.zeros(4, 4)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            later = sum(kl[i, s].item() for s in range(t + 1, length))
            expected[i, t] = rewards[i].item() - 0.7 * later
    assert_close(got, expected)


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_is_a_mean_over_a_list_of_the_others(seed):
    returns = ragged(seed)
    got = leave_one_out(returns, mask_of(LENGTHS, 4))
    for i, t in itertools.product(range(4), range(4)):
        others = [returns[j, t].item() for j, length in enumerate(LENGTHS) if j != i and t < length]
        mean = sum(others) / len(others) if others else 0.0
        expected = returns[i, t].item() - mean if t < LENGTHS[i] else 0.0
        assert_close(got[i, t], torch.tensor(expected))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.5, 1.0), (0.75, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_gae_is_the_double_sum_of_equation_16(seed, gamma, lam):
    rewards, values = ragged(seed), ragged(seed + 1)
    got = gae(rewards, values, mask_of(LENGTHS, 4), gamma=gamma, lam=lam)
    assert_close(got, slow_gae(rewards, values, LENGTHS, gamma, lam))


@pytest.mark.parametrize("seed", range(3))
def test_without_values_or_discount_gae_is_the_reward_to_go_less_the_own_kl(seed):
    world = random_world(seed, end_token=0)
    policy, reference = random_policies(world, seed)
    batch = enumerate_all(policy, world)
    rewards, kl = score(world, batch), per_step_kl(policy, reference, batch).detach()
    earned = token_rewards(rewards, kl, 0.7, batch.mask)
    got = gae(earned, torch.zeros_like(kl), batch.mask, gamma=1.0, lam=1.0)
    assert_close(got, reward_to_go(rewards, kl, 0.7, batch.mask) - 0.7 * kl)


@pytest.mark.parametrize("seed", range(2))
def test_with_exact_values_the_expected_advantage_at_a_state_is_0(seed):
    world = random_world(seed, end_token=0)
    policy, reference = random_policies(world, seed)
    batch = enumerate_all(policy, world)
    p, mask = batch.weights.detach(), batch.mask
    kl = per_step_kl(policy, reference, batch).detach()
    returns = reward_to_go(score(world, batch), kl, 0.7, mask) - 0.7 * kl
    rows = policy.rows(batch.prompts, batch.tokens)[:, :-1].masked_fill(~mask, -1)
    states = rows.unique()[1:].tolist()
    values = torch.zeros_like(kl)
    for state in states:
        here = rows == state
        values[here] = (p.unsqueeze(1) * returns)[here].sum() / p[here.any(dim=1)].sum()
    earned = token_rewards(score(world, batch), kl, 0.7, mask)
    for lam in (0.0, 0.6, 1.0):
        advantages = gae(earned, values, mask, gamma=1.0, lam=lam)
        assert advantages.abs().max() > 0.1
        for state in states:
            mean = (p.unsqueeze(1) * advantages)[rows == state].sum()
            assert_close(mean, torch.tensor(0.0))


def test_equal_entries_are_whitened_to_0_in_single_precision_too():
    mask = torch.ones(3, 5, dtype=torch.bool)
    for number in (1000.1, 25000.1, -7.3):
        got = whiten(torch.full((3, 5), number, dtype=torch.float32), mask)
        assert got.abs().max() < 1e-3
