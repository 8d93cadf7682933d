import inspect
import itertools
import math

import pytest
import torch
from problems import generator, random_logits
from torch.testing import assert_close

from ppo_toy import advantages, kl, objectives
from ppo_toy.advantages import gae, leave_one_out, reward_to_go, token_rewards, whiten
from ppo_toy.axes import takes
from ppo_toy.kl import kl_divergence, kl_estimate, kl_of_log_probs, masked_kl
from ppo_toy.objectives import (
    clipped_surrogate,
    kl_penalty_surrogate,
    penalized_objective,
    policy_gradient_surrogate,
    value_loss,
)

SIZES = {"G": 2, "B": 4, "T": 3, "V": 5}
ROW, COLUMN = "B T", "B"
TOKENS = {"log_probs": ROW, "old_log_probs": ROW, "advantages": ROW}
PAIR = {"log_p": "B T V", "log_q": "B T V"}
# Each function's tensors with their axes, and what else it needs.
CALLS = {
    penalized_objective: ({"rewards": COLUMN, "kl": ROW, "weights": COLUMN}, {"beta": 0.5}),
    policy_gradient_surrogate: (
        {"log_probs": ROW, "kl": ROW, "advantages": ROW, "weights": COLUMN},
        {"beta": 0.5},
    ),
    clipped_surrogate: (TOKENS, {"clip": 0.25}),
    kl_penalty_surrogate: (TOKENS | {"kl_old": ROW}, {"beta": 0.5}),
    value_loss: ({"values": ROW, "returns": ROW, "mask": ROW, "weights": COLUMN}, {}),
    reward_to_go: ({"rewards": COLUMN, "kl": ROW, "mask": ROW}, {"beta": 0.5}),
    token_rewards: ({"rewards": COLUMN, "kl": ROW, "mask": ROW}, {"beta": 0.5}),
    leave_one_out: ({"returns": ROW, "mask": ROW}, {}),
    gae: (
        {"token_rewards": ROW, "values": ROW, "mask": ROW, "next_values": ROW},
        {"gamma": 0.5, "lam": 0.75},
    ),
    whiten: ({"x": ROW, "mask": ROW}, {}),
    kl_divergence: ({"logits_p": "B T V", "logits_q": "B T V"}, {}),
    kl_of_log_probs: (PAIR, {}),
    masked_kl: (PAIR | {"mask": ROW}, {}),
    kl_estimate: ({"log_p": ROW, "log_q": ROW}, {"kind": "k3"}),
}
EVERY = [(f, name) for f, (axes, _) in CALLS.items() for name in axes]
BY_NAME = {"ids": lambda x: getattr(x, "__name__", str(x))}


def proper(function, **runs: bool) -> dict:
    """Arguments with their axes in double precision; with G before B for those in `runs`."""
    given = {}
    for k, (name, axes) in enumerate(CALLS[function][0].items()):
        letters = ["G"] * runs.get(name, False) + axes.split()
        x = random_logits(10 * k + 1, *(SIZES[letter] for letter in letters))
        if name == "mask":
            x = torch.arange(SIZES["T"]) <= torch.rand(x.shape[:-1], generator=generator(1)).mul(
                SIZES["T"]
            ).long().unsqueeze(-1)
        elif name.startswith("log"):
            x = x.log_softmax(dim=-1)
        given[name] = x.abs() if name in ("kl", "kl_old", "weights") else x
    return given | CALLS[function][1]


def outcome(function, given: dict):
    """What the call gives, or what its error says."""
    try:
        return function(**given)
    except ValueError as error:
        return str(error)


def assert_named_or_close(got, name: str, expected) -> None:
    if isinstance(got, str):
        assert name in got
        return
    # rounded once to its own precision; sums in single precision lose a digit or two
    eps = torch.finfo(got.dtype).eps
    close = {"rtol": max(0.6 * eps, 1e-5), "atol": max(eps / 100, 1e-5)}
    assert_close(got.double(), expected, equal_nan=True, **close)


def test_every_public_function_of_tensors_is_tried():
    public = [
        function
        for module in (objectives, advantages, kl)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    ]
    assert set(public) == set(CALLS)
    for function, (axes, others) in CALLS.items():
        assert set(inspect.signature(function).parameters) == set(axes) | set(others)


# Axes


@pytest.mark.parametrize(("function", "name"), EVERY, **BY_NAME)
@pytest.mark.parametrize("place", [0, -1])
def test_an_axis_that_is_missing_is_an_error_that_names_the_argument(function, name, place):
    given = proper(function)
    given[name] = given[name].select(place, 0)
    if function is kl_of_log_probs and place == 0:  # documented to be broadcast
        expected = function(**given | {name: given[name].expand(4, 3, 5)})
        assert_close(function(**given), expected)
        return
    with pytest.raises(ValueError, match=rf"\b{name} \[.*do not fit together; due are"):
        function(**given)


