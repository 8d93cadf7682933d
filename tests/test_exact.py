import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from problems import generator, logits_of, random_logits, random_policies, random_world
from torch import nn
from torch.testing import assert_close

from ppo_toy import exact
from ppo_toy.policies import TabularPolicy, freeze
from ppo_toy.trajectories import enumerate_all, score
from ppo_toy.worlds import TokenBandit, TokenSequence

WORLDS = [
    {"seed": 0, "prompts": 2, "tokens": 3, "length": 3},
    {"seed": 1, "prompts": 3, "tokens": 3, "length": 3, "end_token": 0},
    {"seed": 2, "prompts": 1, "tokens": 4, "length": 2, "end_token": 3},
    {"seed": 3, "prompts": 3, "tokens": 5, "length": 1},
]
every_world = pytest.mark.parametrize("kwargs", WORLDS)


def with_prompt_weights(world, *weights: float) -> SimpleNamespace:
    return SimpleNamespace(**vars(world), prompt_weights=torch.tensor(weights))


def prompt_shares(world) -> list[float]:
    n = len(world.prompts)
    return getattr(world, "prompt_weights", torch.full((n,), 1 / n)).tolist()


def table_of(policy: TabularPolicy, world) -> list[list[list[float]]]:
    """Probabilities as plain numbers: [prompt][node][token]."""
    rows = policy.logits.detach().softmax(dim=-1)
    return rows.view(len(world.prompts), -1, len(world.vocabulary)).tolist()


def reward_of(world, prompt: int, response: tuple[int, ...]) -> float:
    padding = (world.end_token,) * (world.response_length - len(response))
    tokens = torch.tensor([response + padding])
    return world.reward(world.prompts[prompt : prompt + 1], tokens).item()


def is_over(world, response: tuple[int, ...]) -> bool:
    return len(response) == world.response_length or world.end_token in response


def slow_states(policy, reference, world) -> dict:
    """(R, KL) still to come in every state, by walking down the prefix trees in plain Python."""
    p, q, to_come = table_of(policy, world), table_of(reference, world), {}

    def below(prompt: int, node: int, response: tuple[int, ...]) -> tuple[float, float]:
        if is_over(world, response):
            return reward_of(world, prompt, response), 0.0
        reward = kl = 0.0
        for v, (p_v, q_v) in enumerate(zip(p[prompt][node], q[prompt][node], strict=True)):
            child = len(world.vocabulary) * node + v + 1
            r, further = below(prompt, child, (*response, v))
            if p_v > 0:
                reward += p_v * r
                kl += p_v * (math.log(p_v / q_v) + further)
        to_come[prompt, node] = reward, kl
        return reward, kl

    for prompt in range(len(world.prompts)):
        below(prompt, 0, ())
    return to_come


def slow_numbers(policy, reference, world, beta: float) -> tuple[float, float, float]:
    """J, R and KL: what is to come at the start, over the prompts."""
    states, shares = slow_states(policy, reference, world), prompt_shares(world)
    reward, kl = (sum(w * states[i, 0][k] for i, w in enumerate(shares)) for k in (0, 1))
    return reward - beta * kl, reward, kl


def soft_bellman(reference, world, beta: float) -> tuple[dict, dict]:
    """Backward induction: V(s) = beta log sum_v ref(v | s) exp(V(s v) / beta), and pi*(. | s)."""
    q, best, values = table_of(reference, world), {}, {}

    def value(prompt: int, node: int, response: tuple[int, ...]) -> float:
        if is_over(world, response):
            return reward_of(world, prompt, response)
        n_tokens = len(world.vocabulary)
        after = [value(prompt, n_tokens * node + v + 1, (*response, v)) for v in range(n_tokens)]
        top = max(x for q_v, x in zip(q[prompt][node], after, strict=True) if q_v > 0)
        pairs = zip(q[prompt][node], after, strict=True)
        terms = [q_v * math.exp((x - top) / beta) if q_v > 0 else 0.0 for q_v, x in pairs]
        best[prompt, node] = [term / sum(terms) for term in terms]
        values[prompt, node] = top + beta * math.log(sum(terms))
        return values[prompt, node]

    for prompt in range(len(world.prompts)):
        value(prompt, 0, ())
    return values, best


