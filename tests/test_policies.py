import hashlib
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from problems import generator, random_logits, random_world
from torch import nn
from torch.testing import assert_close

from ppo_toy.policies import (
    TabularPolicy,
    device_of,
    fingerprint,
    freeze,
    index_of_prompts,
    logsumexp_by,
)
from ppo_toy.trajectories import enumerate_all
from ppo_toy.worlds import TokenBandit, TokenSequence

PROMPT = torch.zeros(1, 1, dtype=torch.long)


def world_with_prompts(prompts: list[list[int]], tokens: int = 2, length: int = 3):
    return SimpleNamespace(
        prompts=torch.tensor(prompts), vocabulary=range(tokens), response_length=length
    )


def numbered(world) -> TabularPolicy:
    """A policy whose logits say in which row they stand: row r holds r, r + 0.25, ..."""
    shape = TabularPolicy(world).logits.shape
    return TabularPolicy(world, torch.arange(shape[0]).unsqueeze(1) + torch.arange(shape[1]) / 4)


def rows_read(policy: TabularPolicy, prompt: list[int], response: list[int]) -> list[float]:
    response = torch.tensor([response], dtype=torch.long).reshape(1, -1)
    return policy(torch.tensor([prompt]), response)[0, :, 0].tolist()


def prefixes(tokens: int, length: int) -> list[tuple[int, ...]]:
    """Of fewer than `length` tokens: the short ones first, those of one length as in a book."""
    shorter = [itertools.product(range(tokens), repeat=n) for n in range(length)]
    return [prefix for group in shorter for prefix in group]


# By hand


def test_the_prefixes_of_two_tokens_are_numbered_as_a_heap():
    # (): 0; (0): 1; (1): 2; (0, 0): 3; (0, 1): 4; (1, 0): 5; (1, 1): 6
    policy = numbered(world_with_prompts([[0]]))
    assert policy.logits.shape == (7, 2)
    assert rows_read(policy, [0], []) == [0]
    assert rows_read(policy, [0], [0, 0]) == [0, 1, 3]
    assert rows_read(policy, [0], [0, 1]) == [0, 1, 4]
    assert rows_read(policy, [0], [1, 0]) == [0, 2, 5]
    assert rows_read(policy, [0], [1, 1]) == [0, 2, 6]


def test_each_prompt_has_rows_of_its_own():
    policy = numbered(world_with_prompts([[5], [3], [4]]))
    assert policy.logits.shape == (21, 2)
    assert rows_read(policy, [5], [1, 0]) == [0, 2, 5]
    assert rows_read(policy, [3], [1, 0]) == [7, 9, 12]
    assert rows_read(policy, [4], [1, 0]) == [14, 16, 19]


def test_a_row_holds_the_logits_of_all_tokens():
    policy = numbered(world_with_prompts([[0]], tokens=3))
    got = policy(PROMPT, torch.tensor([[2]]))
    # node 3 * 0 + 2 + 1 = 3 comes after the empty prefix
    expected = [[0.0, 0.25, 0.5], [3.0, 3.25, 3.5]]
    assert_close(got, torch.tensor([expected]))


def test_prompts_of_several_tokens_are_told_apart_by_all_of_them():
    policy = numbered(world_with_prompts([[1, 2], [1, 3], [2, 2]]))
    assert rows_read(policy, [1, 2], []) == [0]
    assert rows_read(policy, [1, 3], []) == [7]
    assert rows_read(policy, [2, 2], []) == [14]


def test_a_prompt_is_found_by_all_of_its_tokens():
    known = torch.tensor([[1, 2], [1, 3], [2, 2]])
    got = index_of_prompts(torch.tensor([[2, 2], [1, 2], [1, 3], [1, 2]]), known)
    assert got.tolist() == [2, 0, 1, 0]
    assert got.dtype == torch.long