@pytest.mark.parametrize(("function", "name"), EVERY, **BY_NAME)
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("times", [1, 2])
def test_an_axis_too_many_is_an_error_or_the_axis_of_runs(function, name, place, times):
    given = proper(function)
    expected = function(**given)
    more = given[name].unsqueeze(place)
    given[name] = more.repeat_interleave(times, dim=place)
    got = outcome(function, given)
    if isinstance(got, str):
        assert f"{name} [" in got
        return
    assert place == 0
    assert_close(got, expected.expand(times, *expected.shape))


@pytest.mark.parametrize(("function", "name"), EVERY, **BY_NAME)
def test_an_axis_of_one_entry_is_not_stretched(function, name):
    for axis in range(proper(function)[name].dim()):
        given = proper(function)
        given[name] = given[name].narrow(axis, 0, 1)
        # two are documented to be broadcast, and a KL of one step alone is one
        if (function is kl_of_log_probs and axis < 2) or (function, axis) == (
            penalized_objective,
            1,
        ):
            continue
        with pytest.raises(ValueError, match=f"{name} "):
            function(**given)


@pytest.mark.parametrize(("function", "name"), EVERY, **BY_NAME)
def test_an_empty_tensor_is_an_error(function, name):
    for axis in range(proper(function)[name].dim()):
        given = proper(function)
        given[name] = given[name].narrow(axis, 0, 0)
        with pytest.raises(ValueError, match=rf"{name} \[.*none of them empty"):
            function(**given)


@pytest.mark.parametrize("function", CALLS, **BY_NAME)
def test_what_lacks_the_axis_of_runs_serves_all_of_them(function):
    tensors = CALLS[function][0]
    if function in (kl_divergence, kl_estimate):  # the two shapes are to be equal
        return
    for chosen in itertools.product([False, True], repeat=len(tensors)):
        if not any(chosen):
            continue
        given = proper(function, **dict(zip(tensors, chosen, strict=True)))
        one_by_one = []
        for run in range(SIZES["G"]):
            of_run = {
                n: given[n][run] if c else given[n] for n, c in zip(tensors, chosen, strict=True)
            }
            one_by_one.append(function(**given | of_run))
        assert_close(function(**given), torch.stack(one_by_one))


@pytest.mark.parametrize(
    "function", [f for f, (_, others) in CALLS.items() if {"beta", "clip"} & set(others)], **BY_NAME
)
def test_a_coefficient_has_one_number_or_one_for_each_run(function):
    (name,) = {"beta", "clip"} & set(CALLS[function][1])
    runs = dict.fromkeys(CALLS[function][0], True)
    given = proper(function, **runs)
    each = function(**given | {name: torch.tensor([0.25, 2.0])})
    for run, number in enumerate((0.25, 2.0)):
        of_run = {n: given[n][run] for n in CALLS[function][0]}
        assert_close(each[run], function(**given | of_run | {name: number}))
    for shape in ((3,), (2, 1), (2, 4)):
        with pytest.raises(ValueError, match=rf"{name} \[.*do not fit"):
            function(**given | {name: torch.ones(shape)})
    bad = [-1.0, math.nan] + [math.inf] * (name == "beta")
    for number in bad:
        for given_as in (number, torch.tensor(number), torch.tensor([1.0, number])):
            with pytest.raises(ValueError, match=rf"{name} is .*{number}.*; it must be"):
                function(**given | {name: given_as})


# Types


@pytest.mark.parametrize(("function", "name"), EVERY, **BY_NAME)
@pytest.mark.parametrize("kind", [torch.long, torch.int32, torch.bool], ids=str)
def test_integers_count_as_the_numbers_they_are(function, name, kind):
    given = proper(function)
    whole = (3 * given[name]).to(kind) if name != "mask" else given[name].to(kind)
    wanted = whole.bool() if name == "mask" else whole.double()
    expected = function(**given | {name: wanted})
    assert_named_or_close(outcome(function, given | {name: whole}), name, expected)


@pytest.mark.parametrize("function", CALLS, **BY_NAME)
def test_integers_alone_are_computed_as_numbers(function):
    given = proper(function)
    whole = {n: (3 * x).long() for n, x in given.items() if n in CALLS[function][0] and n != "mask"}
    expected = function(**given | {n: x.double() for n, x in whole.items()})
    got = function(**given | whole)
    assert got.dtype == torch.float64  # torch's default here
    assert_close(got, expected, equal_nan=True)
    as_lists = {n: x.tolist() for n, x in (given | whole).items() if n in CALLS[function][0]}
    assert_close(function(**given | as_lists), expected, equal_nan=True)