def rows_with_mass(policy, world) -> list[tuple[int, int, int]]:
    """(row, prompt, node) of every state in which a token is chosen."""
    n_tokens, rows = len(world.vocabulary), []
    n_nodes = len(policy.logits) // len(world.prompts)

    def walk(prompt: int, node: int, response: tuple[int, ...]) -> None:
        if not is_over(world, response):
            rows.append((n_nodes * prompt + node, prompt, node))
            for v in range(n_tokens):
                walk(prompt, n_tokens * node + v + 1, (*response, v))

    for prompt in range(len(world.prompts)):
        walk(prompt, 0, ())
    return rows


def nodes_of(world, batch) -> list[tuple[int, int, int, int]]:
    """(i, t, prompt, node) of every token that counts in a listed batch."""
    n_responses = len(batch.weights) // len(world.prompts)
    places = []
    for i, response in enumerate(batch.responses.tolist()):
        node = 0
        for t in range(int(batch.mask[i].sum())):
            places.append((i, t, i // n_responses, node))
            node = len(world.vocabulary) * node + response[t] + 1
    return places


def numbers_of(result) -> tuple[float, float, float]:
    return result.objective, result.reward, result.kl


class Recurrent(nn.Module):
    """A policy of a user's own: logits from running sums of embedded tokens."""

    def __init__(self, n_tokens: int, seed: int):
        super().__init__()
        self.embedding = nn.Parameter(random_logits(seed, n_tokens, 4))
        self.head = nn.Parameter(random_logits(seed + 1, 4, n_tokens))
        self.start = nn.Parameter(random_logits(seed + 2, 4))

    def forward(self, prompts, responses):
        first = self.start * (1 + prompts[..., :1, None])
        sums = torch.cat([first, self.embedding[responses]], dim=-2).cumsum(dim=-2)
        return sums.tanh() @ self.head


# By hand


def test_the_worth_of_a_bandit_policy_by_hand():
    world = TokenBandit(torch.tensor([[2.0, -1.0], [0.5, 4.0]]))
    policy = TabularPolicy(world, torch.stack([logits_of(0.5, 0.5), logits_of(0.75, 0.25)]))
    reference = TabularPolicy(world, torch.stack([logits_of(0.25, 0.75), logits_of(0.5, 0.5)]))
    got = exact.evaluate(policy, reference, world, 3.0)
    reward = 0.5 * (0.5 * 2 + 0.5 * -1) + 0.5 * (0.75 * 0.5 + 0.25 * 4)
    first_kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second_kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    kl = 0.5 * first_kl + 0.5 * second_kl
    assert_close(got.reward, reward)
    assert_close(got.kl, kl)
    assert_close(got.objective, reward - 3.0 * kl)
    assert all(type(number) is float for number in got)


def test_the_best_policy_of_a_bandit_by_hand():
    world = TokenBandit(torch.tensor([[0.0, 2.0]]))
    reference = TabularPolicy(world, logits_of(0.75, 0.25).unsqueeze(0))
    best = exact.optimum(reference, world, 2.0)
    # Z = 3/4 exp(0) + 1/4 exp(2 / 2)
    z = 0.75 + 0.25 * math.e
    p = 0.25 * math.e / z
    kl = (1 - p) * math.log((1 - p) / 0.75) + p * math.log(p / 0.25)
    assert_close(best.policy.logits.softmax(dim=1), torch.tensor([[1 - p, p]]))
    assert_close(best.objective, 2.0 * math.log(z))
    assert_close(best.reward, 2 * p)
    assert_close(best.kl, kl)


def test_the_gradient_of_a_bandit_by_hand():
    world = TokenBandit(torch.tensor([[3.0, 1.0]]))
    policy = TabularPolicy(world, logits_of(0.75, 0.25).unsqueeze(0))
    reference = TabularPolicy(world)
    (got,) = exact.gradient(policy, reference, world, 2.0)
    # dJ / d logit_v = p(v) * (f(v) - mean of f), with f(v) = R(v) - beta * log(p(v) / ref(v))
    first, second = 3 - 2 * math.log(1.5), 1 - 2 * math.log(0.5)
    slope = 0.75 * 0.25 * (first - second)
    assert_close(got, torch.tensor([[slope, -slope]]))


# Properties


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
@every_world
def test_the_best_policy_is_worth_what_optimum_says(kwargs, beta):
    world = random_world(**kwargs)
    _, reference = random_policies(world, 5)
    best = exact.optimum(reference, world, beta)
    assert_close(numbers_of(exact.evaluate(best.policy, reference, world, beta)), numbers_of(best))
    assert best.kl > 0.001


@every_world
def test_at_the_optimum_the_gradient_is_0(kwargs):
    world = random_world(**kwargs)
    policy, reference = random_policies(world, 6)
    best = TabularPolicy(world, exact.optimum(reference, world, 0.7).policy.logits)
    (at_the_top,) = exact.gradient(best, reference, world, 0.7)
    (elsewhere,) = exact.gradient(policy, reference, world, 0.7)
    assert_close(at_the_top, torch.zeros_like(at_the_top))
    assert elsewhere.abs().max() > 0.01


def test_runs_are_evaluated_and_differentiated_as_if_one_by_one():
    world = random_world(7, end_token=1)
    _, reference = random_policies(world, 7)
    betas = [0.0, 0.5, 2.0]
    tables = random_logits(8, 3, *reference.logits.shape)
    together = TabularPolicy(world, tables)
    evaluation = exact.evaluate(together, reference, world, torch.tensor(betas))
    (gradient,) = exact.gradient(together, reference, world, torch.tensor(betas))
    for run, beta in enumerate(betas):
        alone = TabularPolicy(world, tables[run])
        one = exact.evaluate(alone, reference, world, beta)
        assert_close(tuple(x[run].item() for x in evaluation), tuple(one))
        assert_close(gradient[run], exact.gradient(alone, reference, world, beta)[0])


def test_a_reference_with_runs_serves_each_run_of_the_policy():
    world = random_world(7, end_token=1)
    tables = random_logits(9, 2, 2, 26, 3)
    policy, reference = (TabularPolicy(world, table) for table in tables)
    together = exact.evaluate(policy, reference, world, 0.5)
    for run in range(2):
        one, its_reference = (TabularPolicy(world, table[run]) for table in tables)
        expected = exact.evaluate(one, its_reference, world, 0.5)
        assert_close(tuple(x[run].item() for x in together), tuple(expected))


@pytest.mark.parametrize("beta", [0.3, 2.0])
@every_world
def test_the_gap_to_the_optimum_is_beta_times_the_kl_to_the_best_policy(kwargs, beta):
    world = random_world(**kwargs)
    policy, reference = random_policies(world, 10)
    best = exact.optimum(reference, world, beta)
    objective, _, _ = slow_numbers(policy, reference, world, beta)
    _, _, kl_to_best = slow_numbers(policy, best.policy, world, beta)
    assert_close(best.objective - objective, beta * kl_to_best)
    assert kl_to_best > 0.01


@every_world
def test_on_the_frontier_the_slope_is_beta(kwargs):
    world = random_world(**kwargs)
    _, reference = random_policies(world, 11)
    # h^2 = 1e-10 of truncation and about 1e-11 of rounding, both below the default tolerance
    h = 1e-5
    for beta in (0.5, 2.0):
        low, high = (exact.optimum(reference, world, beta + step) for step in (-h, h))
        best = exact.optimum(reference, world, beta)
        assert_close((high.reward - low.reward) / (high.kl - low.kl), beta)
        assert_close((high.objective - low.objective) / (2 * h), -best.kl)


@every_world
def test_the_frontier_joins_the_optima(kwargs):
    world = random_world(**kwargs)
    _, reference = random_policies(world, 12)
    betas = [0.25, 3.0, 1.0]
    frontier = exact.frontier(reference, world, betas)
    for k, beta in enumerate(betas):
        best = exact.optimum(reference, world, beta)
        got = (frontier.beta[k], frontier.kl[k], frontier.reward[k])
        assert_close(got, (beta, best.kl, best.reward))


def test_the_frontier_is_made_of_arrays_and_takes_a_tensor_or_an_array_of_betas():
    world = random_world(0)
    _, reference = random_policies(world, 12)
    betas = [0.5, 2.0]
    expected = exact.frontier(reference, world, betas)
    for given in (torch.tensor(betas), np.array(betas)):
        got = exact.frontier(reference, world, given)
        for array, same in zip(got, expected, strict=True):
            assert isinstance(array, np.ndarray)
            assert array.tolist() == same.tolist()


@every_world
def test_the_frontier_is_concave_and_no_policy_lies_above_it(kwargs):
    world = random_world(**kwargs)
    _, reference = random_policies(world, 13)
    betas = np.logspace(2, -1, 31)
    frontier = exact.frontier(reference, world, betas)
    assert (np.diff(frontier.kl) > 0).all()
    chords = np.diff(frontier.reward) / np.diff(frontier.kl)
    # a chord of a concave curve lies between the slopes at its two ends, which are the betas
    assert (chords < betas[:-1]).all()
    assert (chords > betas[1:]).all()
    for seed in range(20):
        scale = 0.5 * (1 + seed % 5)
        policy = TabularPolicy.random(world, generator=generator(seed), scale=scale)
        worth = exact.evaluate(policy, reference, world, 0.0)
        below_its_tangents = frontier.reward + betas * (worth.kl - frontier.kl)
        assert (worth.reward < below_its_tangents).all()


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_more_reward_at_the_same_beta_per_reward_is_the_same_policy(beta):
    world = random_world(1, end_token=0)
    _, reference = random_policies(world, 14)
    scaled = TokenSequence(
        world.vocabulary, 3, lambda x, y: 5 + 8 * world.reward(x, y), 0, world.prompts
    )
    one = exact.optimum(reference, world, beta)
    other = exact.optimum(reference, scaled, 8 * beta)
    assert_close(other.policy.logits.softmax(dim=1), one.policy.logits.softmax(dim=1))
    assert_close(numbers_of(other), (5 + 8 * one.objective, 5 + 8 * one.reward, one.kl))


# Edges and errors


def test_the_gradient_leaves_grad_and_parameters_as_they_are():
    world = random_world(0)
    policy, reference = random_policies(world, 0)
    policy.logits.grad = torch.full_like(policy.logits, 99.0)
    before = policy.logits.detach().clone()
    (gradient,) = exact.gradient(policy, reference, world, 0.5)
    assert (policy.logits.grad == 99).all()
    assert reference.logits.grad is None
    assert torch.equal(policy.logits, before)
    assert not gradient.requires_grad


def test_the_gradient_follows_the_order_of_the_parameters():
    world = random_world(1, prompts=2, tokens=3, length=3, end_token=2)
    policy = Recurrent(3, seed=0)
    _, reference = random_policies(world, 1)
    got = exact.gradient(policy, reference, world, 0.5)
    assert [x.shape for x in got] == [x.shape for x in policy.parameters()]
    h = 1e-5
    for parameter, gradient in zip(policy.parameters(), got, strict=True):
        numbers = parameter.data.view(-1)
        for i in range(len(numbers)):
            at = numbers[i].item()
            worth = []
            for x in (at + h, at - h):
                numbers[i] = x
                worth.append(exact.evaluate(policy, reference, world, 0.5).objective)
            numbers[i] = at
            assert_close(gradient.flatten()[i].item(), (worth[0] - worth[1]) / (2 * h))


def test_the_best_policy_comes_frozen():
    world = random_world(0)
    _, reference = random_policies(world, 0)
    best = exact.optimum(reference, world, 0.5)
    assert not best.policy.logits.requires_grad
    assert reference.logits.requires_grad


def test_a_parameter_that_j_does_not_depend_on_has_gradient_0():
    world = random_world(1)
    policy, reference = random_policies(world, 1)
    policy.value = nn.Parameter(torch.full((2, 5), 99.0))
    of_logits, of_value = exact.gradient(policy, reference, world, 0.5)
    assert torch.equal(of_value, torch.zeros(2, 5))
    assert of_logits.abs().max() > 0.01


def test_a_policy_may_be_a_plain_function_and_is_its_own_reference():
    world = random_world(2)
    policy, _ = random_policies(world, 2)

    def function(prompts, responses):
        return policy(prompts, responses).detach()

    expected = slow_numbers(policy, policy, world, 0.5)
    assert_close(tuple(exact.evaluate(function, function, world, 0.5)), expected)
    assert exact.evaluate(function, function, world, 0.5).kl == 0


@pytest.mark.parametrize("beta", [0.001, 1.0, 1000.0])
def test_a_reference_that_rules_a_token_out_leaves_everything_finite(beta):
    world = random_world(3, prompts=2, tokens=3, length=3, end_token=1)
    _, reference = random_policies(world, 3)
    with torch.no_grad():
        reference.logits[0, 2] = -math.inf
        reference.logits[1] = torch.tensor([-math.inf, 0.5, -math.inf])  # after token 0: the end
    best = exact.optimum(reference, world, beta)
    values, rows = soft_bellman(reference, world, beta)
    assert_close(best.objective, (values[0, 0] + values[1, 0]) / 2)
    assert all(math.isfinite(number) for number in numbers_of(best))
    assert_close(numbers_of(exact.evaluate(best.policy, reference, world, beta)), numbers_of(best))
    p = best.policy.logits.softmax(dim=1)
    assert not p.isnan().any()
    assert p[0, 2] == 0
    assert p[1].tolist() == [0, 1, 0]
    assert_close(p[0].tolist(), rows[0, 0])
    top = TabularPolicy(world, best.policy.logits)
    (gradient,) = exact.gradient(top, reference, world, beta)
    # beta times the rounding of log-probabilities of up to some thousand nats
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7 * max(beta, 1))


def test_a_state_that_the_best_policy_never_reaches_keeps_the_reference():
    world = random_world(3, prompts=1, tokens=3, length=2)
    _, reference = random_policies(world, 3)
    with torch.no_grad():
        reference.logits[0, 2] = -math.inf
    best = exact.optimum(reference, world, 1.0)
    # node 3 is the prefix of token 2
    best_p, ref_p = (x.logits.detach().softmax(dim=1) for x in (best.policy, reference))
    assert_close(best_p[3], ref_p[3])
    assert (best_p[2] - ref_p[2]).abs().max() > 0.01


@pytest.mark.parametrize("end_token", [None, 2])
def test_a_very_small_beta_gives_the_best_response_of_all(end_token):
    # Ranks an eighth apart: exp(-1/8 / 0.001) = 5e-55 of the runner-up is left.
    ranks = random_logits(15, 2, 27).argsort(dim=1).argsort(dim=1) / 8
    world = TokenSequence.from_table(ranks.view(2, 3, 3, 3), end_token=end_token)
    _, reference = random_policies(world, 15)
    best = exact.optimum(reference, world, 1e-3)
    batch = enumerate_all(reference, world)
    rewards, p = score(world, batch).view(2, -1), 2 * batch.weights.detach().view(2, -1)
    winner = rewards.argmax(dim=1)
    assert_close(best.reward, rewards.max(dim=1).values.mean().item())
    assert_close(best.kl, -p[[0, 1], winner].log().mean().item())
    assert_close(numbers_of(exact.evaluate(best.policy, reference, world, 1e-3)), numbers_of(best))
    assert_close(
        enumerate_all(best.policy, world).weights.view(2, -1)[[0, 1], winner].sum(),
        torch.tensor(1.0),
    )
    values, _ = soft_bellman(reference, world, 1e-3)
    assert_close(best.objective, (values[0, 0] + values[1, 0]) / 2)


def test_a_very_large_beta_gives_the_reference():
    world = random_world(1, end_token=0)
    _, reference = random_policies(world, 16)
    best = exact.optimum(reference, world, 1e6)
    expected = exact.evaluate(reference, reference, world, 0.0)
    # R* - E_ref R is Var(R) / beta, about 1e-6
    assert_close(best.reward, expected.reward, rtol=0, atol=1e-5)
    assert_close(best.kl, 0.0)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_a_beta_without_a_best_policy_is_an_error(beta):
    world = random_world(0)
    _, reference = random_policies(world, 0)
    with pytest.raises(ValueError, match=f"beta is {beta}"):
        exact.optimum(reference, world, beta)
    with pytest.raises(ValueError, match=f"beta is {beta}"):
        exact.frontier(reference, world, [1.0, beta])


def test_a_reference_with_runs_has_no_single_optimum():
    world = random_world(0)
    _, reference = random_policies(world, 0)
    twins = reference.repeat(2)
    with pytest.raises(ValueError, match=r"runs \(2,\)"):
        exact.optimum(twins, world, 1.0)
    with pytest.raises(ValueError, match=r"runs \(2,\)"):
        exact.frontier(twins, world, [1.0])


def test_a_world_too_large_to_list_is_an_error_before_anything_is_computed():
    def never(*_):
        raise AssertionError("called")

    vocabulary = [str(v) for v in range(50)]
    world = TokenSequence(vocabulary, 40, never)
    for call in (
        lambda: exact.evaluate(never, never, world, 1.0),
        lambda: exact.gradient(never, never, world, 1.0),
        lambda: exact.optimum(never, world, 1.0),
        lambda: exact.frontier(never, world, [1.0]),
    ):
        with pytest.raises(ValueError, match=r"about 10\^68 responses"):
            call()


def test_a_reward_that_is_not_finite_is_an_error():
    world = TokenSequence(["a", "b"], 1, lambda x, y: torch.where(y[:, 0] == 1, math.nan, 0.0))
    reference = TabularPolicy(world)
    for call in (
        lambda: exact.evaluate(reference, reference, world, 1.0),
        lambda: exact.gradient(reference, reference, world, 1.0),
        lambda: exact.optimum(reference, world, 1.0),
    ):
        with pytest.raises(ValueError, match=r"reward of \['b'\] is nan"):
            call()


def test_vocabularies_that_differ_are_an_error():
    world, wider = random_world(0, tokens=3, length=2), random_world(0, tokens=4, length=2)
    policy, reference = TabularPolicy(world), TabularPolicy(wider)
    for call in (exact.evaluate, exact.gradient):
        with pytest.raises(ValueError, match="the reference has 4 tokens, the world 3"):
            call(policy, reference, world, 1.0)


def test_a_reference_that_rules_out_what_the_policy_does_is_worth_minus_infinity():
    world = TokenBandit(torch.tensor([[1.0, 2.0]]))
    reference = TabularPolicy(world, torch.tensor([[0.0, -math.inf]]))
    got = exact.evaluate(TabularPolicy(world), reference, world, 0.5)
    assert got.kl == math.inf
    assert got.objective == -math.inf
    assert got.reward == 1.5


def test_a_state_that_the_policy_never_enters_has_the_value_0():
    world = random_world(3, prompts=1, tokens=3, length=2)
    policy, reference = random_policies(world, 3)
    policy.logits.data[0, 2] = -math.inf
    got = exact.values(policy, reference, world, 0.7)
    states = slow_states(policy, reference, world)
    for i, t, prompt, node in nodes_of(world, enumerate_all(reference, world)):
        reward, kl = states[prompt, node] if node != 3 else (0.0, 0.0)
        assert_close(got[i, t].item(), reward - 0.7 * kl)


def test_soft_values_are_for_a_beta_above_0_and_a_reference_without_runs():
    world = random_world(0)
    _, reference = random_policies(world, 0)
    with pytest.raises(ValueError, match="beta is 0"):
        exact.soft_values(reference, world, 0.0)
    with pytest.raises(ValueError, match=r"runs \(2,\)"):
        exact.soft_values(reference.repeat(2), world, 1.0)


# Independent routes


@pytest.mark.parametrize("beta", [0.0, 0.7])
@every_world
def test_the_worth_of_a_policy_is_a_walk_down_the_prefix_tree(kwargs, beta):
    world = random_world(**kwargs)
    policy, reference = random_policies(world, 17)
    got = exact.evaluate(policy, reference, world, beta)
    assert_close(tuple(got), slow_numbers(policy, reference, world, beta))


@pytest.mark.parametrize("beta", [0.0, 0.7])
@every_world
def test_the_value_of_a_state_is_what_a_walk_from_there_earns(kwargs, beta):
    world = random_world(**kwargs)
    policy, reference = random_policies(world, 24)
    got = exact.values(policy, reference, world, beta)
    batch, states = enumerate_all(policy, world), slow_states(policy, reference, world)
    expected = torch.zeros_like(got)
    for i, t, prompt, node in nodes_of(world, batch):
        reward, kl = states[prompt, node]
        expected[i, t] = reward - beta * kl
    assert_close(got, expected)
    assert not got.requires_grad


@pytest.mark.parametrize("beta", [0.001, 0.7])
@every_world
def test_the_soft_value_of_a_state_is_that_of_backward_induction(kwargs, beta):
    world = random_world(**kwargs)
    _, reference = random_policies(world, 25)
    got = exact.soft_values(reference, world, beta)
    batch, (values, _) = enumerate_all(reference, world), soft_bellman(reference, world, beta)
    expected = torch.zeros_like(got)
    for i, t, prompt, node in nodes_of(world, batch):
        expected[i, t] = values[prompt, node]
    assert_close(got, expected)


@every_world
def test_the_value_under_the_best_policy_is_the_soft_value(kwargs):
    world = random_world(**kwargs)
    policy, reference = random_policies(world, 26)
    best = exact.optimum(reference, world, 0.7).policy
    most = exact.soft_values(reference, world, 0.7)
    assert_close(exact.values(best, reference, world, 0.7), most)
    mask = enumerate_all(policy, world).mask
    assert (exact.values(policy, reference, world, 0.7) < most)[mask].all()


def test_the_worth_of_a_policy_weighs_the_prompts_as_the_world_does():
    world = with_prompt_weights(random_world(1, prompts=3, end_token=0), 0.125, 0.625, 0.25)
    policy, reference = random_policies(world, 18)
    got = exact.evaluate(policy, reference, world, 0.7)
    assert_close(tuple(got), slow_numbers(policy, reference, world, 0.7))


@pytest.mark.parametrize("end_token", [None, 1])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.125, 0.875)])
def test_the_gradient_is_that_of_finite_differences(end_token, weights):
    world = random_world(4, tokens=2, length=3, end_token=end_token)
    world = with_prompt_weights(world, *weights)
    policy, reference = random_policies(world, 19)
    (got,) = exact.gradient(policy, reference, world, 0.7)
    logits, h = policy.logits.detach(), 1e-5
    expected = torch.zeros_like(logits)
    for row, v in itertools.product(*map(range, logits.shape)):
        step = torch.zeros_like(logits)
        step[row, v] = h
        up, down = (
            slow_numbers(TabularPolicy(world, x), reference, world, 0.7)[0]
            for x in (logits + step, logits - step)
        )
        expected[row, v] = (up - down) / (2 * h)
    assert_close(got, expected)
    assert got.abs().max() > 0.01