def test_prompts_are_found_along_any_leading_axes():
    known = torch.tensor([[5], [3], [4]])
    assert index_of_prompts(torch.tensor([4]), known).tolist() == 2
    got = index_of_prompts(torch.tensor([[[4], [5]], [[3], [4]], [[5], [5]]]), known)
    assert got.tolist() == [[2, 0], [1, 2], [0, 0]]
    assert index_of_prompts(torch.zeros(0, 1, dtype=torch.long), known).shape == (0,)


def test_the_default_is_the_uniform_policy():
    policy = TabularPolicy(world_with_prompts([[0], [1]], tokens=4, length=2))
    assert torch.equal(policy.logits, torch.zeros(10, 4, dtype=torch.float64))
    assert policy.runs == ()


# Properties


@pytest.mark.parametrize("t", range(4))
def test_a_prefix_of_t_tokens_has_t_plus_one_positions(t):
    world = random_world(0)
    policy = TabularPolicy.random(world, generator=generator(1))
    responses = torch.randint(3, (5, 3), generator=generator(2))
    prompts = world.prompts[[0, 1, 1, 0, 1]]
    got = policy(prompts, responses[:, :t])
    assert got.shape == (5, t + 1, 3)
    # a later token changes nothing at the positions before it
    positions = min(t + 1, 3)
    assert_close(got[:, :positions], policy(prompts, responses)[:, :positions])


def test_after_a_full_response_the_last_position_is_some_row_of_the_same_prompt():
    world = random_world(0)
    policy = TabularPolicy.random(world, generator=generator(1))
    for response in itertools.product(range(3), repeat=3):
        got = policy(world.prompts, torch.tensor([response, response]))
        for prompt in range(2):
            own = policy.logits[13 * prompt : 13 * (prompt + 1)]
            assert (got[prompt, -1] == own).all(dim=-1).any()


def test_the_gradient_reaches_the_rows_that_were_read_and_no_others():
    policy = numbered(world_with_prompts([[0], [1]]))
    policy(torch.tensor([[1]]), torch.tensor([[1, 0]])).sum().backward()
    expected = torch.zeros(14, 2)
    expected[[7, 9, 12]] = 1
    assert_close(policy.logits.grad, expected)


def test_a_row_that_is_read_twice_is_given_both_gradients():
    policy = TabularPolicy(world_with_prompts([[0]]))
    policy(PROMPT.expand(2, 1), torch.tensor([[1, 0], [1, 1]])).sum().backward()
    assert policy.logits.grad[:, 0].tolist() == [2, 0, 2, 0, 0, 1, 1]


def test_a_random_policy_follows_its_generator():
    world = random_world(0)
    first = TabularPolicy.random(world, generator=generator(3))
    again = TabularPolicy.random(world, generator=generator(3))
    other = TabularPolicy.random(world, generator=generator(4))
    assert torch.equal(first.logits, again.logits)
    assert (first.logits != other.logits).all()


def test_scale_is_the_standard_deviation_of_random_logits():
    world = random_world(0, prompts=1, tokens=4, length=6)  # 1365 rows of 4
    logits = TabularPolicy.random(world, generator=generator(0), scale=3.0).logits.detach()
    # five standard errors of a mean and of a deviation: once in about a million seeds
    n = logits.numel()
    assert abs(logits.mean()) < 5 * 3 / math.sqrt(n)
    assert abs(logits.std() - 3) < 5 * 3 / math.sqrt(2 * n)
    one = TabularPolicy.random(world, generator=generator(0)).logits.detach()
    assert_close(logits, 3 * one)


def test_the_logits_given_are_copied():
    given = torch.zeros(7, 2)
    policy = TabularPolicy(world_with_prompts([[0]]), given)
    with torch.no_grad():
        policy.logits += 1
    assert torch.equal(given, torch.zeros(7, 2))
    assert policy.logits.requires_grad


def test_the_type_of_the_logits_given_is_kept():
    policy = TabularPolicy(world_with_prompts([[0]]), torch.zeros(7, 2, dtype=torch.float32))
    assert policy(PROMPT, torch.tensor([[0, 1]])).dtype == torch.float32
    assert TabularPolicy(world_with_prompts([[0]])).logits.dtype == torch.float64


