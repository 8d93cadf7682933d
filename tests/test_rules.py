import functools
import warnings

import pytest
import torch
from torch.testing import assert_close

from ppo_toy import exact
from ppo_toy.referee import verdict
from ppo_toy.rules import (
    ARGUMENTS,
    GroupProblem,
    as_rule,
    batch_gradients,
    expected_gradient,
    random_problem,
)
from ppo_toy.trajectories import Trajectories, enumerate_all, log_probs, per_step_kl
from ppo_toy.worlds import prompt_weights


def right(policy, reference, batch, rewards, beta):
    """(A), of a single batch or of many."""
    log_p, kl = log_probs(policy, batch), per_step_kl(policy, reference, batch)
    worth = rewards - beta * kl.sum(dim=-1)
    return (batch.weights * (log_p.sum(dim=-1) * worth.detach() + worth)).sum(dim=-1)


def loss(log_probs, ref_log_probs, rewards, mask, beta):
    cost = ((log_probs - ref_log_probs) * mask).detach().sum(1)
    return -((log_probs * mask).sum(1) * (rewards - beta * cost)).mean()


def test_prompts_of_a_problem_have_unequal_weight():
    case = random_problem(0, 2, beta=0.5, prompts=range(1, 4))
    assert case.world.prompts.tolist() == [[1], [2], [3]]
    assert_close(prompt_weights(case.world), torch.tensor([3, 2, 1]) / 6)
    listed = enumerate_all(case.policy, case.world)
    assert_close(listed.weights.view(3, -1).sum(dim=1), torch.tensor([3, 2, 1]) / 6)
    # Each prompt has a table of its own, whatever stands beside it.
    rewards = case.world.reward(listed.prompts, listed.responses).view(3, -1)
    last = case.world.reward(listed.prompts[-7:], listed.responses[-7:])
    assert_close(last, rewards[2])
    assert (rewards[2] != rewards[0]).all()


@pytest.mark.parametrize("prompts", [[0], [2], range(3)])
@pytest.mark.parametrize("rule", [right, as_rule(loss, loss=True)])
def test_the_mean_over_all_batches_is_the_exact_gradient(rule, prompts):
    case = random_problem(5, 2, beta=0.7, prompts=prompts)
    assert_close(expected_gradient(rule, case), exact.gradient(*case)[0])


def test_probabilities_are_those_of_batches():
    case = random_problem(5, 2, beta=0.7, prompts=range(3))
    p, surrogates, gradients = batch_gradients(right, case)
    n = len(enumerate_all(case.policy, case.world).weights)
    assert n == 3 * 7  # prompts times 1 + 2 * 3 responses
    assert p.shape == surrogates.shape == (n**2,)
    assert gradients.shape == (n**2, *case.policy.logits.shape)
    assert_close(p.sum(), torch.tensor(1.0))


def test_responses_of_a_group_answer_one_prompt():
    case = GroupProblem(*random_problem(5, 2, beta=0.7, prompts=range(3)))
    p, _, _ = batch_gradients(right, case)
    assert p.shape == (3 * 7**2,)
    # 3 : 2 : 1, each prompt drawn once for both responses
    assert_close(p.view(3, -1).sum(dim=1), torch.tensor([3, 2, 1]) / 6)
    assert_close(expected_gradient(right, case), exact.gradient(*case)[0])

    def for_groups(log_probs, ref_log_probs, rewards, mask, prompts, beta):
        assert (prompts == prompts[0]).all()
        return loss(log_probs, ref_log_probs, rewards, mask, beta)

    assert verdict(for_groups, loss=True, grouped=True).faults == ()
    with pytest.raises(ValueError, match="the rule fails"):
        verdict(for_groups, loss=True)


# What a batch's own statistics do to a rule shows only if it sees real batches.


def centred_loss(log_probs, rewards, mask, beta):
    return -((log_probs * mask).sum(1) * (rewards - rewards.mean())).mean() + 0 * beta


def centred_for_one_batch(policy, reference, batch, rewards, beta):
    return (log_probs(policy, batch).sum(dim=-1) * (rewards - rewards.mean())).mean(dim=-1)


def centred_side_by_side(policy, reference, batch, rewards, beta):
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    return (log_probs(policy, batch).sum(dim=-1) * centred).mean(dim=-1)