@pytest.mark.parametrize("beta", [0.3, 2.0])
@every_world
def test_the_best_policy_is_that_of_soft_backward_induction(kwargs, beta):
    world = random_world(**kwargs)
    _, reference = random_policies(world, 20)
    best = exact.optimum(reference, world, beta)
    values, rows = soft_bellman(reference, world, beta)
    starts = [values[prompt, 0] for prompt in range(len(world.prompts))]
    assert_close(best.objective, sum(starts) / len(starts))
    p = best.policy.logits.softmax(dim=1)
    for row, prompt, node in rows_with_mass(reference, world):
        assert_close(p[row].tolist(), rows[prompt, node])


@pytest.mark.parametrize("beta", [0.3, 2.0])
@every_world
def test_the_best_policy_is_the_tilted_reference_response_by_response(kwargs, beta):
    world = random_world(**kwargs)
    _, reference = random_policies(world, 21)
    best = exact.optimum(reference, world, beta)
    n = len(world.prompts)
    batch = enumerate_all(reference, world)
    tilted = batch.weights.detach() * (score(world, batch) / beta).exp()
    tilted = tilted.view(n, -1) / tilted.view(n, -1).sum(dim=1, keepdim=True) / n
    assert_close(enumerate_all(best.policy, world).weights.view(n, -1), tilted)


