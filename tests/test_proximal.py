import inspect
import math
import re

import pytest
import torch
from problems import generator, random_policies, random_world
from torch.testing import assert_close

from ppo_toy import exact, training
from ppo_toy.proximal import Surrogate, at_rest, check_at_rest, learns, look, moved, surrogates
from ppo_toy.trajectories import enumerate_all, per_step_kl, sample, score

NUMBERS = torch.tensor(0.5), torch.tensor(0.0)


def batch_of(seed: int, policy, reference, world):
    batch = sample(policy, world, 6, generator=generator(seed))
    log_ref = at_rest(reference, batch)
    return batch, log_ref, look(policy, log_ref, batch)


def first_of(how, policy, first, log_ref, batch, rewards):
    return next(
        surrogates(policy, first, log_ref, batch, rewards, how=how, betas=NUMBERS, epochs=1)
    )


def test_the_loop_has_the_nine_steps_in_order_one_line_each():
    lines = re.findall(r"# (\d) ", inspect.getsource(training.train))
    assert lines == list("123456789")


def test_a_look_is_what_log_probabilities_and_kl_are():
    world = random_world(0, end_token=0)
    policy, reference = random_policies(world, 0)
    batch, log_ref, seen = batch_of(0, policy, reference, world)
    assert_close(seen.kl, per_step_kl(policy, reference, batch))
    assert seen.kl.requires_grad
    assert torch.equal(seen.log_pi, at_rest(policy, batch))
    assert not log_ref.requires_grad


@pytest.mark.parametrize("penalty", ["exact", "sampled"])
def test_the_first_surrogate_has_the_gradient_of_j_on_average(penalty):
    # every batch of one response, with its probability: no baseline, so this is exact
    world = random_world(1, prompts=2, tokens=2, length=2, end_token=0)
    policy, reference = random_policies(world, 1)
    every = enumerate_all(policy, world)
    total = torch.zeros_like(policy.logits)
    for i, p in enumerate(every.weights.tolist()):
        rows = (x[i : i + 1] for x in (every.prompts, every.responses, every.mask))
        batch = type(every)(*rows, weights=torch.ones(1))
        log_ref = at_rest(reference, batch)
        given = (policy, look(policy, log_ref, batch), log_ref, batch, score(world, batch))
        stand_in = first_of(Surrogate(penalty), *given)
        total += p * torch.autograd.grad(stand_in, policy.logits)[0]
    assert_close(total, exact.gradient(policy, reference, world, 0.5)[0])


def test_each_epoch_asks_the_policy_again_and_the_first_does_not():
    world = random_world(2)
    policy, reference = random_policies(world, 2)
    batch, log_ref, seen = batch_of(0, policy, reference, world)
    asked = []
    policy.register_forward_hook(lambda *_: asked.append(1))
    numbers = surrogates(
        policy, seen, log_ref, batch, score(world, batch), how=Surrogate(), betas=NUMBERS, epochs=3
    )
    assert [(next(numbers).dim(), len(asked)) for _ in range(3)] == [(0, 0), (0, 1), (0, 2)]
    assert next(numbers, None) is None


def test_a_second_anchor_costs_its_kl():
    world = random_world(3)
    policy, reference = random_policies(world, 3)
    batch, log_ref, seen = batch_of(0, policy, reference, world)
    with torch.no_grad():
        policy.logits += torch.arange(policy.logits.numel()).view_as(policy.logits) / 10
    values = []
    for beta_old in (0.0, 2.0):
        numbers = surrogates(
            policy, seen, log_ref, batch, score(world, batch),
            how=Surrogate(), betas=(NUMBERS[0], torch.tensor(beta_old)), epochs=2,
        )  # fmt: skip
        values.append([number.item() for number in numbers])
    assert values[0][0] == values[1][0]
    kl_old = moved(policy, seen, batch, epochs=2)
    assert kl_old > 0.005
    assert_close(values[0][1] - values[1][1], 2 * kl_old.item())
    assert moved(policy, seen, batch, epochs=1).isnan()


def test_a_reference_that_moved_is_noticed_by_what_it_says():
    world = random_world(4)
    policy, reference = random_policies(world, 4)
    batch, log_ref, _ = batch_of(0, policy, reference, world)
    check_at_rest(reference, log_ref, batch)
    with torch.no_grad():
        reference.logits[:, 0] += 1e-9
    with pytest.raises(ValueError, match=r"the reference moved.*policies.freeze\(policy\)"):
        check_at_rest(reference, log_ref, batch)


def test_a_reference_that_rules_tokens_out_stands_still_too():
    world = random_world(5)
    policy, reference = random_policies(world, 5)
    reference.logits.data[:, 1] = -math.inf
    batch, log_ref, _ = batch_of(0, policy, reference, world)
    check_at_rest(reference, log_ref, batch)


def test_a_policy_learns_once_a_gradient_is_not_zero():
    policy, _ = random_policies(random_world(5), 5)
    assert not learns(policy)
    (0 * policy.logits.sum()).backward()
    assert not learns(policy)
    policy.logits[0, 0].backward()
    assert learns(policy)


def test_a_penalty_of_another_form_is_an_error_that_names_it():
    with pytest.raises(ValueError, match='penalty is \'k3\'; it is "exact" or "sampled"'):
        Surrogate(penalty="k3")
