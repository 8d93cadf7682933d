import math

import pytest
import torch
from problems import logits_of, random_logits
from torch.testing import assert_close

from ppo_toy.kl import kl_divergence, kl_estimate, kl_of_log_probs

KINDS = ["k1", "k2", "k3"]
FAIR, LOADED = (1 / 2, 1 / 2), (1 / 4, 3 / 4)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def gradient_of_kl_p_q(logits_p: torch.Tensor, logits_q: torch.Tensor) -> torch.Tensor:
    """With respect to logits_p: p_j (log p_j/q_j - KL(p || q)), since p_j sums to 1."""
    log_ratio = logits_p.log_softmax(-1) - logits_q.log_softmax(-1)
    p = logits_p.softmax(-1)
    return p * (log_ratio - (p * log_ratio).sum())


# By hand


def test_a_fair_coin_against_a_loaded_one():
    # 1/2 log(1/2 / 1/4) + 1/2 log(1/2 / 3/4) = 1/2 log(4/3)
    got = kl_divergence(logits_of(*FAIR), logits_of(*LOADED))
    assert_close(got, scalar(0.5 * math.log(4 / 3)))


def test_the_other_order_is_another_number():
    # 1/4 log(1/4 / 1/2) + 3/4 log(3/4 / 1/2) = 3/4 log 3 - log 2
    got = kl_divergence(logits_of(*LOADED), logits_of(*FAIR))
    assert_close(got, scalar(0.75 * math.log(3) - math.log(2)))
    assert abs(got - 0.5 * math.log(4 / 3)) > 0.01


def test_the_gradient_for_two_coins():
    # for p: 1/2 (log 2 - KL) and 1/2 (log 2/3 - KL), with KL = 1/2 log 4/3; for q: q - p
    p, q = logits_of(*FAIR).requires_grad_(), logits_of(*LOADED).requires_grad_()
    kl_divergence(p, q).backward()
    kl = 0.5 * math.log(4 / 3)
    assert_close(p.grad, torch.tensor([0.5 * (math.log(2) - kl), 0.5 * (math.log(2 / 3) - kl)]))
    assert_close(q.grad, torch.tensor([1 / 4 - 1 / 2, 3 / 4 - 1 / 2]))


@pytest.mark.parametrize(
    ("kind", "heads", "tails"),
    [
        # heads: p/q = 2; tails: p/q = 2/3
        ("k1", math.log(2), math.log(2 / 3)),
        ("k2", math.log(2) ** 2 / 2, math.log(2 / 3) ** 2 / 2),
        ("k3", 1 / 2 - 1 + math.log(2), 3 / 2 - 1 - math.log(3 / 2)),
    ],
)
def test_the_estimates_from_one_toss_of_a_fair_coin(kind, heads, tails):
    log_p, log_q = logits_of(*FAIR), logits_of(*LOADED)
    assert_close(kl_estimate(log_p, log_q, kind), torch.tensor([heads, tails]))


# Properties


@pytest.mark.parametrize("seed", range(3))
def test_adding_a_number_to_all_logits_changes_nothing(seed):
    p, q = random_logits(seed, 2, 6)
    assert_close(kl_divergence(p + 3.0, q - 50.0), kl_divergence(p, q))


@pytest.mark.parametrize("seed", range(3))
def test_the_divergence_is_positive_and_zero_only_between_equals(seed):
    p, q = random_logits(seed, 2, 20, 6)
    assert (kl_divergence(p, q) > 0).all()
    assert_close(kl_divergence(p, p + 1.0), torch.zeros(20))


@pytest.mark.parametrize("seed", range(3))
def test_each_leading_index_has_a_divergence_of_its_own(seed):
    p, q = random_logits(seed, 2, 2, 3, 5)
    got = kl_divergence(p, q)
    assert got.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert_close(got[i, j], kl_divergence(p[i, j], q[i, j]))


@pytest.mark.parametrize("seed", range(3))
def test_k2_and_k3_are_never_negative_and_k1_is_where_q_is_above_p(seed):
    log_p, log_q = random_logits(seed, 2, 30).log_softmax(-1)
    assert (kl_estimate(log_p, log_q, "k2") >= 0).all()
    assert (kl_estimate(log_p, log_q, "k3") >= 0).all()
    assert torch.equal(kl_estimate(log_p, log_q, "k1") < 0, log_q > log_p)
    assert (log_q > log_p).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_keeps_the_shape_and_is_zero_between_equals(kind):
    log_p = random_logits(0, 2, 3, 4)
    assert torch.equal(kl_estimate(log_p, log_p, kind), torch.zeros(2, 3, 4))