@pytest.mark.parametrize(
    "weights", [(1 / 3, 1 / 3, 1 / 3), (0.125, 0.625, 0.25), (0.0, 0.25, 0.75)]
)
def test_the_optimum_over_prompts_is_the_weighted_mean_of_the_optima(weights):
    world = with_prompt_weights(random_world(1, prompts=3, end_token=0), *weights)
    _, reference = random_policies(world, 22)
    best = exact.optimum(reference, world, 0.5)
    values, rows = soft_bellman(reference, world, 0.5)
    assert_close(best.objective, sum(w * values[i, 0] for i, w in enumerate(weights)))
    assert_close(numbers_of(best), slow_numbers(best.policy, reference, world, 0.5))
    # how often a prompt is asked does not change what is best to answer
    p = best.policy.logits.softmax(dim=1)
    for row, prompt, node in rows_with_mass(reference, world):
        assert_close(p[row].tolist(), rows[prompt, node])
    frontier = exact.frontier(reference, world, [0.5])
    assert_close((frontier.kl[0], frontier.reward[0]), (best.kl, best.reward))


def test_the_best_policy_is_where_gradient_ascent_ends():
    world = random_world(23, tokens=2, length=2)
    policy, reference = random_policies(world, 23)
    best = exact.optimum(reference, world, 1.0)
    for _ in range(1000):
        (gradient,) = exact.gradient(policy, reference, world, 1.0)
        policy.logits.data += 2.0 * gradient
    assert_close(policy.logits.softmax(dim=1), best.policy.logits.softmax(dim=1))
    assert_close(exact.evaluate(policy, reference, world, 1.0).objective, best.objective)


