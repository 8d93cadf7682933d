import math

import pytest
import torch
from problems import generator, logits_of, random_logits

from ppo_toy.policies import TabularPolicy
from ppo_toy.sampling import draw, roll_out
from ppo_toy.worlds import TokenSequence

JUST_BELOW_ONE = 1 - 2.0**-53  # the largest number that a uniform generator gives


def test_a_number_falls_into_the_quarter_of_its_token():
    # four equal tokens: the cumulative sums are 1/4, 1/2, 3/4 and 1, which floats hold exactly
    below = math.nextafter(0.25, 0.0)
    uniforms = torch.tensor([0.0, below, 0.25, 0.4, 0.5, 0.75, JUST_BELOW_ONE])
    assert draw(torch.zeros(4), uniforms).tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_unequal_tokens_are_drawn_where_their_cumulative_sum_says():
    # 1/8, 5/8, 1/4: cumulative 0.125, 0.75, 1
    uniforms = torch.tensor([0.12, 0.13, 0.74, 0.76])
    assert draw(logits_of(1 / 8, 5 / 8, 1 / 4), uniforms).tolist() == [0, 1, 1, 2]


def test_a_token_without_probability_is_skipped_at_both_ends_and_between():
    logits = logits_of(0.0, 0.5, 0.0, 0.5, 0.0)
    uniforms = torch.tensor([0.0, math.nextafter(0.5, 0.0), 0.5, JUST_BELOW_ONE])
    assert draw(logits, uniforms).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_a_token_without_probability_is_never_drawn(seed, dtype):
    # 2000 distributions of 40 tokens, about half of them and the last ten impossible
    possible = torch.rand(2000, 40, generator=generator(seed)) < 0.5
    possible[:, 0], possible[:, 20], possible[:, 30:] = False, True, False
    logits = random_logits(seed, 2000, 40).masked_fill(~possible, -math.inf).to(dtype)
    for uniform in (0.0, 0.5, JUST_BELOW_ONE):
        tokens = draw(logits, torch.full((2000,), uniform))
        assert possible.gather(1, tokens.unsqueeze(1)).all()
    first, last = draw(logits, torch.zeros(2000)), draw(logits, torch.full((2000,), JUST_BELOW_ONE))
    assert torch.equal(first, possible.int().argmax(dim=1))
    assert torch.equal(last, 39 - possible.flip(1).int().argmax(dim=1))


def test_the_cumulative_sum_is_in_double_precision():
    # the first token has 1/2 + 1e-12, which single precision would round to 1/2
    logits = torch.tensor([4e-12, 0.0])
    assert draw(logits, torch.tensor([0.5, 0.5 + 2e-12])).tolist() == [0, 1]
    assert draw(logits.float(), torch.tensor([0.5, 0.5 + 2e-12])).tolist() == [0, 1]


def test_one_distribution_serves_for_all_numbers():
    logits = logits_of(1 / 8, 5 / 8, 1 / 4)
    uniforms = torch.tensor([[0.1, 0.5, 0.9], [0.8, 0.2, 0.05]])
    assert draw(logits, uniforms).tolist() == [[0, 1, 2], [2, 1, 0]]


def test_each_distribution_meets_its_own_number():
    logits = torch.stack([logits_of(0.5, 0.5), logits_of(0.125, 0.875)]).expand(3, 2, 2)
    uniforms = torch.tensor([[0.25, 0.25], [0.75, 0.0625], [0.0, 0.9]])
    assert draw(logits, uniforms).tolist() == [[0, 1], [1, 0], [0, 1]]


def test_shapes_that_differ_are_broadcast():
    # two distributions; four repeats of three numbers for each
    logits = torch.stack([logits_of(0.5, 0.5), logits_of(0.125, 0.875)]).unsqueeze(-2)
    uniforms = torch.tensor([0.1, 0.2, 0.6]).expand(4, 2, 3)
    assert draw(logits, uniforms).tolist() == [[[0, 0, 1], [0, 1, 1]]] * 4


@pytest.mark.parametrize("seed", range(3))
def test_an_even_grid_of_numbers_gives_each_token_its_share(seed):
    logits = random_logits(seed, 6)
    n = 10_000
    counts = draw(logits, (torch.arange(n) + 0.5) / n).bincount(minlength=6)
    p = logits.exp() / logits.exp().sum()
    # a token's interval of length p holds p n of the points, give or take one
    assert ((counts - n * p).abs() <= 1).all()


def test_the_only_token_there_is_is_drawn():
    assert draw(torch.zeros(1), torch.tensor([0.0, JUST_BELOW_ONE])).tolist() == [0, 0]


# roll_out


def test_each_token_is_drawn_with_its_own_number_until_the_end_token():
    world = TokenSequence(["a", "stop"], 2, lambda _, responses: responses[:, 0], end_token=1)
    # "a" has 3/4 at first, and 1/8 after an "a"
    rows = torch.stack([logits_of(3 / 4, 1 / 4), logits_of(1 / 8, 7 / 8), logits_of(1 / 2, 1 / 2)])
    prompts = world.prompts.expand(4, -1)
    uniforms = torch.tensor([[0.7, 0.7, 0.8, 0.8], [0.1, 0.2, 0.1, 0.9]])
    responses, mask = roll_out(TabularPolicy(world, rows), world, prompts, uniforms.double())
    assert responses.tolist() == [[0, 0], [0, 1], [1, 1], [1, 1]]
    assert mask.tolist() == [[True, True], [True, True], [True, False], [True, False]]


def test_a_policy_is_asked_without_gradient():
    world = TokenSequence(["a", "b"], 2, lambda _, responses: responses[:, 0])
    seen = []

    def policy(prompts, responses):
        logits = torch.zeros(2, requires_grad=True).expand(len(prompts), 1 + responses.shape[1], 2)
        seen.append(logits.requires_grad)
        return logits

    roll_out(policy, world, world.prompts, torch.zeros(2, 1, dtype=torch.float64))
    assert seen == [False, False]
