import copy
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from problems import generator, random_logits, random_world
from torch import Tensor
from torch.testing import assert_close

from ppo_toy import exact, reviews, rewards
from ppo_toy.data import Pairs
from ppo_toy.enumeration import list_responses
from ppo_toy.gpt import GPTConfig, TinyGPT
from ppo_toy.policies import TabularPolicy, fingerprint, freeze
from ppo_toy.rewards import (
    RewardModel,
    bradley_terry_loss,
    margins,
    normalize,
    tabulated,
    train_reward_model,
)
from ppo_toy.training import train
from ppo_toy.trajectories import Trajectories, enumerate_all, sample, score
from ppo_toy.worlds import TokenBandit, TokenSequence, ToyReviews

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
WORDS = ["a", "b", "stop", "c"]
STOP = 2
PROMPTS = torch.tensor([[6, 4], [5, 4], [4, 6]])
SMALL = {"n_tokens_in": 7, "n_tokens_out": 4, "context": 5, "width": 12, "heads": 3}
SETTINGS = {"steps": 3, "batch_size": 4, "learning_rate": 0.01}


def bs_less_as(prompts: Tensor, responses: Tensor) -> Tensor:
    """A rule to learn: 2 for each "b" and -1 for each "a" before the stop."""
    going = (responses == STOP).cumsum(dim=1) == 0
    return (2.0 * ((responses == 1) & going) - 1.0 * ((responses == 0) & going)).sum(dim=1)


def small_world(end_token: int | None = STOP, reward=bs_less_as, length: int = 3) -> TokenSequence:
    return TokenSequence(WORDS, length, reward, end_token=end_token, prompts=PROMPTS)


def lively(seed: int, **changes) -> TinyGPT:
    """A transformer far from new, in which every parameter matters, biases and gains too."""
    config = GPTConfig(**{**SMALL, "value_head": True, **changes})
    model = TinyGPT(config, generator=generator(seed))
    numbers = generator(seed + 1000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=numbers, dtype=torch.float64)
    return model


def lively_model(seed: int, end_token: int | None = STOP) -> RewardModel:
    model = RewardModel(lively(seed), small_world(end_token))
    model.offset.fill_(0.75)
    return model


def all_texts(length: int = 3) -> tuple[Tensor, Tensor]:
    """Every row of tokens after every prompt, what stands behind the stop included."""
    rows = list(itertools.product(range(len(PROMPTS)), *[range(4)] * length))
    return PROMPTS[[row[0] for row in rows]], torch.tensor([row[1:] for row in rows])


def read_alone(model: RewardModel, prompt: Tensor, response: Tensor) -> Tensor:
    """R of one response: it is cut after its stop, and the last value is taken."""
    tokens = response.tolist()
    if model.end_token in tokens:
        tokens = tokens[: tokens.index(model.end_token) + 1]
    values = model.trunk.values(prompt.unsqueeze(0), torch.tensor([tokens]))
    assert values.shape == (1, len(tokens) + 1)
    return values[0, -1] - 0.75


def used(model: RewardModel) -> list[Tensor]:
    """The parameters that a reward depends on: all but the head for the next word."""
    named = model.named_parameters()
    return [parameter for name, parameter in named if not name.startswith("trunk.head.")]


def pairs_of(*rows: tuple[list[int], list[int], list[int]]) -> Pairs:
    prompts, chosen, rejected = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Pairs(prompts, chosen, rejected, torch.zeros(len(rows), dtype=torch.long))


TWO_PAIRS = pairs_of(([6, 4], [1, 1, 2], [0, 2, 2]), ([5, 4], [1, 3, 1], [2, 2, 2]))


# By hand


def test_the_loss_is_minus_the_log_of_what_the_choices_were_likely():
    # differences 2 - 1 = 1 and -1 - 1 = -2: log(1 + e^-1) and log(1 + e^2)
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0])
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert_close(bradley_terry_loss(chosen, rejected), torch.tensor(expected))


def test_a_column_of_rewards_is_not_paired_with_a_row():
    with pytest.raises(ValueError, match=r"^chosen \[3\], rejected \[3, 1\] do not fit"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3, 1))


def test_the_gradient_of_the_loss_is_how_surprising_the_choice_was():
    # d/dx of -log sigmoid(x) is -sigmoid(-x) = -1 / (1 + e^x), and each pair is half of the mean
    chosen = torch.tensor([2.0, -1.0], requires_grad=True)
    rejected = torch.tensor([1.0, 1.0], requires_grad=True)
    bradley_terry_loss(chosen, rejected).backward()
    expected = torch.tensor([-1 / (1 + math.exp(1)) / 2, -1 / (1 + math.exp(-2)) / 2])
    assert_close(chosen.grad, expected)
    assert_close(rejected.grad, -expected)


