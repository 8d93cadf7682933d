import math

import pytest
from torch.testing import assert_close

from ppo_toy.kl_controllers import double_or_halve, fixed, proportional

NAN = math.nan


def rule(name: str, beta: float, kl: float, kl_target: float) -> float:
    if name == "double_or_halve":
        return double_or_halve(beta, kl, kl_target=kl_target)
    return proportional(beta, kl, kl_target=kl_target, batch_size=8, horizon=16)


RULES = ["double_or_halve", "proportional"]


# By hand


@pytest.mark.parametrize("kl", [0.0, 3.0, 1e9, NAN])
def test_fixed_ignores_the_kl(kl):
    assert fixed(0.375, kl) == 0.375


@pytest.mark.parametrize(
    ("kl", "beta"),
    [
        # 3 / 1.5 = 2 and 3 * 1.5 = 4.5, which floats hold exactly
        (0.0, 0.25),
        (math.nextafter(2.0, 0.0), 0.25),
        (2.0, 0.5),
        (3.0, 0.5),
        (4.5, 0.5),
        (math.nextafter(4.5, 5.0), 1.0),
        (math.inf, 1.0),
    ],
)
def test_beta_is_halved_below_two_thirds_and_doubled_above_three_halves(kl, beta):
    assert double_or_halve(0.5, kl, kl_target=3.0) == beta


@pytest.mark.parametrize(
    ("kl", "beta"),
    [
        # 2 (1 + (kl/4 - 1) 8/16)
        (4.5, 2 * (1 + 0.125 / 2)),
        (4.0, 2.0),
        (3.5, 2 * (1 - 0.125 / 2)),
        # clipped: 2 (1 +- 0.2 8/16)
        (5.0, 2 * (1 + 0.2 / 2)),
        (400.0, 2 * (1 + 0.2 / 2)),
        (3.0, 2 * (1 - 0.2 / 2)),
        (0.0, 2 * (1 - 0.2 / 2)),
    ],
)
def test_beta_moves_in_proportion_to_a_clipped_error(kl, beta):
    assert_close(proportional(2.0, kl, kl_target=4.0, batch_size=8, horizon=16), beta)


def test_the_papers_constant_is_batch_size_over_horizon():
    # K_beta = 0.1 and an error of 1/8: 2 (1 + 0.1/8)
    got = proportional(2.0, 4.5, kl_target=4.0, batch_size=512, horizon=5120)
    assert_close(got, 2 * (1 + 0.1 / 8))


# Properties


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kl", [0.5, 3.9, 4.0, 4.1, 40.0])
def test_a_high_kl_never_lowers_beta_and_a_low_one_never_raises_it(name, kl):
    change = rule(name, 2.0, kl, 4.0) - 2.0
    assert change * (kl - 4.0) >= 0
    if not 2.0 < kl < 8.0:
        assert change != 0


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kl", [0.5, 3.5, 4.5, 40.0])
def test_only_the_ratio_of_kl_to_target_matters_and_beta_only_scales(name, kl):
    assert rule(name, 2.0, 4 * kl, 16.0) == rule(name, 2.0, kl, 4.0)
    assert rule(name, 8.0, kl, 4.0) == 4 * rule(name, 2.0, kl, 4.0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("beta", [0.01, 100.0])
def test_a_kl_that_falls_with_beta_is_brought_to_the_target(name, beta):
    # KL = 1/beta and the target 4: the right beta is 1/4
    for _ in range(200):
        beta = rule(name, beta, 1 / beta, 4.0)
    assert 4.0 / 1.5 <= 1 / beta <= 4.0 * 1.5


def test_proportional_goes_all_the_way_to_the_target():
    beta = 100.0
    for _ in range(400):
        beta = proportional(beta, 1 / beta, kl_target=4.0, batch_size=8, horizon=16)
    assert_close(beta, 1 / 4)


def test_over_one_horizon_a_clipped_error_moves_beta_by_about_a_fifth():
    up = down = 1.0
    for _ in range(1000):
        up = proportional(up, 9.0, kl_target=1.0, batch_size=1, horizon=1000)
        down = proportional(down, 0.0, kl_target=1.0, batch_size=1, horizon=1000)
    assert 1.2 < up < 1.23  # (1 + 0.2/1000)^1000 is a little under e^0.2
    assert 0.8 < down < 0.82


# Edges and errors


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kl", [0.0, 4.0, 400.0])
def test_a_beta_of_zero_stays_zero(name, kl):
    assert rule(name, 0.0, kl, 4.0) == 0.0


@pytest.mark.parametrize("name", RULES)
def test_an_estimate_below_zero_counts_as_a_low_kl(name):
    assert rule(name, 2.0, -1.0, 4.0) == rule(name, 2.0, 0.0, 4.0) < 2.0


@pytest.mark.parametrize("name", RULES)
def test_an_infinite_kl_counts_as_a_high_one(name):
    assert rule(name, 2.0, math.inf, 4.0) == rule(name, 2.0, 400.0, 4.0) > 2.0


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kl_target", [0.0, -1.5, NAN])
def test_a_target_that_is_not_positive_is_an_error(name, kl_target):
    with pytest.raises(ValueError, match=f"kl_target is {kl_target}"):
        rule(name, 2.0, 1.0, kl_target)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("beta", [-0.25, NAN])
def test_a_beta_that_is_not_zero_or_more_is_an_error(name, beta):
    with pytest.raises(ValueError, match=f"beta is {beta}"):
        rule(name, beta, 1.0, 4.0)


@pytest.mark.parametrize("name", RULES)
def test_a_kl_that_is_not_a_number_is_an_error(name):
    with pytest.raises(ValueError, match="kl is NaN"):
        rule(name, 2.0, NAN, 4.0)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_without_responses_is_an_error(batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        proportional(2.0, 1.0, kl_target=4.0, batch_size=batch_size, horizon=16)


@pytest.mark.parametrize("horizon", [2.0, 1.0, 0.0, -16.0, NAN])
def test_a_horizon_that_could_turn_beta_negative_is_an_error(horizon):
    # 1 - 0.2 * 10 / 2 = 0 is where it begins
    with pytest.raises(ValueError, match=f"horizon is {horizon}; .* = 2.0"):
        proportional(2.0, 1.0, kl_target=4.0, batch_size=10, horizon=horizon)


def test_the_shortest_horizon_and_the_smallest_batch_are_taken():
    shortest = math.nextafter(2.0, 3.0)
    assert 0 <= proportional(2.0, 0.0, kl_target=4.0, batch_size=10, horizon=shortest) < 1e-9
    assert_close(proportional(2.0, 0.0, kl_target=4.0, batch_size=1, horizon=1), 2 * (1 - 0.2))


def test_targets_are_given_by_name():
    with pytest.raises(TypeError):
        double_or_halve(0.5, 1.0, 3.0)
    with pytest.raises(TypeError):
        proportional(0.5, 1.0, 3.0, 8, 16)


# Against an independent route


def test_the_rules_are_the_table_of_the_paper():
    # d_targ = 1 and every kl from 0 to 3 in steps of 1/64: three rows, no other answer
    for step in range(193):
        kl = step / 64
        row = 0.5 if 3 * kl < 2 else 2.0 if 2 * kl > 3 else 1.0
        assert double_or_halve(1.0, kl, kl_target=1.0) == row