def test_the_inputs_are_left_as_they_were():
    p, q = logits_of(0.5, 0.5, 0.0), logits_of(0.25, 0.25, 0.5)
    before = p.clone(), q.clone()
    kl_divergence(p, q)
    kl_of_log_probs(p, q)
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


def test_single_precision_stays_single_and_agrees_with_double():
    p, q = random_logits(0, 2, 5)
    got = kl_divergence(p.float(), q.float())
    assert got.dtype == torch.float32
    # the tolerance of single precision, which the comparison in double does not pick by itself
    assert_close(got.double(), kl_divergence(p, q), rtol=1e-5, atol=1e-6)


# Edges and errors


def test_a_token_with_no_mass_adds_nothing_to_value_or_gradient():
    p, q = logits_of(0.5, 0.5, 0.0).requires_grad_(), logits_of(0.25, 0.25, 0.5).requires_grad_()
    kl = kl_divergence(p, q)
    kl.backward()
    # 1/2 log 2 + 1/2 log 2; for p: p_j (log p_j/q_j - log 2) = 0; for q: q - p
    assert_close(kl, scalar(math.log(2)))
    assert_close(p.grad, torch.zeros(3))
    assert_close(q.grad, torch.tensor([-0.25, -0.25, 0.5]))


@pytest.mark.parametrize("seed", range(3))
def test_a_token_with_no_mass_under_p_leaves_the_gradient_of_the_others_alone(seed):
    # With q(4) = 0 as well, the fifth token might as well not be there.
    p, q = random_logits(seed, 2, 4)
    nowhere = torch.full((1,), -math.inf)
    p4, q4 = p.clone().requires_grad_(), q.clone().requires_grad_()
    p5 = torch.cat([p, nowhere]).requires_grad_()
    q5 = torch.cat([q, nowhere]).requires_grad_()
    small, large = kl_divergence(p4, q4), kl_divergence(p5, q5)
    small.backward()
    large.backward()
    assert_close(large, small)
    assert_close(p5.grad, torch.cat([p4.grad, torch.zeros(1)]))
    assert_close(q5.grad, torch.cat([q4.grad, torch.zeros(1)]))


def test_a_certain_token_costs_minus_its_log_probability_under_q():
    # 1 log(1 / (1/4))
    got = kl_divergence(logits_of(0.0, 1.0), logits_of(3 / 4, 1 / 4))
    assert_close(got, scalar(math.log(4)))


def test_the_divergence_is_infinite_where_q_has_no_mass_and_p_has_some():
    p, q = logits_of(0.5, 0.5), logits_of(1.0, 0.0).requires_grad_()
    kl = kl_divergence(p, q)
    kl.backward()
    assert kl == math.inf
    assert_close(q.grad, torch.tensor([0.5, -0.5]))  # q - p, as ever
    assert_close(kl_divergence(logits_of(1.0, 0.0), p), scalar(math.log(2)))


def test_far_apart_logits_give_their_distance():
    # p is certain of the first token, up to e^-800; log q of it is -1000
    p, q = torch.tensor([0.0, -800.0]), torch.tensor([-1000.0, 0.0])
    p.requires_grad_()
    kl = kl_divergence(p, q)
    kl.backward()
    assert_close(kl, scalar(1000.0))
    assert torch.isfinite(p.grad).all()


def test_k3_keeps_its_digits_where_p_and_q_are_close():
    # x + exp(-x) - 1 = x^2/2 - x^3/6 + ...; at x = 2^-20 the square drowns if exp rounds first
    x = 2.0**-20
    got = kl_estimate(scalar(x), scalar(0.0), "k3")
    assert_close(got / x**2, scalar(1 / 2 - x / 6))


@pytest.mark.parametrize("shape", [(1, 3), (3,), (2, 4)])
def test_two_shapes_that_differ_are_an_error(shape):
    with pytest.raises(ValueError, match=r"^logits_p \[2, 3\], logits_q \[.*\] do not") as error:
        kl_divergence(torch.zeros(2, 3), torch.zeros(shape))
    assert str(list(shape)) in str(error.value)
    with pytest.raises(ValueError, match=r"^log_p \[2, 3\], log_q \[.*\] do not") as error:
        kl_estimate(torch.zeros(2, 3), torch.zeros(shape), "k1")
    assert str(list(shape)) in str(error.value)


def test_an_unknown_kind_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="kind is 'k4'"):
        kl_estimate(torch.zeros(3), torch.zeros(3), "k4")


# Against an independent route