def test_three_choices_to_one_are_a_difference_of_log_3_where_the_loss_is_least():
    # 3 of 4 chose the first: the gradient -3/4 * sigmoid(-x) + 1/4 * sigmoid(x) is 0 at log 3
    x = torch.tensor(math.log(3), requires_grad=True)
    bradley_terry_loss(torch.stack([x, x, x, -x]), torch.zeros(4)).backward()
    assert_close(x.grad, torch.tensor(0.0))


def test_a_model_that_knows_nothing_loses_log_2():
    assert_close(bradley_terry_loss(torch.ones(5), torch.ones(5)), torch.tensor(math.log(2)))


@pytest.mark.parametrize(
    ("response", "tokens_read"),
    [
        ([2, 2, 2, 2], 1),
        ([2, 0, 1, 3], 1),  # ends at once, and something else stands there as padding
        ([0, 2, 2, 2], 2),
        ([0, 2, 1, 2], 2),
        ([1, 0, 2, 3], 3),
        ([1, 0, 3, 2], 4),
        ([1, 0, 3, 0], 4),  # never ends
    ],
)
def test_the_number_is_read_after_the_last_token_the_stop_included(response, tokens_read):
    model = RewardModel(lively(0, context=6), small_world(length=4))
    model.trunk.values = lambda prompts, responses: torch.tensor([[0.0, 10, 20, 30, 40]])
    assert model(PROMPTS[:1], torch.tensor([response])).tolist() == [10 * tokens_read]
    model.end_token = None
    assert model(PROMPTS[:1], torch.tensor([response])).tolist() == [40]


def test_a_margin_is_the_reward_of_the_chosen_less_that_of_the_rejected():
    model = lively_model(0)
    model.forward = lambda prompts, responses: 10.0 * prompts[:, 0] + responses.sum(dim=1)
    # 1 + 1 + 2 against 0 + 2 + 2, and 1 + 3 + 1 against 2 + 2 + 2; the prompt cancels out
    assert margins(model, TWO_PAIRS).tolist() == [0, -1]


def test_the_first_loss_is_that_of_the_model_before_its_update():
    model = lively_model(0)
    with torch.no_grad():
        chosen, rejected = (
            read_alone(model, PROMPTS[0], torch.tensor(tokens)) for tokens in ([1, 1], [0, 2])
        )
    pair = pairs_of(([6, 4], [1, 1], [0, 2]))
    losses = train_reward_model(pair, model, **SETTINGS, generator=generator(0))
    assert_close(losses[0], (1 + (rejected - chosen).exp()).log())
    assert losses[1] < losses[0]


def test_the_mean_that_normalising_takes_away_is_the_weighted_one():
    # scores 1 * 4 = 4 and 2 * 4 = 8, with weights 1/4 and 3/4
    model = lively_model(0)
    model.offset.zero_()
    model.trunk.values = lambda prompts, responses: 4.0 * responses[:, :1].expand(-1, 4)
    weights, mask = torch.tensor([0.25, 0.75], requires_grad=True), torch.ones(2, 3).bool()
    batch = Trajectories(PROMPTS[:2], torch.tensor([[1, 2, 2], [2, 2, 2]]), mask, weights)
    assert normalize(model, batch) == 7
    assert model.offset.item() == 7
    assert model(batch.prompts, batch.responses).tolist() == [-3, 1]
    assert normalize(model, batch) == 0
    assert model.offset.item() == 7
    assert not model.offset.requires_grad


# Properties of the model


@pytest.mark.parametrize("seed", range(3))
def test_a_model_made_from_a_policy_scores_everything_0_and_speaks_as_it_did(seed):
    policy = lively(seed, value_head=False)
    before, numbers = fingerprint(policy), torch.get_rng_state()
    model = RewardModel.from_policy(freeze(policy), small_world())
    prompts, responses = all_texts()
    assert (model(prompts, responses) == 0).all()
    assert torch.equal(model.trunk(prompts, responses), policy(prompts, responses))
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert fingerprint(policy) == before


def test_what_a_policy_thought_a_state_worth_is_forgotten():
    model = RewardModel.from_policy(lively(0), small_world())
    assert (model(*all_texts()) == 0).all()