def test_the_parameters_are_the_table_and_nothing_else():
    policy = numbered(random_world(0))
    assert [name for name, _ in policy.named_parameters()] == ["logits"]
    twin = TabularPolicy(random_world(0))
    twin.load_state_dict(policy.state_dict())
    assert torch.equal(twin.logits, policy.logits)


# Runs


def tables_side_by_side(world, runs: int):
    shape = TabularPolicy(world).logits.shape
    tables = random_logits(0, runs, *shape)
    return TabularPolicy(world, tables), [TabularPolicy(world, table) for table in tables]


@pytest.mark.parametrize("t", range(4))
@pytest.mark.parametrize("shared", [True, False])
def test_runs_give_what_each_table_gives_alone(t, shared):
    world = random_world(0)
    together, alone = tables_side_by_side(world, 4)
    responses = torch.randint(3, (4, 6, t), generator=generator(1))
    prompts = world.prompts[torch.randint(2, (4, 6), generator=generator(2))]
    if shared:
        responses, prompts = responses[:1].expand(4, -1, -1), prompts[:1].expand(4, -1, -1)
        got = together(prompts[0], responses[0])
    else:
        got = together(prompts, responses)
    coefficients = random_logits(3, 4, 6, t + 1, 3)
    (got * coefficients).sum().backward()
    assert got.shape == (4, 6, t + 1, 3)
    assert together.runs == (4,)
    for run, policy in enumerate(alone):
        logits = policy(prompts[run], responses[run])
        (logits * coefficients[run]).sum().backward()
        assert_close(got[run], logits)
        assert_close(together.logits.grad[run], policy.logits.grad)


def test_a_policy_without_runs_answers_a_batch_that_has_them():
    world = random_world(0)
    policy = TabularPolicy.random(world, generator=generator(1))
    responses = torch.randint(3, (4, 6, 3), generator=generator(2))
    prompts = world.prompts[torch.randint(2, (4, 6), generator=generator(3))]
    got = policy(prompts, responses)
    assert got.shape == (4, 6, 4, 3)
    for run in range(4):
        assert_close(got[run], policy(prompts[run], responses[run]))


def test_one_run_is_an_axis_of_its_own():
    world = random_world(0)
    policy = TabularPolicy.random(world, generator=generator(1))
    single = policy.repeat(1)
    assert single.runs == (1,)
    got = single(world.prompts, torch.tensor([[0, 1], [2, 2]]))
    assert_close(got, policy(world.prompts, torch.tensor([[0, 1], [2, 2]])).unsqueeze(0))


def test_repeated_tables_start_equal_and_learn_for_themselves():
    policy = TabularPolicy.random(random_world(0), generator=generator(1))
    before = policy.logits.detach().clone()
    runs = policy.repeat(3)
    assert runs.runs == (3,)
    assert policy.runs == ()
    assert torch.equal(runs.logits, before.expand(3, -1, -1))
    optimiser = torch.optim.SGD(runs.parameters(), lr=0.5)
    runs(random_world(0).prompts, torch.tensor([[0, 1], [2, 2]]))[1].sum().backward()
    optimiser.step()
    assert torch.equal(runs.logits[[0, 2]], before.expand(2, -1, -1))
    assert (runs.logits[1] != before).any()
    assert torch.equal(policy.logits, before)
    assert policy.logits.grad is None


# Policies from responses


def test_masses_of_responses_become_shares_at_every_node():
    # 00, 01, 10, 11 have 1, 2, 3, 6: first 3 to 9, then 1 to 2 and 3 to 6
    world = world_with_prompts([[0]], length=2)
    world.end_token = None
    batch = enumerate_all(TabularPolicy(world), world)
    masses = torch.tensor([1.0, 2.0, 3.0, 6.0])
    nowhere = torch.full((4, 2, 2), 99.0)
    policy = TabularPolicy.of_responses(world, batch, masses.log(), nowhere)
    assert_close(
        policy.logits.softmax(-1), torch.tensor([[1 / 4, 3 / 4], [1 / 3, 2 / 3], [1 / 3, 2 / 3]])
    )


