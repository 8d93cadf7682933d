from dataclasses import replace

import pytest
import torch
from problems import generator, random_policies, random_world
from torch.testing import assert_close

from ppo_toy import exact
from ppo_toy.policies import TabularPolicy
from ppo_toy.referee import FAULTS, Problem, batch_gradients, expected_gradient, verdict
from ppo_toy.trajectories import log_probs, per_step_kl, step_log_probs
from ppo_toy.worlds import TokenBandit

# The rules are written out here from the published descriptions, one by one.


def tail(x, own=True):
    """Sum over t' >= t, or t' > t."""
    total = torch.zeros_like(x)
    for t in range(x.shape[-1]):
        total[..., t] = x[..., t if own else t + 1 :].sum(dim=-1)
    return total


def mean(batch, x):
    return (batch.weights * x).sum(dim=-1)


def loss_rule(penalty, *, sign=-1):
    """Reward by score function; a penalty differentiated token by token."""

    def rule(policy, reference, batch, rewards, beta):
        log_p = log_probs(policy, batch)
        cost = penalty(log_p, log_probs(reference, batch), policy, reference, batch)
        return mean(batch, (log_p * rewards[..., None] + sign * beta * cost).sum(dim=-1))

    return rule


def reward_rule(charge, own=True, sign=-1, whole=False, baseline=lambda g: 0):
    """A penalty charged to the tokens that lead to it."""

    def rule(policy, reference, batch, rewards, beta):
        log_p = log_probs(policy, batch)
        cost = charge(log_p, log_probs(reference, batch)).detach()
        cost = cost.sum(-1, keepdim=True).expand_as(cost) if whole else tail(cost, own)
        returns = rewards[..., None] + sign * beta * cost
        return mean(batch, (log_p * (returns - baseline(returns))).sum(dim=-1))

    return rule


def k1(p, q, *_):
    return p - q


def k2(p, q, *_):
    return (p - q) ** 2 / 2


def k3(p, q, *_):
    return (q - p).exp() - 1 - (q - p)


def exact_kl(p, q, policy, reference, batch):
    return per_step_kl(policy, reference, batch)


def ratio(p):
    return (p - p.detach()).exp()


def other_of_two(x):
    return x.flip(-2)


def form_a(policy, reference, batch, rewards, beta, own=False, baseline=lambda g: 0):
    log_p, kl = log_probs(policy, batch), per_step_kl(policy, reference, batch)
    kl_to_go = tail(kl.detach(), own)
    returns = rewards[..., None] - beta * kl_to_go
    returns = returns - baseline(returns)
    return mean(batch, (log_p * returns - beta * kl).sum(dim=-1))


def form_a_with(**how):
    return lambda *arguments: form_a(*arguments, **how)


def tokens_tempered(power, which):
    def rule(policy, reference, *rest):
        pair = [policy, reference]
        for k in which:
            pair[k] = lambda *x, cold=pair[k]: power * cold(*x)
        return form_a(*pair, *rest)

    return rule