def test_the_model_has_the_precision_of_its_policy():
    model = RewardModel.from_policy(lively(0, value_head=False).float(), small_world())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(*all_texts()).dtype == torch.float32
    assert model.offset.dtype == torch.float64


def test_the_trunk_is_copied():
    trunk = lively(0)
    model = RewardModel(trunk, small_world())
    before = model(*all_texts()).detach()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter += 1
    assert torch.equal(model(*all_texts()), before)


def test_a_model_knows_the_words_and_the_end_of_its_world():
    for end_token in (STOP, None):
        world = small_world(end_token)
        model = RewardModel(lively(0), world)
        assert model.vocabulary == WORDS
        assert model.vocabulary is not world.vocabulary
        assert model.end_token == end_token


def test_every_prompt_and_every_token_up_to_the_stop_changes_the_reward():
    scores = {}
    model = lively_model(0)
    for prompt, response in zip(*all_texts(), strict=True):
        read = [*response.tolist(), STOP]
        read = (*prompt.tolist(), *read[: min(read.index(STOP) + 1, 3)])
        reward = model(prompt.unsqueeze(0), response.unsqueeze(0)).item()
        scores.setdefault(read, []).append(reward)
    # 1 + 3 + 9 + 27 texts to each of 3 prompts
    assert len(scores) == 3 * 40
    firsts = sorted(numbers[0] for numbers in scores.values())
    assert min(b - a for a, b in itertools.pairwise(firsts)) > 1e-9  # rounding is 1e-16
    for numbers in scores.values():
        assert_close(numbers, [numbers[0]] * len(numbers))


def test_the_shift_is_kept_with_the_weights_but_is_not_learned():
    model, twin = lively_model(0), RewardModel(lively(1), small_world())
    before = fingerprint(twin)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(*all_texts()), model(*all_texts()))
    assert "offset" not in dict(model.named_parameters())
    assert fingerprint(twin) == fingerprint(model) != before


def test_a_frozen_model_has_its_shift_and_asks_for_no_gradient():
    model = lively_model(0)
    frozen = freeze(model)
    expected = model(*all_texts()).detach()
    normalize(model, enumerate_all(TabularPolicy(small_world()), small_world()))
    train_reward_model(TWO_PAIRS, model, **SETTINGS, generator=generator(0))
    got = frozen(*all_texts())
    assert torch.equal(got, expected)
    assert not got.requires_grad
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert model(*all_texts()).requires_grad


# Padding, against one response at a time