@pytest.mark.parametrize(("function", "name"), EVERY, **BY_NAME)
@pytest.mark.parametrize("kind", [torch.half, torch.bfloat16, torch.float32], ids=str)
def test_another_precision_is_computed_as_the_numbers_it_holds(function, name, kind):
    given = proper(function)
    rounded = given[name].to(kind)
    expected = function(**given | {name: rounded.bool() if name == "mask" else rounded.double()})
    assert_named_or_close(outcome(function, given | {name: rounded}), name, expected)


@pytest.mark.parametrize("function", CALLS, **BY_NAME)
@pytest.mark.parametrize("kind", [torch.half, torch.bfloat16, torch.float32], ids=str)
def test_half_precision_loses_its_digits_only_once(function, kind):
    given = proper(function)
    numbers = [n for n in CALLS[function][0] if n != "mask"]
    rounded = {n: given[n].to(kind) for n in numbers}
    expected = function(**given | {n: x.double() for n, x in rounded.items()})
    got = function(**given | rounded)
    assert got.dtype == kind
    assert_named_or_close(got, function.__name__, expected)


@pytest.mark.parametrize(("function", "name"), EVERY, **BY_NAME)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_means_the_same_in_every_precision(function, name, value):
    if name == "mask":
        return
    given = proper(function)
    given[name][(1,) * given[name].dim()] = value
    expected = function(**given)
    single = {n: given[n].float() for n in CALLS[function][0] if n != "mask"}
    assert_named_or_close(outcome(function, given | single), name, expected)


@pytest.mark.parametrize(("function", "name"), EVERY, **BY_NAME)
@pytest.mark.parametrize("value", [math.nan, math.inf, 99.0])
def test_what_stands_behind_the_mask_is_never_seen(function, name, value):
    given = proper(function)
    if "mask" not in given or CALLS[function][0][name] == COLUMN or name == "mask":
        return
    hidden = ~given["mask"]
    assert hidden.any()
    spoilt = given[name].clone()
    spoilt[hidden] = -abs(value) if name.startswith("log") else value
    spoilt.requires_grad_()
    got = function(**given | {name: spoilt})
    assert_close(got, function(**given))
    # log-probabilities that are no numbers have no gradient, masked or not
    if got.requires_grad and not (name == "log_p" and math.isnan(value)):
        got.sum().backward()
        assert not spoilt.grad[hidden].any()


def test_nothing_given_is_written_to():
    for function, (tensors, _) in CALLS.items():
        given = proper(function)
        before = {name: given[name].clone() for name in tensors}
        function(**given)
        for name, x in before.items():
            assert torch.equal(given[name], x), f"{function.__name__}: {name}"


def test_the_gradient_goes_through_a_change_of_precision():
    log_probs = torch.zeros(2, 2, dtype=torch.half, requires_grad=True)
    advantages_ = torch.tensor([[1, 2], [3, 4]])
    clipped_surrogate(log_probs, torch.zeros(2, 2), advantages_, clip=math.inf).sum().backward()
    assert_close(log_probs.grad, advantages_.half())


def test_a_declared_function_still_names_what_is_missing_or_too_much():
    @takes(x="B")
    def double(x, *, times=2):
        return times * x

    assert double([1.5, 2.0]).tolist() == [3.0, 4.0]
    assert double(x=torch.ones(2), times=3).tolist() == [3.0, 3.0]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        double()
    with pytest.raises(TypeError, match="takes 1 positional argument but 2"):
        double(torch.ones(2), 3)
    with pytest.raises(TypeError, match="takes 1 positional argument but 2"):
        double([1.0], 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        double(torch.ones(2), y=1)


# By hand


def test_a_kl_without_the_axis_of_steps():
    # sum_i w_i (R_i - KL_i) = 0.5 (1 - 0.1) + 0.5 (2 - 0.2) = 1.35 is what [B, 1] gives
    rewards, weights = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"kl \[2\].*due are rewards \[B\], kl \[B, T\]"):
        penalized_objective(rewards, torch.tensor([0.1, 0.2]), 1.0, weights)
    got = penalized_objective(rewards, torch.tensor([[0.1], [0.2]]), 1.0, weights)
    assert_close(got, torch.tensor(1.35))


def test_advantages_without_the_axis_of_steps():
    log_probs, weights = torch.zeros(4, 1, requires_grad=True), torch.full((4,), 0.25)
    advantage, kl_ = torch.arange(1.0, 5.0), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"advantages \[4\]"):
        policy_gradient_surrogate(log_probs, kl_, advantage, 1.0, weights)
    policy_gradient_surrogate(log_probs, kl_, advantage.unsqueeze(1), 1.0, weights).backward()
    assert_close(log_probs.grad[:, 0], torch.tensor([0.25, 0.5, 0.75, 1.0]))