@pytest.mark.parametrize("seed", range(3))
def test_the_divergence_agrees_with_the_one_of_pytorch(seed):
    p, q = random_logits(seed, 2, 4, 6)
    categorical = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(categorical(logits=p), categorical(logits=q))
    assert_close(kl_divergence(p, q), expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_divergence_is_the_sum_of_its_definition(seed):
    p, q = random_logits(seed, 2, 6).exp().tolist()
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    expected = sum(p[v] * math.log(p[v] / q[v]) for v in range(6))
    assert_close(kl_divergence(logits_of(*p), logits_of(*q)), scalar(expected))
    assert_close(kl_of_log_probs(logits_of(*p), logits_of(*q)), scalar(expected))


def test_normalised_log_probabilities_of_one_q_serve_for_many_p():
    p, q = random_logits(0, 5, 4), random_logits(1, 4)
    got = kl_of_log_probs(p.log_softmax(-1), q.log_softmax(-1))
    assert_close(got, kl_divergence(p, q.expand(5, 4)))


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_agrees_with_numerical_differentiation(seed):
    p, q = random_logits(seed, 2, 2, 4)
    assert torch.autograd.gradcheck(kl_divergence, (p.requires_grad_(), q.requires_grad_()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_an_estimate_agrees_with_numerical_differentiation(kind):
    p, q = (x.requires_grad_() for x in random_logits(0, 2, 5))
    assert torch.autograd.gradcheck(lambda p, q: kl_estimate(p, q, kind), (p, q))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_expected_estimate_is_the_exact_kl(kind, seed):
    p, q = random_logits(seed, 2, 5).log_softmax(dim=-1)
    expected = (p.exp() * kl_estimate(p, q, kind)).sum()  # every token, weighted
    assert_close(expected, kl_divergence(p, q))


def test_the_expected_k2_is_not_the_exact_kl():
    # 1/2 (log 2)^2 / 2 + 1/2 (log 2/3)^2 / 2, against 1/2 log 4/3
    p, q = logits_of(*FAIR), logits_of(*LOADED)
    expected = (p.exp() * kl_estimate(p, q, "k2")).sum()
    assert_close(expected, scalar(math.log(2) ** 2 / 4 + math.log(2 / 3) ** 2 / 4))
    assert abs(expected - 0.5 * math.log(4 / 3)) > 0.01


def test_the_expected_k3_misses_the_mass_that_q_has_outside_p():
    # p draws only the first two tokens; the sum of q/p - 1 over them is 1/2 - 1, not 0
    p, q = logits_of(0.5, 0.5), logits_of(0.125, 0.375, 0.5)
    expected = (p.exp() * kl_estimate(p, q[:2], "k3")).sum()
    exact = kl_divergence(logits_of(0.5, 0.5, 0.0), q)
    assert_close(expected, exact - 0.5)
    assert_close((p.exp() * kl_estimate(p, q[:2], "k1")).sum(), exact)


def expected_gradient_as_a_loss(kind, logits_p, logits_q):
    """Of the estimate at a token that p drew: the draw itself is not differentiated."""
    logits_p = logits_p.clone().requires_grad_()
    log_p = logits_p.log_softmax(-1)
    (log_p.exp().detach() * kl_estimate(log_p, logits_q.log_softmax(-1), kind)).sum().backward()
    return logits_p.grad


@pytest.mark.parametrize("seed", range(3))
def test_k1_as_a_loss_has_gradient_zero_on_average(seed):
    p, q = random_logits(seed, 2, 5)
    assert_close(expected_gradient_as_a_loss("k1", p, q), torch.zeros(5))
    assert gradient_of_kl_p_q(p, q).abs().max() > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_k3_as_a_loss_has_the_gradient_of_the_other_order_on_average(seed):
    p, q = random_logits(seed, 2, 5)
    got = expected_gradient_as_a_loss("k3", p, q)
    assert_close(got, p.softmax(-1) - q.softmax(-1))  # of KL(q || p) with respect to p's logits
    first = p.clone().requires_grad_()
    kl_divergence(q, first).backward()
    assert_close(got, first.grad)
    assert (got - gradient_of_kl_p_q(p, q)).abs().max() > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_k2_as_a_loss_has_the_gradient_of_the_kl_on_average(seed):
    p, q = random_logits(seed, 2, 5)
    assert_close(expected_gradient_as_a_loss("k2", p, q), gradient_of_kl_p_q(p, q))


def test_a_row_that_is_no_distribution_leaves_its_neighbours_alone():
    least = torch.finfo(torch.float32).min  # what many libraries mask with
    rows = torch.tensor([[0.0, least], [math.nan, 0.0], [0.0, -105.0]], dtype=torch.float32)
    others = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, -math.inf]], dtype=torch.float32)
    kl = kl_divergence(rows, others)
    # p = (1, 0) against (1/2, 1/2); no number; a probability below all floats against 0
    assert kl[0].item() == pytest.approx(math.log(2))
    assert kl[1].isnan()
    assert kl[2] == math.inf