@pytest.mark.parametrize("end_token", [None, 0, 2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_padded_rewards_are_those_of_each_response_alone_in_value_and_gradient(seed, end_token):
    model = lively_model(seed, end_token)
    prompts, responses = all_texts()
    got = model(prompts, responses)
    texts = zip(prompts, responses, strict=True)
    alone = torch.stack([read_alone(model, *text) for text in texts])
    assert_close(got, alone)
    coefficients = random_logits(seed, len(got))
    gradients, expected = (
        torch.autograd.grad((coefficients * r).sum(), used(model)) for r in (got, alone)
    )
    assert all((gradient != 0).any() for gradient in expected)
    assert_close(gradients, expected)


@pytest.mark.parametrize("padding", [-1, 0, 99])
def test_what_stands_behind_the_stop_need_not_even_be_a_token(padding):
    model = lively_model(0)
    got = model(PROMPTS, torch.tensor([[2, padding, padding], [1, 2, padding], [1, 0, 2]]))
    expected = model(PROMPTS, torch.tensor([[2, 2, 2], [1, 2, 2], [1, 0, 2]]))
    assert torch.equal(got, expected)


# Learning


def test_adding_a_constant_to_all_rewards_changes_nothing():
    chosen, rejected = random_logits(0, 2, 20)
    loss = bradley_terry_loss(chosen, rejected)
    assert_close(bradley_terry_loss(chosen + 5, rejected + 5), loss)
    assert (bradley_terry_loss(chosen, rejected + 5) - loss).abs() > 1


@pytest.mark.parametrize(("gap", "loss", "slope"), [(800.0, 0.0, 0.0), (-800.0, 800.0, -1.0)])
def test_a_choice_that_is_all_but_certain_has_a_finite_loss_and_gradient(gap, loss, slope):
    x = torch.tensor([gap], requires_grad=True)
    got = bradley_terry_loss(x, torch.zeros(1))
    got.backward()
    assert_close(got, torch.tensor(loss))
    assert_close(x.grad, torch.tensor([slope]))


def test_a_new_model_begins_at_log_2():
    model = RewardModel.from_policy(lively(0, value_head=False), small_world())
    losses = train_reward_model(TWO_PAIRS, model, **SETTINGS, generator=generator(0))
    assert losses.shape == (3,)
    assert_close(losses[0], torch.tensor(math.log(2)))
    assert (losses[1:] < math.log(2)).all()


def test_the_loss_is_the_mean_over_pairs_drawn_evenly_with_replacement():
    model, n = lively_model(0), 1000
    of_each = (1 + (-margins(model, TWO_PAIRS)).exp()).log().tolist()
    losses = train_reward_model(
        TWO_PAIRS, model, steps=1, batch_size=n, learning_rate=0.01, generator=generator(1)
    )
    share = (losses.item() - of_each[1]) / (of_each[0] - of_each[1])
    # a whole number of the thousand, up to rounding; by chance, and so not just 500, but half of
    # them within six standard errors
    assert share * n == pytest.approx(round(share * n), abs=1e-6)
    assert 0.5 / n < abs(share - 0.5) < 6 * 0.5 / math.sqrt(n)


def test_no_pair_is_left_out():
    model = lively_model(0)
    before = margins(model, TWO_PAIRS)
    for which in range(2):
        twin = copy.deepcopy(model)
        single = TWO_PAIRS[torch.tensor([which])]
        losses = train_reward_model(single, twin, **SETTINGS, generator=generator(0))
        assert_close(losses[0], (1 + (-before[which]).exp()).log())


def test_the_step_falls_in_a_straight_line():
    # Adam moves each weight of the value head by very nearly the learning rate at a step: on one
    # pair again and again, the gradient hardly changes. 1e-6 * (1 + 3/4 + 1/2 + 1/4)
    model = lively_model(0)
    before = model.trunk.value_head.weight.detach().clone()
    train_reward_model(
        TWO_PAIRS[:1], model, steps=4, batch_size=1, learning_rate=1e-6, generator=generator(0)
    )
    moved = (model.trunk.value_head.weight - before).abs()
    # a hundredth is what the gradient changes by
    assert_close(moved, torch.full_like(moved, 2.5e-6), rtol=0.01, atol=0)


def test_a_weight_that_no_pair_speaks_of_shrinks_by_its_decay_alone():
    # token 0 is never read; 0.1 * 0.5 of it goes at the first step, and 3/4, 1/2, 1/4 of that
    model = lively_model(0)
    before = model.trunk.tokens.weight.detach().clone()
    pair, settings = pairs_of(([6, 4], [1, 1], [3, 2])), {**SETTINGS, "steps": 4}
    settings["learning_rate"] = 0.1
    twin = copy.deepcopy(model)
    train_reward_model(pair, model, **settings, generator=generator(0), weight_decay=0.5)
    shrunk = (1 - 0.05) * (1 - 0.0375) * (1 - 0.025) * (1 - 0.0125)
    assert_close(model.trunk.tokens.weight[0], shrunk * before[0])
    train_reward_model(pair, twin, **settings, generator=generator(0))
    assert torch.equal(twin.trunk.tokens.weight[0], before[0])


def test_decay_keeps_the_model_from_being_too_sure():
    surest = []
    for weight_decay in (0.0, 3.0):
        model = lively_model(0)
        train_reward_model(
            TWO_PAIRS, model, steps=40, batch_size=4, learning_rate=0.01, generator=generator(0),
            weight_decay=weight_decay,
        )  # fmt: skip
        assert (margins(model, TWO_PAIRS) > 0).all()
        surest.append(margins(model, TWO_PAIRS).max())
    assert surest[1] < surest[0] / 2


def test_all_is_learned_but_the_head_for_words_and_the_shift():
    model = lively_model(0)
    before = copy.deepcopy(model.state_dict())
    train_reward_model(TWO_PAIRS, model, **SETTINGS, generator=generator(0))
    kept = {name for name, x in model.state_dict().items() if torch.equal(x, before[name])}
    assert {"offset", "trunk.head.weight", "trunk.head.bias"} <= kept
    # a constant in every reward cancels out, and the gradients of what adds one are rounding
    constant = {"trunk.value_head.bias", "trunk.norm.bias"}
    assert kept - constant == {"offset", "trunk.head.weight", "trunk.head.bias"}


def test_choices_of_a_small_world_teach_its_order():
    world = random_world(4, prompts=1, tokens=3, length=2, end_token=0)
    batch = enumerate_all(TabularPolicy(world), world)
    worth = score(world, batch)
    assert len(worth) == 7
    better = [(i, j) for i, j in itertools.permutations(range(7), 2) if worth[i] > worth[j]]
    said = batch.responses.tolist()
    pairs = pairs_of(*[([0], said[i], said[j]) for i, j in better])
    assert len(better) == 21
    model = RewardModel.from_policy(
        TinyGPT(GPTConfig(3, 3, 3, width=16, layers=1), generator=generator(0)), world
    )
    assert (margins(model, pairs) == 0).all()
    losses = train_reward_model(
        pairs, model, steps=120, batch_size=32, learning_rate=0.01, generator=generator(1)
    )
    assert (margins(model, pairs) > 0).all()
    assert losses[-10:].mean() < 0.1 < math.log(2)
    got = model(batch.prompts, batch.responses)
    assert got.argsort().tolist() == worth.argsort().tolist()


def test_choices_of_three_to_one_teach_a_difference_of_log_3():
    # "a" wins over "b" three times of four, and "b" over "c" one time of two
    world = TokenSequence(["a", "b", "c"], 1, bs_less_as)
    rows = [([0], [0], [1])] * 3 + [([0], [1], [0])] + [([0], [1], [2]), ([0], [2], [1])] * 2
    model = RewardModel.from_policy(
        TinyGPT(GPTConfig(3, 3, 2, width=8, heads=1, layers=1), generator=generator(0)), world
    )
    train_reward_model(
        pairs_of(*rows), model, steps=150, batch_size=256, learning_rate=0.03,
        generator=generator(1),
    )  # fmt: skip
    a, b, c = model(torch.zeros(3, 1, dtype=torch.long), torch.arange(3).unsqueeze(1)).tolist()
    # the last hundred batches hold 12,800 choices between a and b, which fix log odds of three to
    # one up to 1 / sqrt(12,800 * 3/4 * 1/4) = 0.02; five of those
    assert abs(a - b - math.log(3)) < 0.1
    assert abs(b - c) < 0.1


def test_the_same_numbers_give_the_same_model():
    prints = set()
    for seed in (0, 0, 1):
        model = lively_model(0)
        before = torch.get_rng_state()
        losses = train_reward_model(TWO_PAIRS, model, **SETTINGS, generator=generator(seed))
        assert torch.equal(torch.get_rng_state(), before)
        assert not losses.requires_grad
        prints.add(fingerprint(model))
    assert len(prints) == 2


def test_margins_leave_no_gradient_and_do_not_see_the_shift():
    model = lively_model(0)
    before = margins(model, TWO_PAIRS)
    assert not before.requires_grad
    assert torch.is_grad_enabled()
    model.offset += 5
    assert_close(margins(model, TWO_PAIRS), before)


# Normalising


@pytest.mark.parametrize("chunk", [5, 512])
@pytest.mark.parametrize("end_token", [None, 2])
def test_the_reference_earns_exactly_0_once_every_response_is_weighed(
    monkeypatch, end_token, chunk
):
    monkeypatch.setattr(rewards, "CHUNK", chunk)
    world, model = small_world(end_token), lively_model(0, end_token)
    reference = lively(1, value_head=False)
    batch = enumerate_all(reference, world)
    texts = zip(batch.prompts, batch.responses, batch.weights, strict=True)
    expected = sum(weight * read_alone(model, x, y) for x, y, weight in texts).item()
    assert normalize(model, batch) == pytest.approx(expected, abs=1e-12)  # rounding
    assert abs(expected) > 0.1
    mean = exact.evaluate(reference, reference, replace(world, reward=model), 1.0).reward
    assert mean == pytest.approx(0, abs=1e-12)  # rounding
    assert model.offset.item() == pytest.approx(0.75 + expected)


def test_the_best_policy_does_not_notice_the_shift_and_earns_so_much_less():
    model, reference = lively_model(0), TabularPolicy.random(small_world(), generator=generator(1))
    world, beta = small_world(reward=model), 0.3
    before = exact.optimum(reference, world, beta)
    taken = normalize(model, enumerate_all(reference, world))
    after = exact.optimum(reference, world, beta)
    assert abs(taken) > 0.1
    assert_close(after.policy.logits.softmax(dim=-1), before.policy.logits.softmax(dim=-1))
    assert after.objective == pytest.approx(before.objective - taken)
    assert after.reward == pytest.approx(before.reward - taken)
    assert after.kl == pytest.approx(before.kl)


def test_a_sampled_batch_earns_0_on_its_own_average_and_about_0_exactly():
    world, model, n = small_world(), lively_model(0), 1000
    reference = lively(1, value_head=False)
    batch = sample(reference, world, n, generator=generator(0))
    normalize(model, batch)
    earned = model(batch.prompts, batch.responses).detach()
    assert abs(earned.mean()) < 1e-12  # rounding
    mean = exact.evaluate(reference, reference, replace(world, reward=model), 1.0).reward
    # five standard errors: one seed in two million fails
    assert 0 < abs(mean) < 5 * earned.std() / math.sqrt(n)


def test_no_graph_is_kept_of_the_many_responses_that_are_scored():
    model, kept = lively_model(0), []
    model.register_forward_hook(lambda module, args, out: kept.append(out.requires_grad))
    normalize(model, enumerate_all(TabularPolicy(small_world()), small_world()))
    assert kept == [False]


def test_a_model_in_single_precision_is_normalised_up_to_its_rounding():
    world, model = small_world(), lively_model(0).float()
    batch = enumerate_all(TabularPolicy(world), world)
    normalize(model, batch)
    # rewards of order 1, each rounded to 2^-24 = 6e-8
    assert abs(normalize(model, batch)) < 1e-6


# Tabulating


@pytest.mark.parametrize("chunk", [7, 512])
@pytest.mark.parametrize("end_token", [None, 0, 2, 3])
def test_the_table_is_the_model_for_every_response_whatever_stands_behind_its_end(
    monkeypatch, end_token, chunk
):
    monkeypatch.setattr(rewards, "CHUNK", chunk)
    model = lively_model(0, end_token)
    world = small_world(end_token, model)
    table = tabulated(world)
    prompts, responses = all_texts()
    order = torch.randperm(len(prompts), generator=generator(0))
    got = table.reward(prompts[order], responses[order])
    # the model reads other responses beside these, and adds up in another order: rounding
    assert_close(got, model(prompts, responses)[order].detach(), rtol=0, atol=1e-12)
    assert got.dtype == torch.float64
    assert not got.requires_grad


def test_padding_that_is_no_token_is_not_looked_up():
    model = lively_model(0)
    table = tabulated(small_world(reward=model))
    responses = torch.tensor([[2, 99, -1], [1, 2, 99], [1, 0, 2]])
    assert_close(table.reward(PROMPTS, responses), model(PROMPTS, responses).detach())


def test_a_table_of_a_table_is_the_same_table():
    for world in (TokenSequence.brackets(), random_world(0, prompts=3, end_token=1)):
        batch = enumerate_all(TabularPolicy(world), world)
        assert torch.equal(score(tabulated(world), batch), score(world, batch))


def test_once_tabulated_the_model_is_never_asked_again():
    model, asked = lively_model(0), []
    model.register_forward_hook(lambda module, args, out: asked.append(len(args[1])))
    world = small_world(reward=model)
    table = tabulated(world)
    assert sum(asked) == 3 * 40
    asked.clear()
    before = table.reward(*all_texts())
    with torch.no_grad():
        model.offset += 1
    assert torch.equal(table.reward(*all_texts()), before)
    assert asked == []


def test_all_but_the_reward_is_as_it_was():
    world = small_world()
    table = tabulated(world)
    assert world.reward is bs_less_as
    for name in ("vocabulary", "response_length", "end_token", "prompts"):
        assert getattr(table, name) is getattr(world, name)


def test_fewer_prompts_may_be_asked_and_others_are_an_error():
    world = small_world(reward=lively_model(0))
    table = tabulated(world)
    fewer = replace(table, prompts=PROMPTS[1:2])
    responses = torch.tensor([[1, 0, 2]])
    expected = world.reward(PROMPTS[1:2], responses).detach()
    assert_close(fewer.reward(PROMPTS[1:2], responses), expected)
    only = tabulated(replace(world, prompts=PROMPTS[1:2]))
    assert_close(only.reward(PROMPTS[1:2].expand(2, 2), responses.expand(2, 3)), expected.expand(2))
    for other in (PROMPTS[:1], PROMPTS[2:]):
        with pytest.raises(ValueError, match=r"prompt \[., .\] is not among the world's prompts"):
            only.reward(other, responses)


@pytest.mark.parametrize("token", [4, 99])
def test_a_token_of_no_word_is_not_taken_for_another_response(token):
    table = tabulated(small_world())
    with pytest.raises(IndexError, match=f"index {token} is out of bounds"):
        table.reward(PROMPTS[:1], torch.tensor([[token, 0, 2]]))


def test_policies_with_runs_are_scored_by_the_table():
    world = small_world(reward=lively_model(0))
    batch = sample(TabularPolicy(world).repeat(2), world, 5, generator=generator(0))
    assert_close(score(tabulated(world), batch), score(world, batch))


# With the rest of the course


def test_reviews_take_a_reward_model_and_may_be_tabulated():
    config = GPTConfig(24, 17, 6, width=4, layers=1, heads=1, value_head=True)
    trunk = TinyGPT(config, generator=generator(0), dtype=torch.float32)
    torch.nn.init.ones_(trunk.value_head.weight[:, :2])
    model = RewardModel(trunk, ToyReviews())
    world = ToyReviews(model, prompts=reviews.PROMPTS[3:4])
    batch = sample(reviews.grammar, world, 200, generator=generator(0))
    expected = model(batch.prompts, batch.responses).detach()
    assert expected.std() > 0.1
    # single precision, and the sums are in another order
    assert_close(score(tabulated(world), batch), expected.double(), rtol=0, atol=1e-5)
    assert torch.equal(score(world, batch), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_the_whole_chain_goes_the_same_way_on_every_device(device):
    routes = []
    for where in ("cpu", device):
        numbers, world = generator(0), small_world()
        reference = freeze(lively(0, value_head=False)).to(where)
        drawn = sample(reference, world, 64, generator=numbers)
        model = RewardModel.from_policy(reference, world)
        losses = train_reward_model(TWO_PAIRS, model, **SETTINGS, generator=numbers)
        mean = normalize(model, drawn)
        world = replace(world, reward=freeze(model))
        policy = copy.deepcopy(reference).requires_grad_(True)
        history = train(
            policy, reference, world, beta=0.5, steps=2, batch_size=32, learning_rate=3e-3,
            generator=numbers,
        )  # fmt: skip
        learned = score(world, drawn)
        after = sample(policy, world, 64, generator=numbers)
        for tensor in (drawn.responses, learned, after.responses, next(model.parameters())):
            assert tensor.device.type == where
        assert losses.device.type == margins(model, TWO_PAIRS).device.type == "cpu"
        table = tabulated(world)
        assert_close(score(table, drawn), learned)
        assert table.reward(TWO_PAIRS.prompts, TWO_PAIRS.chosen).device.type == "cpu"
        routes.append((drawn, after, learned, losses, mean, history))
    for here, there in zip(*(route[:2] for route in routes), strict=True):
        assert torch.equal(here.responses, there.responses.cpu())
        assert torch.equal(here.mask, there.mask.cpu())
    here, there = (route[2:] for route in routes)
    assert_close(here[0], there[0].cpu())
    assert_close(here[1:3], there[1:3])
    assert_close(vars(here[3]), vars(there[3]), equal_nan=True)
    assert here[3].reward[0] != here[3].reward[1]


# Errors


def test_a_trunk_without_a_value_head_is_told_where_to_get_one():
    with pytest.raises(ValueError, match="no value head; RewardModel.from_policy adds one"):
        RewardModel(lively(0, value_head=False), small_world())


@pytest.mark.parametrize("tokens", [3, 5])
def test_a_trunk_of_another_vocabulary_is_an_error(tokens):
    trunk = lively(0, n_tokens_out=tokens)
    with pytest.raises(ValueError, match=f"the trunk has {tokens} tokens, the world 4"):
        RewardModel(trunk, small_world())
    with pytest.raises(ValueError, match=f"the trunk has {tokens} tokens, the world 4"):
        RewardModel.from_policy(trunk, small_world())


def test_a_context_too_short_for_the_longest_response_is_an_error():
    with pytest.raises(ValueError, match="the trunk's context is 5; this world needs 6"):
        RewardModel(lively(0), small_world(length=4))
    for context in (6, 7):
        RewardModel(lively(0, context=context), small_world(length=4))


def test_a_model_of_other_words_is_refused_by_the_world():
    model = lively_model(0)
    with pytest.raises(ValueError, match="token 0 is 'a' to the reward, '.' in this world"):
        ToyReviews(model)
    with pytest.raises(ValueError, match="token 3 is 'c' to the reward, 'd' in this world"):
        TokenSequence(["a", "b", "stop", "d"], 3, model)


@pytest.mark.parametrize("end", [0, None])
def test_a_model_that_ends_elsewhere_is_refused_by_the_world(end):
    model = lively_model(0)
    with pytest.raises(ValueError, match=f"^the reward's end token is 2, this world's {end}$"):
        TokenSequence(WORDS, 3, model, end_token=end)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"steps": -1}, "steps is -1"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive and finite"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"weight_decay": -0.1}, "weight_decay value: -0.1"),
        ({"pairs": TWO_PAIRS[:0]}, "pairs is 0; it must be 1 or more"),
        ({"pairs": pairs_of(([6, 7], [1, 1], [0, 2]))}, "a prompt holds the token 7"),
        ({"pairs": pairs_of(([6, 4], [1, 1], [4, 2]))}, "a response holds the token 4"),
    ],
)
def test_settings_that_cannot_be_are_an_error(changes, message):
    model = lively_model(0)
    before = fingerprint(model)
    arguments = {"pairs": TWO_PAIRS, **SETTINGS, **changes}
    with pytest.raises(ValueError, match=message):
        train_reward_model(model=model, **arguments, generator=generator(0))
    assert fingerprint(model) == before