def test_returns_without_the_axis_of_steps_and_rewards_with_one():
    numbers = torch.arange(1.0, 5.0)
    mask, weights = torch.ones(4, 1).bool(), torch.full((4,), 0.25)
    with pytest.raises(ValueError, match=r"returns \[4\]"):
        value_loss(numbers.unsqueeze(1), numbers, mask, weights)
    assert value_loss(numbers.unsqueeze(1), numbers.unsqueeze(1), mask, weights) == 0
    with pytest.raises(ValueError, match=r"rewards \[4, 1\]"):
        reward_to_go(numbers.unsqueeze(1), torch.zeros(4, 3), 1.0, torch.ones(4, 3).bool())


def test_rewards_and_kls_that_are_integers():
    got = reward_to_go([1, 2], torch.tensor([[0, 1], [0, 1]]), 0.5, torch.ones(2, 2).bool())
    # R - 0.5 * 1 before the last token, R at it
    assert_close(got, torch.tensor([[0.5, 1.0], [1.5, 2.0]]))


@pytest.mark.parametrize(
    "kind", [torch.half, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_equal_entries_are_whitened_to_0_in_every_precision(kind):
    x = torch.ones(1, 2, dtype=kind)
    assert_close(whiten(x, torch.ones(1, 2).bool()), torch.zeros(1, 2, dtype=kind))


def test_a_run_all_of_whose_entries_are_masked_harms_no_other():
    x = torch.tensor([[[1.0, 3.0]], [[5.0, 99.0]]], requires_grad=True)
    mask = torch.tensor([[[True, True]], [[False, False]]])
    white = whiten(x, mask)
    # mean 2, variance 1
    assert_close(white, torch.tensor([[[-1.0, 1.0]], [[0.0, 0.0]]]), rtol=0, atol=1e-7)
    white.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", [torch.half, torch.float32, torch.float64], ids=str)
def test_however_small_a_probability_what_the_other_rules_out_is_infinitely_far(kind):
    p = torch.tensor([0.0, -105.0], dtype=kind)
    assert kl_divergence(p, torch.tensor([0.0, -math.inf], dtype=kind)) == math.inf
    same = kl_divergence(torch.tensor([0.0, -math.inf], dtype=kind), p)
    assert_close(same, torch.zeros((), dtype=kind))


@pytest.mark.parametrize("clip", [0.2, torch.tensor(0.2), torch.tensor([0.2])], ids=str)
def test_a_ratio_too_large_for_its_type_is_clipped_without_harm(clip):
    log_p = torch.full((1, 1, 4), 100.0, dtype=torch.float32, requires_grad=True)
    advantage = torch.tensor([[[1.0, 2.0, 0.0, 5.0]]])
    got = clipped_surrogate(log_p, torch.zeros_like(log_p), advantage.float(), clip=clip)
    got.sum().backward()
    assert_close(got, torch.tensor([[[1.2, 2.4, 0.0, 6.0]]], dtype=torch.float32))
    assert not log_p.grad.any()


@pytest.mark.parametrize("function", [clipped_surrogate, kl_penalty_surrogate], **BY_NAME)
def test_an_advantage_of_0_earns_0_whatever_the_ratio(function):
    log_p = torch.full((1, 1), 100.0, dtype=torch.float32, requires_grad=True)
    zero = torch.zeros(1, 1)
    others = {"clip": math.inf} if function is clipped_surrogate else {"kl_old": zero, "beta": 1.0}
    got = function(log_p, zero, zero, **others)
    got.backward()
    assert got == 0
    assert log_p.grad == 0


def test_at_beta_0_even_an_infinite_kl_is_free():
    kl_ = torch.tensor([[math.inf, 1.0], [2.0, math.inf]])
    rewards, weights, mask = (
        torch.tensor([1.0, 3.0]),
        torch.tensor([0.25, 0.75]),
        torch.ones(2, 2).bool(),
    )
    for zero in (0, 0.0, torch.tensor(0.0)):
        assert penalized_objective(rewards, kl_, zero, weights) == 2.5
        assert reward_to_go(rewards, kl_, zero, mask).tolist() == [[1.0, 1.0], [3.0, 3.0]]
        assert token_rewards(rewards, kl_, zero, mask).tolist() == [[0.0, 1.0], [0.0, 3.0]]
        assert (kl_penalty_surrogate(mask * 0.0, mask * 0.0, mask * 1.0, kl_, zero) == 1).all()
    runs = torch.tensor([0.0, 1.0])
    assert penalized_objective(rewards, kl_, runs, weights).tolist() == [2.5, -math.inf]
    assert penalized_objective(rewards, kl_ * math.nan, 0.0, weights).isnan()
