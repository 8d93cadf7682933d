import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from problems import generator, logits_of, random_logits, random_policies, random_world
from torch import nn
from torch.testing import assert_close

from ppo_toy import enumeration
from ppo_toy.policies import TabularPolicy
from ppo_toy.trajectories import (
    Trajectories,
    enumerate_all,
    families,
    log_probs,
    masked_kl,
    of_tokens,
    per_step_kl,
    sample,
    score,
    step_log_probs,
)
from ppo_toy.worlds import TokenSequence


class WeatherReport:
    """A world of a reader's own: no base class, prompts of two tokens, one of them frequent."""

    vocabulary = ("sun", "rain", "stop")
    response_length = 3
    end_token = 2
    prompts = torch.tensor([[4, 1], [0, 7]])
    prompt_weights = (0.75, 0.25)

    def reward(self, prompts, responses):
        ended = (responses == 2).cumsum(1) > 0
        sunny = ((responses == 0) & ~ended).sum(1)
        return sunny.double() - prompts[:, 1]


class Bigram(nn.Module):
    """A policy of a reader's own: the next token depends on the prompt and on the last token."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.start = nn.Parameter(random_logits(seed, 8, 3).to(dtype))
        self.after = nn.Parameter(random_logits(seed + 100, 3, 3).to(dtype))

    def forward(self, prompts, responses):
        first = self.start[prompts.sum(1)].unsqueeze(1)
        return torch.cat([first, first + self.after[responses]], dim=1)


def wavy(prompts, responses):
    """A plain function, every prefix of which gets other logits: three tokens."""
    steps = torch.arange(1, responses.shape[1] + 1)
    sums = ((responses + 1.5) * (steps**2 + 0.1)).cumsum(1)
    state = torch.cat([torch.zeros(len(prompts), 1), sums], dim=1) + prompts.sum(1, keepdim=True)
    return torch.sin(state.unsqueeze(-1) * torch.tensor([1.0, 1.7, 2.3]))


def adding_up(prompts, responses):
    """Certain of one token: the sum of the prompt and of all tokens so far, modulo 3."""
    zero = torch.zeros(len(prompts), 1, dtype=torch.long)
    sums = torch.cat([zero, responses.cumsum(1)], dim=1) + prompts.sum(1, keepdim=True)
    return torch.nn.functional.one_hot(sums % 3, 3).double().log()


def batch_by_hand() -> Trajectories:
    """Responses of 1, 2, 3 and 3 tokens to two prompts; padding of 99 shows wherever it leaks."""
    return Trajectories(
        prompts=torch.tensor([[4, 1], [0, 7], [4, 1], [0, 7]]),
        responses=torch.tensor([[2, 99, 99], [1, 2, 99], [0, 1, 2], [1, 0, 0]]),
        mask=torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]).bool(),
        weights=torch.tensor([0.1, 0.2, 0.3, 0.4]),
    )


def single_responses(batch: Trajectories):
    """Each prompt [1, P] with the tokens of its response that count, as a list."""
    for prompt, response, mask in zip(batch.prompts, batch.responses, batch.mask, strict=True):
        yield prompt.unsqueeze(0), response[: int(mask.sum())].tolist()


def next_log_p(policy, prompt, prefix) -> torch.Tensor:
    """Of the token after a prefix, [V], by asking about that prefix and nothing else."""
    prefix = torch.tensor([prefix], dtype=torch.long).reshape(1, -1)
    logits = policy(prompt, prefix)[0, -1]
    return logits - logits.exp().sum().log()


def slow_log_probs(policy, batch) -> torch.Tensor:
    rows = []
    for prompt, response in single_responses(batch):
        row = [next_log_p(policy, prompt, response[:t])[v] for t, v in enumerate(response)]
        rows.append(torch.stack([*row, *[torch.zeros(())] * (batch.mask.shape[1] - len(row))]))
    return torch.stack(rows)


def slow_kl(policy, reference, batch) -> torch.Tensor:
    rows = []
    for prompt, response in single_responses(batch):
        row = []
        for t in range(len(response)):
            log_p = next_log_p(policy, prompt, response[:t])
            log_q = next_log_p(reference, prompt, response[:t]).detach()
            row.append(sum(p.exp() * (p - q) for p, q in zip(log_p, log_q, strict=True)))
        rows.append(torch.stack([*row, *[torch.zeros(())] * (batch.mask.shape[1] - len(row))]))
    return torch.stack(rows)


def slow_probability(policy, prompt, response) -> torch.Tensor:
    """Of a whole response: the product of its conditionals."""
    p = torch.ones(())
    for t, token in enumerate(response):
        p = p * next_log_p(policy, prompt, response[:t])[token].exp()
    return p


def all_responses(world) -> list[list[int]]:
    """Without padding, each once, by itertools."""
    listed = {}
    for response in itertools.product(range(len(world.vocabulary)), repeat=world.response_length):
        if world.end_token in response:
            response = response[: response.index(world.end_token) + 1]
        listed[response] = None
    return [list(response) for response in listed]


def gradients(scalar: torch.Tensor, policy: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(scalar, list(policy.parameters())))


def table_of(world, seed: int) -> TabularPolicy:
    return TabularPolicy.random(world, generator=generator(seed))


def tables_with_runs(world, runs: int, seed: int = 0):
    shape = TabularPolicy(world).logits.shape
    tables = random_logits(seed, runs, *shape)
    return TabularPolicy(world, tables), [TabularPolicy(world, table) for table in tables]


# Trajectories


def test_tokens_are_the_responses_with_zeros_for_padding():
    batch = batch_by_hand()
    expected = [[2, 0, 0], [1, 2, 0], [0, 1, 2], [1, 0, 0]]
    assert batch.tokens.tolist() == expected
    assert batch.responses[0].tolist() == [2, 99, 99]


# sample


def test_a_policy_that_is_certain_gives_the_only_response_there_is():
    # prompt 5: 5 mod 3 = 2 ends; prompt 7: 7 mod 3 = 1, then 8 mod 3 = 2 ends;
    # prompt 3: 0, then 0, then 0
    world = SimpleNamespace(
        prompts=torch.tensor([[4, 1], [0, 7], [3, 0]]),
        vocabulary="abc",
        response_length=3,
        end_token=2,
    )
    batch = sample(adding_up, world, 50, generator=generator(0))
    right = {5: [2, 2, 2], 7: [1, 2, 2], 3: [0, 0, 0]}
    counts = {5: [True, False, False], 7: [True, True, False], 3: [True, True, True]}
    seen = batch.prompts.sum(1).tolist()
    assert set(seen) == {3, 5, 7}
    assert batch.responses.tolist() == [right[prompt] for prompt in seen]
    assert batch.mask.tolist() == [counts[prompt] for prompt in seen]


def test_every_token_sees_the_prompt_and_the_tokens_before_it():
    # from 7 without an end: 7 = 1, 8 = 2, 10 = 1, 11 = 2, 13 = 1, all modulo 3
    world = SimpleNamespace(
        prompts=torch.tensor([[7]]), vocabulary="abc", response_length=5, end_token=None
    )
    batch = sample(adding_up, world, 2, generator=generator(0))
    assert batch.responses.tolist() == [[1, 2, 1, 2, 1]] * 2
    assert batch.mask.all()


@pytest.mark.parametrize("n", [1, 7])
def test_each_of_n_samples_weighs_one_nth(n):
    batch = sample(Bigram(0), WeatherReport(), n, generator=generator(0))
    assert batch.weights.dtype == torch.float64
    assert_close(batch.weights, torch.full((n,), 1 / n))
    assert batch.prompts.shape == (n, 2)
    assert batch.responses.shape == batch.mask.shape == (n, 3)
    assert batch.responses.dtype == torch.long
    assert batch.mask.dtype == torch.bool


def test_sampling_leaves_no_gradient_behind():
    policy, asked_with_gradient = Bigram(0), []

    def watched(prompts, responses):
        asked_with_gradient.append(torch.is_grad_enabled())
        return policy(prompts, responses)

    batch = sample(watched, WeatherReport(), 5, generator=generator(0))
    assert not batch.weights.requires_grad
    assert asked_with_gradient == [False] * 3
    assert torch.is_grad_enabled()


def test_the_policy_is_called_once_for_each_token():
    lengths = []

    def watched(prompts, responses):
        lengths.append(tuple(responses.shape))
        return wavy(prompts, responses)

    sample(watched, WeatherReport(), 5, generator=generator(0))
    assert lengths == [(5, 0), (5, 1), (5, 2)]


@pytest.mark.parametrize("seed", range(3))
def test_the_mask_reaches_to_the_end_token_and_the_padding_repeats_it(seed):
    batch = sample(wavy, WeatherReport(), 200, generator=generator(seed))
    lengths = set()
    for response, mask in zip(batch.responses.tolist(), batch.mask.tolist(), strict=True):
        n = response.index(2) + 1 if 2 in response else 3
        assert mask == [True] * n + [False] * (3 - n)
        assert response[n:] == [2] * (3 - n)
        lengths.add(n)
    assert lengths == {1, 2, 3}


def test_the_same_state_of_the_generator_gives_the_same_tokens():
    first = sample(wavy, WeatherReport(), 50, generator=generator(3))
    again = sample(wavy, WeatherReport(), 50, generator=generator(3))
    other = sample(wavy, WeatherReport(), 50, generator=generator(4))
    assert torch.equal(first.responses, again.responses)
    assert torch.equal(first.prompts, again.prompts)
    assert not torch.equal(first.responses, other.responses)


def test_the_numbers_come_from_the_generator_and_nowhere_else():
    before = torch.get_rng_state()
    numbers = generator(3)
    first = sample(wavy, WeatherReport(), 50, generator=numbers)
    second = sample(wavy, WeatherReport(), 50, generator=numbers)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first.responses, second.responses)


def test_a_policy_that_keeps_a_cache_gets_it_back_with_the_next_token():
    seen = []

    def next_logits(prompts, responses, cache):
        seen.append((responses.shape[1], cache))
        return wavy(prompts, responses)[:, -1], f"what was known of {responses.shape[1]} tokens"

    policy = SimpleNamespace(next_logits=next_logits)
    batch = sample(policy, WeatherReport(), 50, generator=generator(3))
    known = [None, "what was known of 0 tokens", "what was known of 1 tokens"]
    assert seen == list(enumerate(known))
    plain = sample(wavy, WeatherReport(), 50, generator=generator(3))
    assert torch.equal(batch.responses, plain.responses)


@pytest.mark.parametrize("shape", [(5, 4), (1, 3), (5, 1, 3)], ids=str)
def test_a_cached_answer_of_the_wrong_shape_is_an_error_too(shape):
    policy = SimpleNamespace(next_logits=lambda *asked: (torch.zeros(shape), None))
    with pytest.raises(ValueError, match="the policy (has 4 tokens, the world 3|gave logits)"):
        sample(policy, WeatherReport(), 5, generator=generator(0))


def test_a_prompt_of_weight_zero_is_never_drawn():
    world = SimpleNamespace(
        prompts=torch.tensor([[0], [1], [2]]),
        vocabulary="abc",
        response_length=1,
        end_token=None,
        prompt_weights=[0.0, 1.0, 0.0],
    )
    batch = sample(wavy, world, 100, generator=generator(0))
    assert (batch.prompts == 1).all()


def assert_frequencies(batch, world, policy, prompt_p):
    """Of every prompt and response, against the exact probability by a loop."""
    n = len(batch.weights)
    drawn = [
        (tuple(prompt[0].tolist()), tuple(response)) for prompt, response in single_responses(batch)
    ]
    for prompt, p in zip(world.prompts, prompt_p, strict=True):
        for response in all_responses(world):
            exact = p * slow_probability(policy, prompt.unsqueeze(0), response).item()
            error = drawn.count((tuple(prompt.tolist()), tuple(response))) / n - exact
            assert abs(error) < 5 * math.sqrt(exact * (1 - exact) / n), (prompt, response)


def test_responses_are_drawn_as_often_as_they_are_probable():
    # five standard errors for 30 binomial frequencies, the rarest 25 in 20,000: a right sampler
    # fails for about one seed in 25,000
    world = WeatherReport()
    batch = sample(wavy, world, 20_000, generator=generator(0))
    assert_frequencies(batch, world, wavy, [0.75, 0.25])


def test_prompts_are_drawn_evenly_by_default():
    # five standard errors for 8 binomial frequencies: a right sampler fails for about one seed
    # in 180,000
    world = random_world(0, tokens=2, length=2)
    policy = table_of(world, 1)
    batch = sample(policy, world, 10_000, generator=generator(2))
    assert_frequencies(batch, world, policy, [0.5, 0.5])


def test_runs_are_drawn_each_from_its_own_table():
    # as above, for 3 runs of 14 frequencies, the rarest 18 in 10,000: about one seed in 20,000
    world = random_world(0, end_token=0, length=2)
    together, alone = tables_with_runs(world, 3)
    batch = sample(together, world, 10_000, generator=generator(1))
    assert batch.responses.shape == batch.mask.shape == (3, 10_000, 2)
    assert batch.prompts.shape == (3, 10_000, 1)
    assert_close(batch.weights, torch.full((3, 10_000), 1 / 10_000))
    for run, policy in enumerate(alone):
        own = Trajectories(
            batch.prompts[run], batch.responses[run], batch.mask[run], batch.weights[run]
        )
        assert_frequencies(own, world, policy, [0.5, 0.5])


def test_equal_runs_draw_different_things():
    # 2^-50 and less are the odds that two runs of 50 would draw the same by chance
    world = random_world(0)
    batch = sample(table_of(world, 1).repeat(2), world, 50, generator=generator(2))
    assert not torch.equal(batch.prompts[0], batch.prompts[1])
    world = random_world(0, prompts=1)
    batch = sample(TabularPolicy(world).repeat(2), world, 50, generator=generator(2))
    assert not torch.equal(batch.responses[0], batch.responses[1])


@pytest.mark.parametrize("n", [0, -3])
def test_a_sample_has_at_least_one_trajectory(n):
    with pytest.raises(ValueError, match=f"n is {n}"):
        sample(wavy, WeatherReport(), n, generator=generator(0))


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (lambda prompts, responses: torch.zeros(5, responses.shape[1] + 1, 4), "has 4 tokens"),
        (lambda prompts, responses: torch.zeros(5, responses.shape[1] + 1, 2), "has 2 tokens"),
        (
            lambda prompts, responses: torch.zeros(1, responses.shape[1] + 1, 3),
            r"gave .*\(1, 1, 3\)",
        ),
        (
            lambda prompts, responses: torch.zeros(5, 3),
            r"gave logits \(5, 3\); \[5, 1, V\] was due",
        ),
        (lambda prompts, responses: torch.zeros(5, responses.shape[1], 3), r"gave .*\(5, 0, 3\)"),
        (lambda prompts, responses: [0.0, 1.0, 2.0], "gave list; logits are due"),
        (lambda prompts, responses: responses, "gave torch.int64; logits are due"),
    ],
    ids=[
        "too many tokens",
        "too few tokens",
        "one row for all",
        "no positions",
        "no row for the next",
        "a list",
        "integers",
    ],
)
def test_logits_of_a_wrong_shape_are_an_error(answer, shown):
    with pytest.raises(ValueError, match=f"the policy {shown}"):
        sample(answer, WeatherReport(), 5, generator=generator(0))


@pytest.mark.parametrize("row", [[-math.inf] * 3, [0.0, math.inf, 0.0]])
def test_logits_from_which_nothing_can_be_drawn_are_an_error(row):
    def broken(prompts, responses):
        return torch.tensor(row).expand(len(prompts), responses.shape[1] + 1, 3)

    with pytest.raises(ValueError, match="or no token has any probability"):
        sample(broken, WeatherReport(), 5, generator=generator(0))


def test_an_infinite_divergence_behind_the_mask_leaves_no_trace_in_the_gradient():
    log_p = torch.zeros(1, 2, 2).log_softmax(dim=-1).requires_grad_()
    log_q = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]]).log()
    kl = masked_kl(log_p, log_q, torch.tensor([[True, False]]))
    kl.sum().backward()
    assert kl.tolist() == [[0.0, 0.0]]
    # at the first step d/dp_v of sum p (log p - log q), in log p: p (log p - log q + 1) = 1/2
    assert_close(log_p.grad, torch.tensor([[[0.5, 0.5], [0.0, 0.0]]]))


@pytest.mark.parametrize("at", [0, 1])
def test_logits_that_are_not_numbers_are_an_error_that_says_at_which_token(at):
    def broken(prompts, responses):
        logits = wavy(prompts, responses)
        if responses.shape[1] >= at:
            logits[2, -1, 1] = math.nan
        return logits

    with pytest.raises(ValueError, match=f"logits for token {at} hold NaN"):
        sample(broken, WeatherReport(), 5, generator=generator(0))


def test_what_is_drawn_may_enter_a_gradient():
    embedding = nn.Embedding(3, 2)
    batch = sample(wavy, WeatherReport(), 5, generator=generator(0))
    (embedding(batch.responses) * batch.mask.unsqueeze(-1)).sum().backward()
    assert embedding.weight.grad.sum() == 2 * batch.mask.sum()


# enumerate_all


def test_two_tokens_and_an_end_by_hand():
    # token 1 ends: 00 has 3/4 * 1/8, 01 has 3/4 * 7/8, and 1 has 1/4
    world = SimpleNamespace(
        prompts=torch.tensor([[0]]), vocabulary="ab", response_length=2, end_token=1
    )
    rows = [logits_of(3 / 4, 1 / 4), logits_of(1 / 8, 7 / 8), torch.tensor([99.0, -99.0])]
    batch = enumerate_all(TabularPolicy(world, torch.stack(rows)), world)
    assert batch.responses.tolist() == [[0, 0], [0, 1], [1, 1]]
    assert batch.mask.tolist() == [[True, True], [True, True], [True, False]]
    assert_close(batch.weights, torch.tensor([3 / 32, 21 / 32, 1 / 4]))


@pytest.mark.parametrize("end_token", [None, 0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_weights_of_all_responses_sum_to_one_whatever_the_policy(seed, end_token):
    world = random_world(seed, end_token=end_token)
    policy = table_of(world, seed)
    weights = enumerate_all(policy, world).weights
    assert_close(weights.sum(), torch.tensor(1.0))
    assert weights.requires_grad
    assert_close(gradients(weights.sum(), policy)[0], torch.zeros(26, 3))
    half = weights[: len(weights) // 2].sum()  # those of the first prompt
    assert_close(half, torch.tensor(0.5))


@pytest.mark.parametrize("policy", [Bigram(0), wavy], ids=["module", "function"])
def test_every_prompt_and_response_is_listed_with_its_probability(policy):
    world = WeatherReport()
    batch = enumerate_all(policy, world)
    listed = [
        (prompt, response) for prompt in world.prompts.tolist() for response in all_responses(world)
    ]
    found = [(prompt[0].tolist(), response) for prompt, response in single_responses(batch)]
    assert found == listed
    assert (batch.responses == 2)[~batch.mask].all()
    prompt_p = {4: 0.75, 0: 0.25}
    for weight, (prompt, response) in zip(batch.weights, listed, strict=True):
        p = slow_probability(policy, torch.tensor([prompt]), response)
        assert_close(weight, prompt_p[prompt[0]] * p)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_weight_is_that_of_the_product_of_conditionals(seed):
    world, policy = WeatherReport(), Bigram(seed)
    batch = enumerate_all(policy, world)
    coefficients = random_logits(seed, len(batch.weights))
    slow = sum(
        coefficient * (0.75 if prompt[0, 0] == 4 else 0.25) * slow_probability(policy, prompt, tail)
        for coefficient, (prompt, tail) in zip(coefficients, single_responses(batch), strict=True)
    )
    got = gradients((batch.weights * coefficients).sum(), policy)
    assert_close(got, gradients(slow, policy))


def test_the_gradient_of_an_expected_reward_agrees_with_numerical_differentiation():
    world = random_world(0, tokens=2, end_token=1)
    logits = random_logits(1, *TabularPolicy(world).logits.shape).requires_grad_()

    def expected_reward(logits):
        def policy(prompts, responses):  # reads the same rows, of the logits given
            return logits[TabularPolicy(world).rows(prompts, responses)]

        batch = enumerate_all(policy, world)
        return (batch.weights * score(world, batch)).sum()

    assert torch.autograd.gradcheck(expected_reward, logits)


def test_runs_are_weighed_each_by_its_own_table():
    world = random_world(0, end_token=1)
    together, alone = tables_with_runs(world, 3)
    batch = enumerate_all(together, world)
    coefficients = random_logits(1, *batch.weights.shape)
    (got,) = gradients((batch.weights * coefficients).sum(), together)
    assert batch.weights.shape == (3, 30)
    assert batch.responses.shape == (30, 3)
    for run, policy in enumerate(alone):
        weights = enumerate_all(policy, world).weights
        assert_close(batch.weights[run], weights)
        assert_close(got[run], gradients((weights * coefficients[run]).sum(), policy)[0])


def test_an_impossible_response_weighs_nothing_and_has_a_finite_gradient():
    world = random_world(0, prompts=1, tokens=2, length=2)
    rows = [logits_of(1.0, 0.0), logits_of(0.5, 0.5), logits_of(0.25, 0.75)]
    policy = TabularPolicy(world, torch.stack(rows))
    batch = enumerate_all(policy, world)
    assert_close(batch.weights, torch.tensor([0.5, 0.5, 0.0, 0.0]))
    # d p(00) = p(0) d p(0 | 0): 1/4 and -1/4 in row 1, and nothing elsewhere
    (got,) = gradients(batch.weights[0] + batch.weights[2], policy)
    assert_close(got, torch.tensor([[0.0, 0.0], [0.25, -0.25], [0.0, 0.0]]))


def test_a_world_too_large_is_refused_before_the_policy_is_asked(monkeypatch):
    monkeypatch.setattr(enumeration, "MAX_RESPONSES", 29)

    def never(prompts, responses):
        raise AssertionError("the policy was asked")

    with pytest.raises(ValueError, match="this world has 30 responses"):
        enumerate_all(never, WeatherReport())
    monkeypatch.setattr(enumeration, "MAX_RESPONSES", 30)
    assert len(enumerate_all(wavy, WeatherReport()).weights) == 30


def test_every_prefix_of_all_but_the_last_token_is_asked_about_once_in_one_call():
    asked = []

    def watched(prompts, responses):
        asked.append(torch.cat([prompts, responses], dim=1).tolist())
        return wavy(prompts, responses)

    batch = enumerate_all(watched, WeatherReport())
    # 2 prompts, each with 4 prefixes that go on and with "stop" and "sun stop" and "rain stop"
    assert len(batch.weights) == 30
    assert len(asked) == 1
    assert len(asked[0]) == len({tuple(prefix) for prefix in asked[0]}) == 2 * (4 + 3)


# families


def test_siblings_are_families_by_hand():
    # after 0 0: a, b; after 0 1 an only child; the same prefix again for another prompt; and a
    # response that ended, whose padding looks like the tokens of the one before it
    batch = Trajectories(
        prompts=torch.tensor([[4], [4], [4], [5], [5], [5]]),
        responses=torch.tensor([[0, 0, 1], [0, 0, 2], [0, 1, 2], [0, 1, 2], [0, 0, 0], [0, 99, 9]]),
        mask=torch.tensor([[1, 1, 1]] * 5 + [[1, 0, 0]]).bool(),
        weights=torch.arange(6.0),
    )
    parents, family = families(batch)
    assert family.tolist() == [0, 0, 1, 2, 3, 4]
    assert parents.prompts.tolist() == [[4], [4], [5], [5], [5]]
    assert parents.tokens[:, :2].tolist() == [[0, 0], [0, 1], [0, 1], [0, 0], [0, 0]]
    assert parents.mask.sum(dim=1).tolist() == [3, 3, 3, 3, 1]
    assert parents.weights.tolist() == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("end_token", [None, 1])
def test_a_family_of_the_list_shares_its_states(end_token):
    world = random_world(0, end_token=end_token)
    batch = enumerate_all(table_of(world, 0), world)
    parents, family = families(batch)
    assert torch.equal(parents.prompts[family], batch.prompts)
    assert torch.equal(parents.tokens[family][:, :-1], batch.tokens[:, :-1])
    assert torch.equal(parents.mask[family], batch.mask)
    states = torch.cat([parents.prompts, parents.responses[:, :-1]], dim=1)
    assert len(states.unique(dim=0)) == len(states) < len(batch.weights)


def test_runs_are_a_family_only_where_all_of_them_are():
    world = random_world(0, prompts=1, tokens=2, length=2)
    responses = torch.tensor([[[0, 0], [0, 1], [1, 1]], [[1, 1], [1, 0], [1, 1]]])
    batch = Trajectories(
        torch.zeros(2, 3, 1, dtype=torch.long),
        responses,
        torch.ones(2, 3, 2, dtype=torch.bool),
        torch.full((2, 3), 1 / 3),
    )
    parents, family = families(batch)
    assert family.tolist() == [0, 0, 1]
    assert parents.responses.tolist() == [[[0, 0], [1, 1]], [[1, 1], [1, 1]]]
    policy, alone = tables_with_runs(world, 2)
    for run in range(2):
        own = Trajectories(*(x[run] for x in vars(batch).values()))
        assert_close(log_probs(policy, batch)[run], slow_log_probs(alone[run], own))


def test_a_single_trajectory_is_its_own_family():
    batch = Trajectories(*(x[:1] for x in vars(batch_by_hand()).values()))
    parents, family = families(batch)
    assert family.tolist() == [0]
    assert parents.responses.tolist() == batch.responses.tolist()


# log_probs and per_step_kl


@pytest.mark.parametrize("policy", [Bigram(1), wavy], ids=["module", "function"])
def test_log_probs_are_those_of_each_response_alone(policy):
    batch = batch_by_hand()
    got = log_probs(policy, batch)
    assert_close(got, slow_log_probs(policy, batch))
    assert (got[~batch.mask] == 0).all()
    assert (got[batch.mask] < 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_log_probs_is_that_of_each_response_alone(seed):
    batch, policy = batch_by_hand(), Bigram(seed)
    coefficients = random_logits(seed, 4, 3)
    got = gradients((log_probs(policy, batch) * coefficients).sum(), policy)
    assert_close(got, gradients((slow_log_probs(policy, batch) * coefficients).sum(), policy))


@pytest.mark.parametrize("seed", range(3))
def test_the_kl_of_a_step_is_that_of_each_prefix_alone(seed):
    batch, policy, reference = batch_by_hand(), Bigram(seed), Bigram(seed + 10)
    got, slow = per_step_kl(policy, reference, batch), slow_kl(policy, reference, batch)
    assert_close(got, slow)
    assert (got[~batch.mask] == 0).all()
    assert (got[batch.mask] > 0).all()
    coefficients = random_logits(seed, 4, 3)
    assert_close(
        gradients((got * coefficients).sum(), policy),
        gradients((slow * coefficients).sum(), policy),
    )


def test_the_policy_comes_first_and_the_reference_second():
    # 1/2 log(1/2 / 1/4) + 1/2 log(1/2 / 3/4) = 1/2 log(4/3)
    world = random_world(0, prompts=1, tokens=2, length=1)
    fair = TabularPolicy(world, logits_of(1 / 2, 1 / 2).unsqueeze(0))
    loaded = TabularPolicy(world, logits_of(1 / 4, 3 / 4).unsqueeze(0))
    batch = enumerate_all(fair, world)
    assert_close(per_step_kl(fair, loaded, batch), torch.full((2, 1), 0.5 * math.log(4 / 3)))
    other = 0.75 * math.log(3) - math.log(2)
    assert_close(per_step_kl(loaded, fair, batch), torch.full((2, 1), other))


def test_the_reference_gets_no_gradient_and_the_policy_does():
    policy, reference = Bigram(0), Bigram(1)
    per_step_kl(policy, reference, batch_by_hand()).sum().backward()
    assert all(parameter.grad is None for parameter in reference.parameters())
    assert all((parameter.grad != 0).any() for parameter in policy.parameters())


def test_a_policy_has_no_kl_and_no_gradient_against_itself():
    policy = Bigram(0)
    kl = per_step_kl(policy, policy, batch_by_hand())
    assert_close(kl, torch.zeros(4, 3))
    for gradient in gradients(kl.sum(), policy):
        assert_close(gradient, torch.zeros_like(gradient))


def test_the_kl_is_infinite_where_the_reference_cannot_follow():
    world = random_world(0, prompts=1, tokens=2, length=2)
    narrow = TabularPolicy(world, torch.stack([logits_of(1.0, 0.0)] * 3))
    wide = TabularPolicy(world)
    batch = enumerate_all(wide, world)
    assert (per_step_kl(wide, narrow, batch) == math.inf).all()
    assert_close(per_step_kl(narrow, wide, batch), torch.full((4, 2), math.log(2)))


@pytest.mark.parametrize("end_token", [None, 0])
@pytest.mark.parametrize("seed", range(3))
def test_the_kl_of_whole_responses_is_the_expected_sum_over_their_steps(seed, end_token):
    world = random_world(seed, end_token=end_token)
    policy, reference = random_policies(world, seed)
    whole = 0
    for prompt in world.prompts.unsqueeze(1):
        for response in all_responses(world):
            p = slow_probability(policy, prompt, response)
            q = slow_probability(reference, prompt, response).detach()
            whole = whole + 0.5 * p * (p / q).log()
    batch = enumerate_all(policy, world)
    steps = (batch.weights * per_step_kl(policy, reference, batch).sum(dim=-1)).sum()
    assert_close(steps, whole)
    assert_close(gradients(steps, policy), gradients(whole, policy))


def test_the_log_probabilities_of_a_step_are_normalised_over_the_vocabulary():
    batch, policy = batch_by_hand(), Bigram(0)
    steps = step_log_probs(policy, batch)
    assert steps.shape == (4, 3, 3)
    assert_close(steps.exp().sum(-1), torch.ones(4, 3))
    # the second step of the third response, after token 0, and the first of the first
    assert_close(steps[2, 1], next_log_p(policy, torch.tensor([[4, 1]]), [0]))
    assert_close(steps[0, 0], next_log_p(policy, torch.tensor([[4, 1]]), []))


def test_tokens_are_picked_out_of_the_steps_by_hand():
    batch = batch_by_hand()
    steps = -torch.arange(36.0).reshape(4, 3, 3)
    # response 0 has token 2 at step 0, which is entry 2; response 1 begins at entry 9, ...
    expected = [[-2, 0, 0], [-9 - 1, -12 - 2, 0], [-18, -21 - 1, -24 - 2], [-27 - 1, -30, -33]]
    assert_close(of_tokens(steps, batch), torch.tensor(expected).double())


def test_a_masked_kl_by_hand():
    fair, loaded = logits_of(1 / 2, 1 / 2), logits_of(1 / 4, 3 / 4)
    log_p = torch.stack([fair, loaded, fair]).expand(2, 3, 2)
    log_q = torch.stack([loaded, fair, fair]).expand(2, 3, 2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    first, second = 0.5 * math.log(4 / 3), 0.75 * math.log(3) - math.log(2)
    expected = [[first, second, 0.0], [first, 0.0, 0.0]]
    assert_close(masked_kl(log_p, log_q, mask), torch.tensor(expected))


def test_both_sides_of_a_masked_kl_are_differentiated():
    log_p, log_q = (x.log_softmax(-1).requires_grad_() for x in random_logits(0, 2, 4, 3, 3))
    mask = batch_by_hand().mask
    masked_kl(log_p, log_q, mask).sum().backward()
    # d/d log_q = -p, and d/d log_p = p (log p - log q + 1), where the mask counts
    p = log_p.detach().exp()
    counts = mask.unsqueeze(-1)
    assert_close(log_q.grad, torch.where(counts, -p, 0.0))
    assert_close(log_p.grad, torch.where(counts, p * (log_p - log_q + 1).detach(), 0.0))


def test_runs_have_the_log_probs_and_the_kl_of_each_table_alone():
    world = random_world(0, end_token=1)
    together, alone = tables_with_runs(world, 3)
    references, references_alone = tables_with_runs(world, 3, seed=1)
    batch = sample(together, world, 20, generator=generator(2))
    coefficients = random_logits(3, 3, 20, 3)
    got_log_probs, got_kl = log_probs(together, batch), per_step_kl(together, references, batch)
    (gradient,) = gradients(((got_log_probs + got_kl) * coefficients).sum(), together)
    for run, (policy, reference) in enumerate(zip(alone, references_alone, strict=True)):
        own = Trajectories(
            batch.prompts[run], batch.responses[run], batch.mask[run], batch.weights[run]
        )
        own_log_probs, own_kl = slow_log_probs(policy, own), slow_kl(policy, reference, own)
        assert_close(got_log_probs[run], own_log_probs)
        assert_close(got_kl[run], own_kl)
        own_gradient = gradients(((own_log_probs + own_kl) * coefficients[run]).sum(), policy)
        assert_close(gradient[run], own_gradient[0])


@pytest.mark.parametrize("side", ["policy", "reference"])
def test_one_side_may_lack_the_axis_of_runs(side):
    world = random_world(0, end_token=1)
    together, alone = tables_with_runs(world, 3)
    other = table_of(world, 5)
    batch = enumerate_all(other, world)
    pairs = [(table, other) if side == "policy" else (other, table) for table in alone]
    both = (together, other) if side == "policy" else (other, together)
    got = per_step_kl(*both, batch)
    assert got.shape == (3, 30, 3)
    for run, pair in enumerate(pairs):
        assert_close(got[run], slow_kl(*pair, batch))


def test_policies_with_different_vocabularies_are_an_error():
    def four_tokens(prompts, responses):
        return torch.zeros(len(prompts), responses.shape[1] + 1, 4)

    with pytest.raises(ValueError, match="the reference has 4 tokens, the world 3"):
        per_step_kl(wavy, four_tokens, batch_by_hand())
    with pytest.raises(ValueError, match=r"log_p \[4, 3, 1\], log_q \[4, 3, 3\]"):
        masked_kl(torch.zeros(4, 3, 1), torch.zeros(4, 3, 3), batch_by_hand().mask)


@pytest.mark.parametrize("shape", [(4, 2, 3), (4, 4, 3), (1, 3, 3), (5, 3, 3), (4, 3)], ids=str)
def test_an_answer_of_the_wrong_shape_is_an_error(shape):
    message = r"gave logits \(.*\); \[4, 3, V\] was due"
    for ask in (log_probs, step_log_probs):
        with pytest.raises(ValueError, match=message) as error:
            ask(lambda prompts, responses: torch.zeros(shape), batch_by_hand())
        assert str(shape) in str(error.value)


# score


def test_a_reward_comes_for_each_response():
    # days of sun less the second token of the prompt: 0 - 1, 0 - 7, 1 - 1, 2 - 7
    got = score(WeatherReport(), batch_by_hand())
    assert_close(got, torch.tensor([-1.0, -7.0, 0.0, -5.0]))


def test_the_world_sees_two_axes_whether_or_not_there_are_runs():
    seen = []

    class Watched(WeatherReport):
        def reward(self, prompts, responses):
            seen.append((tuple(prompts.shape), tuple(responses.shape)))
            return super().reward(prompts, responses)

    one = batch_by_hand()
    two = Trajectories(
        prompts=torch.stack([one.prompts, one.prompts.flip(0)]),
        responses=torch.stack([one.responses, one.responses.flip(0)]),
        mask=torch.stack([one.mask, one.mask.flip(0)]),
        weights=torch.stack([one.weights, one.weights.flip(0)]),
    )
    got = score(Watched(), two)
    assert_close(got, torch.tensor([[-1.0, -7.0, 0.0, -5.0], [-5.0, 0.0, -7.0, -1.0]]))
    score(Watched(), one)
    assert seen == [((8, 2), (8, 3)), ((4, 2), (4, 3))]


def test_a_reward_carries_no_gradient():
    weight = torch.tensor(2.0, requires_grad=True)
    world = SimpleNamespace(reward=lambda prompts, responses: weight * prompts[:, 0])
    got = score(world, batch_by_hand())
    assert not got.requires_grad
    assert_close(got, torch.tensor([8.0, 0.0, 8.0, 0.0]))


def test_a_list_of_numbers_is_a_reward():
    world = SimpleNamespace(reward=lambda prompts, responses: [1.5, -2.0, 0.0, 4.0])
    assert_close(score(world, batch_by_hand()), torch.tensor([1.5, -2.0, 0.0, 4.0]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_an_error_that_names_the_response(value):
    class Broken(WeatherReport):
        def reward(self, prompts, responses):
            rain_first = (responses[:, 0] == 1) & (responses[:, 1] == 0)
            return super().reward(prompts, responses).masked_fill(rain_first, value)

    message = rf"the reward of \['rain', 'sun', 'sun'\] is {value}"
    with pytest.raises(ValueError, match=message):
        score(Broken(), batch_by_hand())


@pytest.mark.parametrize("shape", [(4, 1), (3,), (), (4, 3)], ids=str)
def test_there_is_one_reward_for_each_response(shape):
    world = SimpleNamespace(reward=lambda prompts, responses: torch.zeros(shape))
    with pytest.raises(ValueError, match="reward gave .* for 4 responses") as error:
        score(world, batch_by_hand())
    assert f"gave {shape} for" in str(error.value)


# Worlds and policies of every kind


def test_a_policy_in_single_precision_goes_all_the_way():
    world = WeatherReport()
    single, double = Bigram(0, torch.float32), Bigram(0)
    reference = Bigram(1, torch.float32)
    sampled = sample(single, world, 100, generator=generator(0))
    assert torch.equal(
        sampled.responses, sample(double, world, 100, generator=generator(0)).responses
    )
    assert sampled.weights.dtype == torch.float64
    batch = enumerate_all(single, world)
    assert batch.weights.dtype == torch.float64
    kl = per_step_kl(single, reference, batch)
    # seven digits are what single precision has; a sum of a few terms loses one
    close = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}
    assert_close(batch.weights, enumerate_all(double, world).weights, **close)
    assert_close(log_probs(single, batch), log_probs(double, batch), **close)
    assert_close(kl, per_step_kl(double, Bigram(1), batch), **close)
    (batch.weights * (score(world, batch) - 0.5 * kl.sum(-1))).sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in single.parameters())


def test_a_sampled_batch_stands_for_the_same_expectation_as_the_enumerated_one():
    # five standard errors for two means: a right sampler fails for about one seed in a million
    world = TokenSequence.brackets()
    policy, reference = random_policies(world, 0)
    sampled, listed = (
        sample(policy, world, 5000, generator=generator(1)),
        enumerate_all(policy, world),
    )

    def values(batch):
        return score(world, batch), per_step_kl(policy, reference, batch).sum(-1).detach()

    for drawn, every in zip(values(sampled), values(listed), strict=True):
        exact = (listed.weights.detach() * every).sum()
        error = (sampled.weights * drawn).sum() - exact
        assert error.abs() < 5 * drawn.std() / math.sqrt(5000)