def test_one_step_with_one_pair_is_enough():
    settings = {"steps": 1, "batch_size": 1, "learning_rate": 0.01}
    losses = train_reward_model(TWO_PAIRS[:1], lively_model(0), **settings, generator=generator(0))
    assert losses.shape == (1,)


def test_a_world_with_too_many_responses_is_not_tabulated():
    world = TokenSequence("abcdefghij", 12, bs_less_as)
    with pytest.raises(ValueError, match="this world has 1,000,000,000,000 responses"):
        tabulated(world)


def test_a_table_much_larger_than_the_list_is_refused_before_memory_is_touched():
    # two tokens of which one ends: 41 responses, but 2^40 = 10^12.04 entries
    def no_reward(prompts, responses):
        raise AssertionError("the reward was asked")

    world = TokenSequence("ab", 40, no_reward, end_token=1)
    with pytest.raises(ValueError, match=r"a table of 10\^12\.0 rewards; at most 134,217,728"):
        tabulated(world)


def test_a_reward_that_is_not_finite_is_not_tabulated():
    def broken(prompts, responses):
        return torch.where((responses == torch.tensor([1, 3, 0])).all(dim=1), math.nan, 0.0)

    with pytest.raises(ValueError, match=r"the reward of \['b', 'c', 'a'\] is nan"):
        tabulated(small_world(reward=broken))