CORRECT = {
    "(A)": form_a,
    "(A), present KL in the bracket": form_a_with(own=True),
    "(A), the other response as baseline": form_a_with(baseline=other_of_two),
    "(A), a constant as baseline": form_a_with(baseline=lambda g: 3.5),
    "(B)": reward_rule(k1),
    "(B), whole response": reward_rule(k1, whole=True),
    "(B), whole response, leave-one-out": reward_rule(k1, whole=True, baseline=other_of_two),
    "(B) with a ratio that is 1": lambda policy, reference, batch, rewards, beta: mean(
        batch,
        (
            ratio(log_probs(policy, batch))
            * batch.mask
            * (
                rewards[..., None]
                - beta * tail((log_probs(policy, batch) - log_probs(reference, batch)).detach())
            )
        ).sum(dim=-1),
    ),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("which", CORRECT)
def test_a_right_rule_has_no_fault(which, seed):
    assert verdict(CORRECT[which], seed=seed).faults == ()


def obvious(policy, reference, batch, rewards, beta):
    return mean(batch, rewards - beta * per_step_kl(policy, reference, batch).sum(dim=-1))


def no_grad(policy, reference, batch, rewards, beta):
    with torch.no_grad():
        kl = per_step_kl(policy, reference, batch).sum(dim=-1)
    return mean(batch, log_probs(policy, batch).sum(dim=-1) * rewards - beta * kl)


def never_applied(policy, reference, batch, rewards, beta):
    return mean(batch, log_probs(policy, batch).sum(dim=-1) * rewards)


def scalar_of_batch(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    kl = mean(batch, (log_p - log_probs(reference, batch)).sum(dim=-1)).detach()
    return mean(batch, log_p.sum(dim=-1) * (rewards - beta * kl[..., None]))


def scalar_of_exact(policy, reference, batch, rewards, beta):
    kl = mean(batch, per_step_kl(policy, reference, batch).sum(dim=-1)).detach()
    return mean(batch, log_probs(policy, batch).sum(dim=-1) * (rewards - beta * kl[..., None]))


def scalar_of_prompt(policy, reference, batch, rewards, beta):
    kl = per_step_kl(policy, reference, batch)[..., :1].detach()  # at the prompt: the same for all
    return mean(batch, (log_probs(policy, batch) * (rewards[..., None] - beta * kl)).sum(dim=-1))


def padding_counts(policy, reference, batch, rewards, beta):
    open_batch = replace(batch, mask=torch.ones_like(batch.mask))
    k1 = (log_probs(policy, open_batch) - log_probs(reference, open_batch)).detach()
    log_p = log_probs(policy, batch)
    return mean(batch, (log_p * (rewards[..., None] - beta * tail(k1))).sum(dim=-1))


def padding_is_learned(policy, reference, batch, rewards, beta):
    return form_a(policy, reference, replace(batch, mask=batch.mask | True), rewards, beta)


def one_too_many(policy, reference, batch, rewards, beta):
    reach = batch.mask.cumsum(dim=-1)[..., -1:] + 1
    mask = torch.arange(1, batch.mask.shape[-1] + 1) <= reach
    return form_a(policy, reference, replace(batch, mask=mask), rewards, beta)


def mean_over_tokens(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    returns = rewards[..., None] - beta * tail((log_p - log_probs(reference, batch)).detach())
    return mean(batch, (log_p * returns).sum(dim=-1) / batch.mask.sum(dim=-1))


def mean_over_tokens_of_the_batch(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    returns = rewards[..., None] - beta * tail((log_p - log_probs(reference, batch)).detach())
    return (log_p * returns).sum(dim=(-2, -1)) / batch.mask.sum(dim=(-2, -1))


def kl_mean_over_tokens(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    k1 = (log_p - log_probs(reference, batch)).detach().sum(dim=-1) / batch.mask.sum(dim=-1)
    return mean(batch, log_p.sum(dim=-1) * (rewards - beta * k1))


def reward_after_the_end(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    k1 = (log_p - log_probs(reference, batch)).detach()
    slot = batch.mask.sum(dim=-1).clamp(max=batch.mask.shape[-1] - 1)
    given = torch.zeros_like(k1).scatter(-1, slot[..., None], rewards[..., None])
    return mean(batch, (log_p * tail(given * batch.mask - beta * k1)).sum(dim=-1))


def standardised(rewards):
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True).sqrt() + 1e-4)


def grpo(policy, reference, batch, rewards, beta):
    advantage = standardised(rewards)
    log_p = log_probs(policy, batch)
    cost = k3(log_p, log_probs(reference, batch))
    return mean(batch, (ratio(log_p) * advantage[..., None] - beta * cost).sum(dim=-1))


def whitened(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    returns = rewards - beta * (log_p - log_probs(reference, batch)).detach().sum(dim=-1)
    returns = returns - returns.mean(dim=-1, keepdim=True)
    spread = (returns.square().mean(dim=-1, keepdim=True) + 1e-8).sqrt()
    return mean(batch, log_p.sum(dim=-1) * returns / spread)


def entropy_bonus(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    return mean(batch, (log_p * (rewards[..., None] - beta * tail(log_p.detach()))).sum(dim=-1))


def base_model(policy, reference, *rest):
    return form_a(policy, lambda *x: 0 * reference(*x), *rest)


def forward_kl_exact(p, q, policy, reference, batch):
    log_p, log_q = step_log_probs(policy, batch), step_log_probs(reference, batch)
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1).masked_fill(~batch.mask, 0)


def both_places(policy, reference, batch, rewards, beta):
    in_reward = reward_rule(k1)(policy, reference, batch, rewards, beta)
    log_p = log_probs(policy, batch)
    return in_reward - beta * mean(batch, k2(log_p, log_probs(reference, batch)).sum(dim=-1))


def surrogate_upside_down(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    returns = rewards[..., None] - beta * tail((log_p - log_probs(reference, batch)).detach())
    return mean(batch, ((log_p.detach() - log_p).exp() * returns * batch.mask).sum(dim=-1))


def k3_with_future(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    cost = k3(log_p, log_probs(reference, batch))
    later = tail((log_p - log_probs(reference, batch)).detach(), own=False)
    return mean(batch, (log_p * (rewards[..., None] - beta * later) - beta * cost).sum(dim=-1))


def upside_down(p, q, *_):
    return (p - q).exp() - 1 - (p - q)


WRONG = {
    "backward of the sampled objective": (obvious, "reward has no gradient", "future KL dropped"),
    "verl 179": (loss_rule(k2, sign=1), "KL sign flipped", "future KL dropped"),
    "k1 in reward, added": (reward_rule(k1, sign=1), "KL sign flipped"),
    "open-instruct 530": (no_grad, "KL under no_grad"),
    "open-instruct 534": (loss_rule(k1), "k1 as loss"),
    "slime 1247": (never_applied, "KL never applied"),
    "one KL for the batch": (scalar_of_batch, "KL as baseline"),
    "one KL for the prompt": (scalar_of_prompt, "KL as baseline"),
    "own token dropped": (reward_rule(k1, own=False), "own token dropped"),
    "exact KL in loss": (loss_rule(exact_kl), "future KL dropped"),
    "k2 in loss": (loss_rule(k2), "future KL dropped"),
    "ratio k1 in loss": (loss_rule(lambda p, q, *_: ratio(p) * (p - q)), "future KL dropped"),
    "k3 in loss": (loss_rule(k3), "other direction", "future KL dropped"),
    "KL(ref||pi) in loss": (loss_rule(forward_kl_exact), "other direction", "future KL dropped"),
    "k3 in loss, future kept": (k3_with_future, "other direction"),
    "ratio k2": (loss_rule(lambda p, q, *_: ratio(p) * k2(p, q)),)
    + ("k2 times ratio", "future KL dropped"),
    "k3 in reward": (reward_rule(k3), "k3 in reward"),
    "k2 in reward": (reward_rule(k2), "k2 in reward"),
    "k3 upside down": (loss_rule(upside_down), "ratio upside down", "future KL dropped"),
    "new and old exchanged": (surrogate_upside_down, "reward sign flipped", "KL sign flipped"),
    "KL in both places": (both_places, "own token twice"),
    "padding in the KL": (padding_counts, "padding leaked"),
    "padding in everything": (padding_is_learned, "padding leaked"),
    "one padded token too many": (one_too_many, "padding leaked"),
    "all scored at 1": (tokens_tempered(0.7, (0, 1)), "temperature missing"),
    "policy scored at 1": (tokens_tempered(0.7, (0,)), "temperature missing"),
    "reference scored at 1": (tokens_tempered(0.7, (1,)), "another reference"),
    "no reference": (entropy_bonus, "another reference"),
    "base model as reference": (base_model, "another reference"),
    "token mean": (mean_over_tokens, "token mean"),
    "mean over the batch's tokens": (mean_over_tokens_of_the_batch, "token mean"),
    "KL averaged": (kl_mean_over_tokens, "KL averaged over tokens"),
    "trl 3750": (reward_after_the_end, "reward behind the end"),
    "grpo": (grpo, "reward divided by spread", "other direction", "future KL dropped"),
    "reward over spread": (
        lambda p, q, b, r, beta: form_a(p, q, b, standardised(r), beta),
        "reward divided by spread",
    ),
    "whitened": (whitened, "advantages whitened"),
    "batch mean": (
        form_a_with(baseline=lambda g: g.mean(dim=-2, keepdim=True)),
        "own response in the baseline",
    ),
    "one exact KL for the batch": (scalar_of_exact, "KL as baseline", "own token dropped"),
    "half of beta": (lambda p, q, b, r, beta: form_a(p, q, b, r, beta / 2), "beta scaled"),
    "clamped": (reward_rule(lambda p, q: (p - q).clamp(-10, 10)), "log-ratio clamped"),
    "twice the gradient": (lambda *x: 2 * form_a(*x), "only scaled"),
    "tanh of the reward": (lambda p, q, b, r, beta: form_a(p, q, b, r.tanh(), beta), "unknown"),
}


@pytest.mark.parametrize("which", WRONG)
def test_a_published_mistake_is_named(which):
    rule, *names = WRONG[which]
    seed = list(WRONG).index(which) % 5  # each of five seeds comes before several of them
    assert verdict(rule, seed=seed).faults == tuple(names)
    assert set(names) <= set(FAULTS)


def test_every_fault_of_the_table_was_shown():
    assert {name for _, *names in WRONG.values() for name in names} == set(FAULTS)


def test_error_and_cosine_are_those_of_the_expected_gradient():
    assert_close(verdict(form_a).error, 0.0)
    assert_close(verdict(form_a).cosine, 1.0)
    # Three times the gradient is off by twice its length, minus the gradient points back.
    thrice, backwards = (verdict(lambda *x, c=c: c * form_a(*x)) for c in (3, -1))
    assert_close((thrice.error, thrice.cosine), (2.0, 1.0))
    assert_close((backwards.error, backwards.cosine), (2.0, -1.0))


def test_two_fair_tokens_by_hand():
    # Rewards 1 and 0, p = 1/2: J = p, so dJ/dtheta = p (1 - p) = 1/4; each of four pairs has 1/4.
    world = TokenBandit(torch.tensor([[1.0, 0.0]]))
    case = Problem(TabularPolicy(world), TabularPolicy(world), world, 0.0)
    p, surrogates, gradients = batch_gradients(form_a, case)
    assert_close(p, torch.full((4,), 1 / 4))
    assert_close(surrogates, torch.log(torch.tensor(1 / 2)) * torch.tensor([1, 0.5, 0.5, 0]))
    first = torch.tensor([1 / 2, 1 / 4, 1 / 4, 0.0])  # the mean of r * (1[a] - 1/2) over the pair
    assert_close(gradients[:, 0, 0], first)
    assert_close(expected_gradient(form_a, case), torch.tensor([[1 / 4, -1 / 4]]))


@pytest.mark.parametrize("size", [1, 2])
def test_the_mean_over_all_batches_is_the_exact_gradient(size):
    for seed, end_token in enumerate((None, 1)):
        world = random_world(seed, end_token=end_token, prompts=1)
        case = Problem(*random_policies(world, seed), world, 0.7)
        found = expected_gradient(form_a, case, size=size)
        assert_close(found, exact.gradient(*case)[0])


def test_the_mean_agrees_with_sampled_batches():
    from ppo_toy.trajectories import sample, score

    world = random_world(0, prompts=1, length=2, end_token=1)
    policy, reference = random_policies(world, 0)
    n = 20_000
    runs = policy.repeat(n)
    drawn = sample(runs, world, 2, generator=generator(0))
    surrogate = grpo(runs, reference, drawn, score(world, drawn), 0.5)
    (each,) = torch.autograd.grad(surrogate.sum(), runs.logits)
    found = expected_gradient(grpo, Problem(policy, reference, world, 0.5))
    # five standard errors for each of 12 numbers: a false alarm for one seed in 10^5
    error = each.std(dim=0) / n**0.5
    assert ((each.mean(dim=0) - found).abs() <= 5 * error + 1e-12).all()


def test_what_the_rule_was_given_is_left_alone():
    world = random_world(0, prompts=1)
    policy, reference = random_policies(world, 0)
    before = policy.logits.detach().clone()
    expected_gradient(form_a, Problem(policy, reference, world, 0.5))
    assert policy.logits.grad is None
    assert torch.equal(policy.logits, before)


def test_a_rule_that_sums_over_the_runs_is_refused():
    with pytest.raises(ValueError, match=r"gave \(\) for 729 batches"):
        verdict(lambda *x: form_a(*x).sum())


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        verdict(lambda *x: form_a(*x) * torch.nan)