def test_a_state_without_mass_below_it_keeps_the_logits_given():
    world = world_with_prompts([[0]], length=2)
    world.end_token = None
    reference = TabularPolicy.random(world, generator=generator(0))
    batch = enumerate_all(reference, world)
    masses = torch.tensor([1.0, 3.0, 0.0, 0.0])
    otherwise = reference(batch.prompts, batch.tokens)[:, :-1].detach()
    policy = TabularPolicy.of_responses(world, batch, masses.log(), otherwise)
    assert_close(policy.logits[:2].softmax(-1), torch.tensor([[1.0, 0.0], [1 / 4, 3 / 4]]))
    assert_close(policy.logits[2], reference.logits[2])


@pytest.mark.parametrize("end_token", [None, 0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_policy_of_responses_draws_each_in_proportion_to_its_mass(seed, end_token):
    world = random_world(seed, end_token=end_token)
    batch = enumerate_all(TabularPolicy(world), world)
    # far from 0, where exp would overflow; each prompt has a total of its own
    log_mass = 800 + 2 * random_logits(seed, len(batch.weights)) + 5 * batch.prompts[:, 0]
    otherwise = torch.full((*batch.mask.shape, 3), 99.0)
    policy = TabularPolicy.of_responses(world, batch, log_mass, otherwise)
    expected = torch.cat([half.softmax(0) / 2 for half in log_mass.chunk(2)])
    assert_close(enumerate_all(policy, world).weights, expected)


# Edges and errors


@pytest.mark.parametrize(
    "shape", [(7, 3), (6, 2), (8, 2), (14,), (2, 2, 7, 2), (4, 2, 7), (2, 7)], ids=str
)
def test_logits_of_another_shape_are_an_error(shape):
    with pytest.raises(ValueError, match=r"logits has shape .*needs \(7, 2\)") as error:
        TabularPolicy(world_with_prompts([[0]]), torch.zeros(shape))
    assert f"logits has shape {shape};" in str(error.value)


def test_a_response_that_is_too_long_is_an_error():
    policy = TabularPolicy(world_with_prompts([[0]]))
    with pytest.raises(ValueError, match="responses have 4 tokens, the table is made for 3"):
        policy(PROMPT, torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize("stranger", [[1, 3], [3, 2], [9, 9]])
def test_a_prompt_that_is_not_the_worlds_is_an_error_that_names_it(stranger):
    policy = TabularPolicy(world_with_prompts([[1, 2], [2, 3]]))
    with pytest.raises(ValueError, match=rf"prompt \[{stranger[0]}, {stranger[1]}\]"):
        policy(torch.tensor([[1, 2], stranger, [2, 3]]), torch.zeros(3, 1, dtype=torch.long))


def test_a_prompt_that_is_none_of_those_known_is_an_error_that_names_it():
    known = torch.tensor([[1, 2], [2, 3]])
    with pytest.raises(ValueError, match=r"prompt \[1, 3\] is not among the world's prompts"):
        index_of_prompts(torch.tensor([[2, 3], [1, 3], [3, 3]]), known)
    with pytest.raises(ValueError, match="the prompts have 1 tokens, the world's 2"):
        index_of_prompts(torch.tensor([[2], [1]]), known)


def test_a_strange_prompt_is_named_in_a_batch_with_runs_as_well():
    policy = TabularPolicy(world_with_prompts([[1], [2]])).repeat(2)
    with pytest.raises(ValueError, match=r"prompt \[7\]"):
        policy(torch.tensor([[[1], [2]], [[2], [7]]]), torch.zeros(2, 2, 1, dtype=torch.long))


@pytest.mark.parametrize("runs", [0, -1])
def test_fewer_runs_than_one_are_an_error(runs):
    with pytest.raises(ValueError, match=f"runs is {runs}"):
        TabularPolicy(random_world(0)).repeat(runs)


def test_runs_are_not_repeated_again():
    with pytest.raises(ValueError, match=r"has runs already, \(3,\)"):
        TabularPolicy(random_world(0)).repeat(3).repeat(2)


def test_the_device_is_that_of_the_first_parameter_and_the_cpu_without_one():
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert device_of(lambda prompts, responses: None) == cpu
    assert device_of(nn.Identity()) == cpu
    assert device_of(TabularPolicy(random_world(0))) == cpu
    assert device_of(nn.Linear(2, 2, device=meta)) == meta
    assert device_of(nn.Sequential(nn.Linear(2, 2, device=meta), nn.Linear(2, 2))) == meta


# Against an independent route


@pytest.mark.parametrize(("tokens", "length"), [(2, 4), (3, 3), (4, 2), (5, 1)])
def test_rows_are_in_the_order_of_the_list_of_prefixes(tokens, length):
    world = world_with_prompts([[0], [1]], tokens, length)
    listed = prefixes(tokens, length)
    policy = numbered(world)
    assert len(policy.logits) == 2 * len(listed)
    for prompt in range(2):
        for row, prefix in enumerate(listed):
            assert rows_read(policy, [prompt], list(prefix))[-1] == prompt * len(listed) + row


def test_every_distribution_over_responses_can_be_written():
    # A random joint of two tokens' worth three steps; a row is the log of what is left to give.
    joint = random_logits(0, 8).softmax(0).reshape(2, 2, 2)
    rows = [joint.sum((1, 2)), *joint.sum(2), *joint.reshape(4, 2)]
    policy = TabularPolicy(world_with_prompts([[0]]), torch.stack(rows).log())
    for response in itertools.product(range(2), repeat=3):
        logits = policy(PROMPT, torch.tensor([response]))[0]
        p = math.prod(logits[t].softmax(0)[token].item() for t, token in enumerate(response))
        assert_close(p, joint[response].item())


@pytest.mark.parametrize("world", [TokenBandit(torch.zeros(2, 3)), TokenSequence.brackets()])
def test_the_table_has_a_row_for_each_prompt_and_shorter_prefix(world):
    n_tokens = len(world.vocabulary)
    rows = len(prefixes(n_tokens, world.response_length)) * len(world.prompts)
    assert TabularPolicy(world).logits.shape == (rows, n_tokens)


@pytest.mark.parametrize("shift", [0.0, 800.0, -800.0])
def test_a_grouped_logsumexp_is_that_of_each_group_alone(shift):
    x, group = random_logits(0, 9) + shift, torch.tensor([0, 2, 2, 4, 0, 2, 4, 4, 5])
    got = logsumexp_by(x, group, 7)
    for g in range(7):
        assert_close(got[g], x[group == g].logsumexp(0))
    assert got[[1, 3, 6]].tolist() == [-math.inf] * 3


def test_a_group_of_nothing_but_minus_infinity_sums_to_it():
    x, group = torch.tensor([-math.inf, -math.inf, 0.0, -math.inf]), torch.tensor([0, 0, 1, 1])
    assert logsumexp_by(x, group, 2).tolist() == [-math.inf, 0.0]


def test_what_is_no_token_is_refused():
    policy = TabularPolicy(random_world(0, tokens=3, length=2))
    for token in (-1, 3, 99):
        with pytest.raises(ValueError, match="not one of 0 to 2"):
            policy(torch.tensor([[0]]), torch.tensor([[token]]))


def test_prompts_of_another_width_are_refused():
    policy = TabularPolicy(random_world(0))
    with pytest.raises(ValueError, match="the prompts have 2 tokens, the world's 1"):
        policy(torch.tensor([[0, 0]]), torch.zeros(1, 0, dtype=torch.long))


def test_a_world_that_asks_the_same_twice_is_refused():
    world = SimpleNamespace(
        prompts=torch.tensor([[1], [2], [1]]), vocabulary=["a", "b"], response_length=1
    )
    with pytest.raises(ValueError, match="two of the world's prompts are the same"):
        TabularPolicy(world)


# freeze and fingerprint


def test_a_frozen_copy_shares_nothing_and_asks_for_no_gradient():
    policy = TabularPolicy.random(random_world(0), generator=generator(0))
    frozen = freeze(policy)
    assert not frozen.training
    assert policy.training
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert fingerprint(frozen) == fingerprint(policy)
    with torch.no_grad():
        policy.logits += 1
    assert_close(frozen.logits, policy.logits.detach() - 1)
    assert fingerprint(frozen) != fingerprint(policy)


def test_a_fingerprint_is_that_of_the_bytes():
    module = torch.nn.Linear(1, 1, bias=False, dtype=torch.float32)
    torch.nn.init.ones_(module.weight)
    # the number 1 in single precision is 0x3f800000, lowest byte first
    text = b"weight torch.float32 (1, 1)" + bytes([0, 0, 0x80, 0x3F])
    assert fingerprint(module) == hashlib.sha256(text).hexdigest()


def test_one_bit_of_one_parameter_changes_the_fingerprint():
    policy = TabularPolicy.random(random_world(0), generator=generator(0))
    before = fingerprint(policy)
    assert fingerprint(policy) == before
    with torch.no_grad():
        number = policy.logits[-1, -1]
        policy.logits[-1, -1] = number.nextafter(torch.tensor(math.inf))
    assert fingerprint(policy) != before


def with_buffer(number: float, *, name: str = "shift", kept: bool = True) -> nn.Module:
    module = nn.Linear(1, 1, bias=False, dtype=torch.float32)
    nn.init.ones_(module.weight)
    module.register_buffer(name, torch.tensor(number, dtype=torch.float32), persistent=kept)
    return module


def test_a_fingerprint_is_that_of_the_buffers_too():
    # the weight 1 as above, then the number -2, 0xc0000000
    text = b"weight torch.float32 (1, 1)" + bytes([0, 0, 0x80, 0x3F])
    text += b"shift torch.float32 ()" + bytes([0, 0, 0, 0xC0])
    assert fingerprint(with_buffer(-2.0)) == hashlib.sha256(text).hexdigest()


def test_one_bit_or_the_name_of_a_buffer_changes_the_fingerprint():
    nearly_two = math.nextafter(2.0, 3.0)
    assert fingerprint(with_buffer(2.0)) == fingerprint(with_buffer(nearly_two))  # rounded
    prints = {fingerprint(with_buffer(x)) for x in (2.0, -2.0, 0.0, -0.0)}
    prints.add(fingerprint(with_buffer(2.0, name="offset")))
    assert len(prints) == 5


def test_a_buffer_that_is_not_part_of_the_state_has_no_say_in_the_fingerprint():
    prints = {fingerprint(with_buffer(number, kept=False)) for number in (2.0, 3.0)}
    assert len(prints) == 1


def test_the_prompts_that_a_table_knows_count_in_its_fingerprint():
    first, second = (TabularPolicy(world_with_prompts(prompts)) for prompts in ([[0]], [[1]]))
    assert torch.equal(first.logits, second.logits)
    assert fingerprint(first) != fingerprint(second)


def test_the_type_counts_in_a_fingerprint_and_a_single_number_has_one():
    single = torch.nn.ParameterList([torch.tensor(1.5)])
    before = fingerprint(single)
    assert before != fingerprint(single.to(torch.bfloat16))


def test_a_table_that_cannot_be_kept_is_refused_before_memory_is_touched():
    world = SimpleNamespace(prompts=PROMPT, vocabulary=range(10), response_length=12)
    # (10^12 - 1) / 9 prefixes of 10 tokens: 10^12.05 logits
    with pytest.raises(ValueError, match=r"10\^12\.0 logits \(1 prompts, 10 tokens, length 12\)"):
        TabularPolicy(world)