def test_a_world_of_any_class_is_tabulated():
    class Fixed(NamedTuple):  # cannot be changed, nor can a copy of it
        prompts: torch.Tensor = PROMPTS
        vocabulary: tuple = ("a", "b", "c")
        response_length: int = 2
        end_token: int | None = 1

        def reward(self, prompts, responses):
            return prompts[:, 0] + 10 * responses[:, 0]

    class Plain:
        prompts, vocabulary = PROMPTS.tolist(), ["a", "b", "c"]
        response_length, end_token, prompt_weights = 2, 1, [0.5, 0.25, 0.25]
        reward = Fixed.reward

    bandit = TokenBandit(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    for world in (
        Fixed(),
        Plain(),
        bandit,
        SimpleNamespace(**Fixed()._asdict(), reward=Plain().reward),
    ):
        table = tabulated(world)
        batch = enumerate_all(TabularPolicy(world), world)
        assert_close(score(table, batch), score(world, batch).double())
        assert type(table) is type(world) or isinstance(world, Fixed)
        assert torch.equal(enumerate_all(TabularPolicy(table), table).weights, batch.weights)
    assert Plain().reward(PROMPTS, PROMPTS).tolist() == Fixed().reward(PROMPTS, PROMPTS).tolist()


def test_a_reward_that_is_true_or_false_is_tabulated_as_1_or_0():
    world = small_world(reward=lambda prompts, responses: responses[:, 0] == 1)
    batch = enumerate_all(TabularPolicy(world), world)
    assert set(score(tabulated(world), batch).tolist()) == {0.0, 1.0}


def test_a_reward_that_writes_to_its_responses_spoils_no_later_list():
    class Scribbler:
        prompts, vocabulary, response_length, end_token = [[0]], ["a", "b"], 2, None

        def reward(self, prompts, responses):
            return responses.fill_(1).sum(dim=1)

    tabulated(Scribbler())
    assert list_responses(Scribbler())[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