def centred_by_position(policy, reference, batch, rewards, beta):
    """Asks for the axis of runs."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return (log_probs(policy, batch).sum(dim=2) * centred).mean(dim=1)


@pytest.mark.parametrize(
    "rule",
    [centred_for_one_batch, centred_by_position, as_rule(centred_loss, loss=True)],
)
def test_a_mean_is_over_one_batch_however_it_is_written(rule):
    case = random_problem(1, 2, beta=0.5)
    for found, due in zip(
        batch_gradients(rule, case), batch_gradients(centred_side_by_side, case), strict=True
    ):
        assert_close(found, due)


def test_a_mean_over_all_batches_does_not_pass_for_that_of_one():
    def rule(policy, reference, batch, rewards, beta):
        centred = as_rule(centred_for_one_batch)(policy, reference, batch, rewards, beta)
        return centred + right(policy, reference, batch, 0 * rewards, beta)

    assert verdict(rule).faults == ("own response in the baseline",)


def test_a_batch_whose_gradient_is_not_finite_is_named():
    def others_of_the_same_prompt(prompts, log_probs, rewards, mask, beta):
        same = (prompts == prompts.T).double()
        others = (same @ rewards - rewards) / (same.sum(1) - 1)
        return ((log_probs * mask).sum(1) * (rewards - others)).mean()

    with pytest.raises(ValueError, match=r"said to \[\[0\], \[1\]\], is not finite"):
        batch_gradients(others_of_the_same_prompt, random_problem(0, 2, 0.5, prompts=range(2)))


def test_a_loop_over_numbers_gives_the_same_as_tensors():
    def with_numbers(log_probs, ref_log_probs, rewards, mask, beta):
        total = 0
        for i in range(len(rewards)):
            n = int(mask[i].sum())
            p, cost = log_probs[i, :n], 0.0
            for t in range(n):
                cost += (log_probs[i, t] - ref_log_probs[i, t]).item()
            total = total - p.sum() * (rewards[i].item() - beta * cost)
        return total / len(rewards)

    case = random_problem(1, 2, beta=0.5)
    listed = enumerate_all(case.policy, case.world)
    rows = torch.tensor([[0, 5], [3, 1], [2, 2]])  # three batches of two, side by side
    drawn = (x[rows] for x in (listed.prompts, listed.responses, listed.mask, listed.weights))
    given = case.policy.repeat(3), case.reference, Trajectories(*drawn), torch.randn(3, 2), 0.5
    assert_close(as_rule(with_numbers)(*given), as_rule(loss)(*given))
    found = batch_gradients(as_rule(with_numbers, loss=True), case)
    for x, y in zip(found, batch_gradients(as_rule(loss, loss=True), case), strict=True):
        assert_close(x, y)


def test_each_argument_is_what_its_name_says():
    case = random_problem(1, 2, beta=0.5)
    seen = {}

    def look(
        log_probs, old_log_probs, ref_log_probs, kl, logits, ref_logits,
        prompts, responses, mask, rewards, weights, beta,
    ):  # fmt: skip
        seen.update(locals())
        return log_probs.sum()

    listed = enumerate_all(case.policy, case.world)
    as_rule(look)(*case[:2], listed, case.world.reward(listed.prompts, listed.responses), 0.25)
    assert set(ARGUMENTS) <= set(seen)
    assert seen["beta"] == 0.25
    mask = seen["mask"]
    assert torch.equal(mask, listed.mask)
    for name, policy in (("log_probs", case.policy), ("ref_log_probs", case.reference)):
        assert_close(seen[name].where(mask, 0), log_probs(policy, listed))
        assert (seen[name][~mask] != 0).all()  # as in any padded batch
    assert_close(seen["kl"].where(mask, 0), per_step_kl(*case[:2], listed))
    taken = seen["logits"].log_softmax(-1).gather(-1, seen["responses"][..., None])[..., 0]
    assert_close(taken, seen["log_probs"])
    taken = seen["ref_logits"].log_softmax(-1).gather(-1, seen["responses"][..., None])[..., 0]
    assert_close(taken, seen["ref_log_probs"])
    attached = {name for name in ARGUMENTS if seen[name].requires_grad}
    assert attached == {"log_probs", "kl", "logits", "weights"}  # those of `enumerate_all` do
    assert torch.equal(seen["old_log_probs"], seen["log_probs"])
    assert torch.equal(seen["weights"], listed.weights)


def test_who_does_not_ask_for_the_mask_gets_zeros_behind_the_end():
    case = random_problem(1, 2, beta=0.5)
    listed = enumerate_all(case.policy, case.world)
    rule = as_rule(lambda logp, ref_logprobs, beta: (logp - ref_logprobs)[~listed.mask].abs().sum())
    assert rule(*case[:2], listed, listed.weights, 0.5) == 0


def test_other_ways_to_write_the_names():
    def short(logp, ref_logprobs, rewards, mask, beta):
        return loss(logp, ref_logprobs, rewards, mask, beta)

    partial = functools.partial(loss, beta=99.0)  # the referee's own beta replaces it
    for written in (short, partial):
        assert verdict(written, loss=True).faults == ()


def test_what_a_loss_does_to_its_arguments_stays_with_it():
    def in_place(log_probs, ref_log_probs, rewards, mask, weights, beta):
        rewards -= beta * ((log_probs - ref_log_probs) * mask).detach().sum(1)
        value = -((log_probs * mask).sum(1) * rewards.clone()).mean()
        rewards *= 0
        weights *= 0
        return value

    assert verdict(in_place, loss=True).faults == ()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda log_probs, rewards: log_probs.sum(), r"takes \(log_probs, rewards\).*'beta'"),
        (lambda log_probs, rewards, beta, lr: log_probs.sum(), r"'lr'.*ref_log_probs"),
        (lambda a, b, c: a, r"takes \(a, b, c\).*\(policy, reference, trajectories, rewards, beta"),
        (lambda **names: 0, r"takes \(\*\*names\)"),
        (lambda log_probs, beta: log_probs.detach().sum(), "no gradient"),
        (lambda p, q, b, r, beta: r.sum(dim=-1), "no gradient"),
        (lambda log_probs, beta: log_probs.sum().item(), "gave float"),
        (lambda log_probs, beta: log_probs.sum(dim=1), r"gave .*\[2\].* for a batch"),
        (lambda log_probs, beta: log_probs.sum().unsqueeze(0), r"gave .*\[1\].* for a batch"),
        (lambda log_probs, beta: (log_probs.sum(), {}), "gave tuple"),
        (lambda log_probs, beta: None, "TypeError|gave NoneType"),
        (lambda p, q, b, r, beta: log_probs(p, b), r"gave .*\[2, 3\].* for a batch"),
        (lambda log_probs, beta: log_probs.sum() * torch.nan, "not finite"),
        (lambda log_probs, beta: (0 * log_probs).sum() / 0, "not finite"),
        (lambda log_probs, beta: log_probs.nonsense, "AttributeError.*nonsense"),
        (lambda p, q, r, mask, beta: p - q, "fails .*TypeError.*TabularPolicy"),
        (lambda log_probs, rewards, beta: (log_probs @ rewards).sum(), "fails .*RuntimeError"),
        (lambda log_probs, beta: log_probs.exp().mul_(2).sum(), "inplace operation"),
        (lambda *x: 1 / 0, "ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("is_loss", [True, False])
def test_what_cannot_be_asked_is_said_in_one_sentence(rule, words, is_loss):
    with pytest.raises(ValueError, match=words):
        verdict(rule, loss=is_loss)


def test_a_batch_without_a_gradient_is_no_error_among_others():
    def skips_equal_rewards(log_probs, rewards, mask, beta):
        if rewards[0] == rewards[1]:
            return torch.zeros(())
        return ((log_probs * mask).sum(1) * (rewards - rewards.mean())).mean()

    case = random_problem(1, 2, beta=0.5)
    due = batch_gradients(centred_side_by_side, case)
    for x, y in zip(batch_gradients(skips_equal_rewards, case), due, strict=True):
        assert_close(x, y)


def test_the_policy_and_the_global_state_are_left_alone():
    case = random_problem(0, None, beta=0.5)
    before = case.policy.logits.detach().clone()
    verdict(loss, loss=True)
    expected_gradient(right, case)
    assert torch.equal(case.policy.logits, before)
    assert case.policy.logits.grad is None


def test_a_warning_inside_a_rule_is_not_repeated_for_every_batch():
    def noisy(policy, reference, batch, rewards, beta):
        warnings.warn("slow", UserWarning, stacklevel=1)
        return right(policy, reference, batch, rewards, beta)

    batch_gradients(noisy, random_problem(1, 2, beta=0.5))  # pytest makes a warning an error


def test_single_precision_inside_a_rule_is_no_fault():
    def single(log_probs, ref_log_probs, rewards, mask, beta):
        return loss(log_probs.float(), ref_log_probs.float(), rewards.float(), mask, beta)

    assert verdict(single, loss=True).faults == ()


def test_a_loss_that_returns_nothing_is_named_as_one():
    def forgets(log_probs, rewards, beta):
        (log_probs.sum(dim=-1) * rewards).mean()

    for loss in (False, True):
        with pytest.raises(ValueError, match="it gave NoneType for a batch; one number is due"):
            verdict(forgets, loss=loss)