def test_a_state_that_never_occurs_may_lie_at_an_infinite_divergence():
    world = random_world(3, prompts=1, tokens=2, length=2)
    policy, reference = random_policies(world, 4)
    with torch.no_grad():
        policy.logits[0, 1] = -math.inf  # token 1 never comes first,
        reference.logits[2, 1] = -math.inf  # and after it the reference rules token 1 out
    assert math.isfinite(exact.evaluate(policy, reference, world, 0.5).objective)
    (gradient,) = exact.gradient(policy, reference, world, 0.5)
    assert gradient.isfinite().all()
    assert exact.values(policy, reference, world, 0.5).isfinite().all()


def test_the_soft_value_of_a_state_that_the_reference_never_reaches_is_0():
    world = random_world(3, prompts=1, tokens=2, length=2)
    _, reference = random_policies(world, 4)
    with torch.no_grad():
        reference.logits[0, 1] = -math.inf
    got = exact.soft_values(reference, world, 0.5)
    assert got[2:, 1].tolist() == [0, 0]
    assert (got[:2] != 0).all()


@pytest.mark.parametrize("beta", [1e-300, 1e-16, 1e-12])
def test_at_a_tiny_beta_the_best_policy_is_the_reference_among_the_best_responses(beta):
    world = TokenSequence.brackets()
    reference = freeze(TabularPolicy(world))
    rewards = score(world, enumerate_all(reference, world))
    p = enumerate_all(reference, world).weights
    mass = p[rewards == rewards.max()].sum().item()
    best = exact.optimum(reference, world, beta)
    assert best.reward == pytest.approx(3)
    assert best.kl == pytest.approx(-math.log(mass))
    reached = exact.evaluate(best.policy, reference, world, beta)
    assert (reached.reward, reached.kl) == pytest.approx((best.reward, best.kl))


def test_a_coefficient_for_each_run_needs_runs():
    world = random_world(0)
    policy, reference = random_policies(world, 1)
    for ask in (exact.evaluate, exact.gradient):
        with pytest.raises(ValueError, match=r"the beta has runs \(2,\)"):
            ask(policy, reference, world, torch.tensor([1.0, 2.0]))
        with pytest.raises(ValueError, match=r"the reference has runs \(2,\)"):
            ask(policy, reference.repeat(2), world, 0.5)
