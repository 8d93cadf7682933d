from dataclasses import replace

import pytest
import torch
from problems import generator, random_policies, random_world
from torch.nn import functional as F
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


def stepwise(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch).sum(dim=-1)
    worth = rewards - beta * per_step_kl(policy, reference, batch).sum(dim=-1)
    return mean(batch, log_p * worth.detach() + worth)


def with_ratio(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    returns = rewards[..., None] - beta * tail((log_p - log_probs(reference, batch)).detach())
    return mean(batch, (ratio(log_p) * batch.mask * returns).sum(dim=-1))


def in_loss_alone(penalty):
    def rule(policy, reference, batch, rewards, beta):
        p, q = log_probs(policy, batch), log_probs(reference, batch)
        return mean(batch, p.sum(dim=-1) * rewards - beta * penalty(p, q))

    return rule


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


def one_prompt_flipped(policy, reference, batch, rewards, beta):
    sign = 1 - 2.0 * (batch.prompts[..., 0] == 1)
    return form_a(policy, reference, batch, sign * rewards, beta)


def scored_with_the_first_prompt(policy, reference, batch, rewards, beta):
    first = batch.prompts[..., :1, :].expand_as(batch.prompts)
    return form_a(policy, reference, replace(batch, prompts=first), rewards, beta)


def swapped_and_charged(policy, reference, batch, rewards, beta, derivative=1):
    log_p = log_probs(policy, batch)
    kl = forward_kl_exact(log_p, None, policy, reference, batch)
    charged = rewards[..., None] - beta * tail(kl.detach(), own=False)
    return mean(batch, (log_p * charged - derivative * beta * kl).sum(dim=-1))


def reward_on_the_last(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    last = batch.mask.sum(dim=-1, keepdim=True) - 1
    earned = log_p.gather(-1, last).squeeze(-1) * rewards
    return mean(batch, earned) + reward_rule(k1)(policy, reference, batch, 0 * rewards, beta)


def reward_in_the_last_column(policy, reference, batch, rewards, beta):
    earned = log_probs(policy, batch)[..., -1] * rewards  # 0 behind the end
    return mean(batch, earned) + reward_rule(k1)(policy, reference, batch, 0 * rewards, beta)


def no_reward_to_go(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    given = -beta * (log_p - log_probs(reference, batch)).detach()
    last = batch.mask.sum(dim=-1, keepdim=True) - 1
    given = given.scatter_add(-1, last, rewards[..., None])
    return mean(batch, (log_p * given).sum(dim=-1))


def straight_through(p, q, *_):
    return k2(p, q) + (k3(p, q) - k2(p, q)).detach()


def own_log_ratio_only(policy, reference, batch, rewards, beta):
    log_p = log_probs(policy, batch)
    own = (log_p - log_probs(reference, batch)).detach()
    return mean(batch, (log_p * (rewards[..., None] - beta * own)).sum(dim=-1))


def clipped(low, high):
    return lambda p, q, b, r, beta: form_a(p, q, b, r.clamp(low, high), beta)


WRONG = {
    "prompt 1 flipped": (one_prompt_flipped, "prompts treated differently", "reward sign flipped"),
    "the first prompt for all": (scored_with_the_first_prompt, "prompts mixed up"),
    "exact KL swapped": (swapped_and_charged, "KL arguments swapped"),
    "exact KL swapped, in reward": (lambda *x: swapped_and_charged(*x, derivative=0),)
    + ("KL arguments swapped", "own token dropped"),
    "reward on the last token": (reward_on_the_last, "reward on the last token only"),
    "reward in the last column": (reward_in_the_last_column,)
    + ("reward on the last token only", "reward behind the end"),
    "no reward-to-go": (no_reward_to_go, "reward on the last token only", "future KL dropped"),
    "clipped at 0.2": (clipped(-0.2, 0.2), "reward clipped"),
    "clipped at 2": (clipped(-2, 2), "reward clipped"),
    "clipped at 10": (clipped(-10, 10), "reward clipped"),
    "no reward below 0": (clipped(0, None), "reward clipped"),
    "own log-ratio only": (own_log_ratio_only, "future KL dropped"),
    "k3+, k2 straight through": (loss_rule(straight_through), "future KL dropped"),
    "clamped at 1": (reward_rule(lambda p, q: (p - q).clamp(-1, 1)), "log-ratio clamped"),
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


# The same once more as people write a loss for one batch, mostly with loops.


def per_response(loss_of_one):
    """The mean over a batch of a loss for each response, from its own rows."""

    def loss(log_probs, ref_log_probs, rewards, mask, beta):
        total = 0
        for p, q, reward, counts in zip(log_probs, ref_log_probs, rewards, mask, strict=True):
            p, q = p.masked_fill(~counts, 0), q.masked_fill(~counts, 0)
            total = total + loss_of_one(p, q, reward, counts, beta)
        return total / len(rewards)

    return loss


def charged(estimate, *, after=0, times=1):
    """Token t pays for the estimates from step t + after on."""

    def loss_of_one(p, q, reward, counts, beta):
        with torch.no_grad():
            cost = estimate(p, q)
        parts = [p[t] * (reward - times * beta * cost[t + after :].sum()) for t in range(len(p))]
        return -torch.stack(parts).sum()

    return per_response(loss_of_one)


def differentiated(estimate, *, times=1):
    def loss_of_one(p, q, reward, counts, beta):
        return -(p.sum() * reward) + times * beta * estimate(p, q).sum()

    return per_response(loss_of_one)


def with_kl(penalty_of_one):
    """A loss whose penalty is made of the exact KL of each step."""

    def loss(log_probs, kl, rewards, mask, beta):
        total = 0
        for i in range(len(rewards)):
            p, k = log_probs[i] * mask[i], kl[i] * mask[i]
            total = total - (p * rewards[i]).sum() + beta * penalty_of_one(p, k)
        return total / len(rewards)

    return loss


def distributions(penalty):
    """A loss with penalty(p [B, T, V], q, later), where later sums over the steps to come."""

    def loss(logits, ref_logits, responses, rewards, mask, beta):
        p, q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
        taken = p.gather(-1, responses.unsqueeze(-1)).squeeze(-1).masked_fill(~mask, 0.0)
        return -(taken.sum(1) * rewards).mean() + beta * penalty(p, q, taken, mask)

    return loss


def swapped(p, q, taken, mask):
    kl = F.kl_div(p, q, log_target=True, reduction="none").sum(-1) * mask  # KL(q || p)
    later = torch.stack([kl[:, t + 1 :].sum(1) for t in range(kl.shape[1])], dim=1)
    return (taken * later.detach() + kl).sum(1).mean()


def swapped_in_the_loss(p, q, taken, mask):
    return (F.kl_div(p, q, log_target=True, reduction="none").sum(-1) * mask).sum(1).mean()


def tempered_loss(power, ref_power):
    def loss(logits, ref_logits, responses, rewards, mask, beta):
        taken = responses[..., None]
        p = (power * logits).log_softmax(-1).gather(-1, taken)[..., 0]
        q = (ref_power * ref_logits).log_softmax(-1).gather(-1, taken)[..., 0]
        return charged(k1)(p, q, rewards, mask, beta)

    return loss


def only_the_first_prompt(prompts, log_probs, ref_log_probs, rewards, mask, beta):
    first = (prompts == prompts[:1]).all(dim=1)
    return charged(k1)(log_probs, ref_log_probs, rewards * first, mask, beta * first.any())


def flipped_on_one(prompts, log_probs, ref_log_probs, rewards, mask, beta):
    rewards = torch.where(prompts[:, 0] == 1, -rewards, rewards)
    return charged(k1)(log_probs, ref_log_probs, rewards, mask, beta)


def no_mask_on_the_kl(log_probs, ref_log_probs, rewards, mask, beta):
    cost = (log_probs - ref_log_probs).detach().sum(1)
    return -((log_probs * mask).sum(1) * (rewards - beta * cost)).mean()


def rewards_first(change):
    return lambda log_probs, ref_log_probs, rewards, mask, beta: charged(k1)(
        log_probs, ref_log_probs, change(rewards), mask, beta
    )


def last_token_only(log_probs, ref_log_probs, rewards, mask, beta):
    loss = torch.zeros(())
    for i in range(len(rewards)):
        n = int(mask[i].sum())  # a number: this one can be asked about single batches only
        x = (log_probs[i, :n] - ref_log_probs[i, :n]).detach()
        pays = [x[t:].sum() for t in range(n)]
        loss = loss - log_probs[i, n - 1] * rewards[i]
        loss = loss + beta * (log_probs[i, :n] * torch.stack(pays)).sum()
    return loss / len(rewards)


def summed_over_the_batch(log_probs, ref_log_probs, rewards, mask, beta):
    return len(rewards) * charged(k1)(log_probs, ref_log_probs, rewards, mask, beta)


def last_column(log_probs, ref_log_probs, rewards, mask, beta):
    given = torch.zeros_like(log_probs)
    given[:, -1] = rewards
    x = (log_probs - ref_log_probs).detach()
    return -(log_probs * mask * tail((given - beta * x) * mask)).sum(1).mean()


def whitened_loss(log_probs, ref_log_probs, rewards, mask, beta):
    returns = rewards - beta * ((log_probs - ref_log_probs).detach() * mask).sum(1)
    advantages = (returns - returns.mean()) / (returns.var(unbiased=False) + 1e-8).sqrt()
    return -((log_probs * mask).sum(1) * advantages).mean()


def grpo_loss(log_probs, old_log_probs, ref_log_probs, rewards, mask, beta):
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(0.8, 1.2) * advantages[:, None]
    gain = torch.minimum(ratio * advantages[:, None], clipped)
    cost = k3(log_probs, ref_log_probs)
    return -((gain - beta * cost) * mask).sum(1).mean()


def one_cost_for_all(log_probs, ref_log_probs, rewards, mask, beta):
    cost = ((log_probs - ref_log_probs) * mask).detach().sum(1).mean()
    return -((log_probs * mask).sum(1) * (rewards - beta * cost)).mean()


def mean_of_tokens(log_probs, ref_log_probs, rewards, mask, beta):
    x = ((log_probs - ref_log_probs) * mask).detach()
    per_token = log_probs * (rewards[:, None] - beta * tail(x))
    return -((per_token * mask).sum(1) / mask.sum(1)).mean()


def cost_per_token(p, q, reward, counts, beta):
    cost = (p - q).detach().sum() / counts.sum()
    return -p.sum() * (reward - beta * cost)


ONE_BATCH = {
    "prompts treated differently": (flipped_on_one, "reward sign flipped"),
    "prompts mixed up": (only_the_first_prompt,),
    "padding leaked": (no_mask_on_the_kl,),
    "temperature missing": (tempered_loss(0.7, 0.7),),
    "another reference": (tempered_loss(1, 0.7),),
    "reward has no gradient": (
        lambda kl, log_probs, rewards, mask, beta: -(rewards - beta * (kl * mask).sum(1)).mean(),
        "future KL dropped",
    ),
    "reward sign flipped": (rewards_first(lambda r: -r),),
    "reward clipped": (rewards_first(lambda r: r.clamp(-10, 10)),),
    "reward on the last token only": (last_token_only,),
    "reward divided by spread": (grpo_loss, "other direction", "future KL dropped"),
    "advantages whitened": (whitened_loss,),
    "own response in the baseline": (rewards_first(lambda r: r - r.mean()),),
    "reward behind the end": (last_column,),
    "token mean": (mean_of_tokens,),
    "KL never applied": (per_response(lambda p, q, reward, *_: -p.sum() * reward),),
    "KL under no_grad": (with_kl(lambda p, kl: kl.detach().sum()),),
    "k1 as loss": (differentiated(k1),),
    "KL as baseline": (one_cost_for_all,),
    "KL sign flipped": (charged(k1, times=-1),),
    "KL averaged over tokens": (per_response(cost_per_token),),
    "future KL dropped": (differentiated(straight_through),),
    "own token dropped": (charged(k1, after=1),),
    "own token twice": (with_kl(lambda p, kl: (p * tail(kl.detach()) + 2 * kl).sum()),),
    "other direction": (distributions(swapped_in_the_loss), "future KL dropped"),
    "KL arguments swapped": (distributions(swapped),),
    "k3 in reward": (charged(k3),),
    "k2 in reward": (charged(k2),),
    "k2 times ratio": (differentiated(lambda p, q: ratio(p) * k2(p, q)), "future KL dropped"),
    "ratio upside down": (differentiated(lambda p, q: k3(q, p)), "future KL dropped"),
    "beta scaled": (charged(k1, times=0.5),),
    "log-ratio clamped": (charged(lambda p, q: (p - q).clamp(-1, 1)),),
    "only scaled": (summed_over_the_batch,),
    "unknown": (rewards_first(torch.tanh),),
}


@pytest.mark.parametrize("which", ONE_BATCH)
def test_a_loss_for_one_batch_gets_the_same_names(which):
    loss, *more = ONE_BATCH[which]
    seed = list(ONE_BATCH).index(which) % 5
    assert set(verdict(loss, loss=True, seed=seed).faults) == {which, *more}


def test_every_fault_was_shown_as_a_loss_too():
    assert set(ONE_BATCH) == set(FAULTS)


def loss_alone(penalty):
    """REINFORCE on the reward, and penalty(p [B, T], q) of whole responses in the loss alone."""

    def loss(log_probs, ref_log_probs, rewards, mask, beta):
        p, q = log_probs * mask, ref_log_probs * mask
        return -(p.sum(1) * rewards).mean() + beta * penalty(p, q).mean()

    return loss


def leave_one_out(log_probs, ref_log_probs, rewards, mask, beta):
    p, q = log_probs.masked_fill(~mask, 0), ref_log_probs.masked_fill(~mask, 0)
    with torch.no_grad():
        returns = rewards - beta * (p - q).sum(1)
        others = (returns.sum() - returns) / (len(returns) - 1)
    return -(p.sum(1) * (returns - others)).mean()


def ppo(log_probs, old_log_probs, ref_log_probs, rewards, mask, beta, clip=0.2):
    token_rewards = -beta * (old_log_probs - ref_log_probs) * mask
    last = mask.sum(1, keepdim=True) - 1
    token_rewards = token_rewards.scatter_add(1, last, rewards[:, None])
    advantages = token_rewards.flip(1).cumsum(1).flip(1)
    change = (log_probs - old_log_probs).exp()
    gain = torch.min(change * advantages, change.clamp(1 - clip, 1 + clip) * advantages)
    return -gain[mask].sum() / len(rewards)


def weighted(log_probs, kl, rewards, mask, weights, beta):
    per_response = []
    for p, k, reward, counts in zip(log_probs, kl, rewards, mask, strict=True):
        p, k = torch.where(counts, p, 0.0), torch.where(counts, k, 0.0)
        per_response.append(p.sum() * (reward - beta * k.sum()).detach() - beta * k.sum())
    return -(weights * torch.stack(per_response)).sum()


def leave_one_out_exact(log_probs, kl, rewards, mask, beta):
    p, kl = log_probs * mask, kl * mask
    worth = (rewards - beta * kl.sum(1)).detach()
    others = worth.flip(0)  # there are two
    return -(p.sum(1) * (worth - others)).mean() + beta * kl.sum(1).mean()


def whole_response(logp, ref_logp, rewards, mask, beta):
    with torch.no_grad():
        returns = rewards - beta * ((logp - ref_logp) * mask).sum(-1)
    return -(torch.where(mask, logp, 0.0).sum(-1) * returns).mean()


def with_kl_charged(after, baseline=0.0):
    def penalty_of_one(p, kl):
        later = [kl[t + after :].detach().sum() - baseline for t in range(len(kl))]
        return (p * torch.stack(later) + kl).sum()

    return with_kl(penalty_of_one)


CORRECT = {
    "(A)": (form_a, with_kl_charged(1)),
    "(A), present KL in the bracket": (form_a_with(own=True), with_kl_charged(0)),
    "(A), the other as baseline": (form_a_with(baseline=other_of_two), leave_one_out_exact),
    "(A), a constant as baseline": (form_a_with(baseline=lambda g: 3.5), with_kl_charged(1, 3.5)),
    "exact KL, stepwise": (stepwise, weighted),
    "(B)": (reward_rule(k1), charged(k1)),
    "(B), whole response": (reward_rule(k1, whole=True), whole_response),
    "(B), leave-one-out": (reward_rule(k1, whole=True, baseline=other_of_two), leave_one_out),
    "(B) with a ratio that is 1": (with_ratio, ppo),
    "prefix ratio times k3": (
        in_loss_alone(lambda p, q: (ratio(p.cumsum(dim=-1)) * k3(p, q)).sum(dim=-1)),
        loss_alone(
            lambda p, q: sum(
                ratio(p[:, : t + 1].sum(1)) * k3(p, q)[:, t] for t in range(p.shape[1])
            )
        ),
    ),
    "whole ratio times k1": (
        in_loss_alone(lambda p, q: ratio(p.sum(dim=-1)) * (p - q).sum(dim=-1)),
        loss_alone(lambda p, q: (p - p.detach()).exp().prod(1) * (p.sum(1) - q.sum(1))),
    ),
    "k2 of the whole": (
        in_loss_alone(lambda p, q: k2(p.sum(dim=-1), q.sum(dim=-1))),
        loss_alone(lambda p, q: (p - q).sum(1).square() / 2),
    ),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("which", CORRECT)
def test_a_right_rule_has_no_fault(which, seed):
    rule, loss = CORRECT[which]
    assert verdict(rule, seed=seed).faults == ()
    assert verdict(loss, loss=True, seed=seed).faults == ()


def as_written(per_token, over=lambda x, mask: (x * mask).sum(1).mean()):
    """A loss from its terms [B, T]: per_token(p, q, rewards [B, 1], beta)."""

    def loss(log_probs, ref_log_probs, rewards, mask, beta):
        terms = per_token(log_probs, ref_log_probs, rewards.unsqueeze(1), beta)
        return -over(terms, mask)

    return loss


def grpo_terms(p, q, r, beta):
    advantage = (r - r.mean()) / (r.std() + 1e-8)
    return p * advantage - beta * k3(p, q)


def k3_terms(p, q, r, beta):
    return p * r - beta * k3(p, q)


def own_terms(p, q, r, beta):
    return p * (r - beta * (p - q)).detach()


def of_each(x, mask):
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def of_all(x, mask):
    return (x * mask).sum() / mask.sum()


def of_the_longest(x, mask):
    return (x * mask).sum(1).mean() / mask.shape[1]


def without_the_end_token(log_probs, ref_log_probs, rewards, mask, beta):
    kept = mask & mask.roll(-1, dims=1).index_fill(1, torch.tensor([mask.shape[1] - 1]), True)
    return charged(k1)(log_probs, ref_log_probs, rewards, mask & kept, beta)


K3_IN_LOSS = ("other direction", "future KL dropped")
COMBINED = {
    "three times k3": (as_written(lambda *x: 3 * k3_terms(*x)), *K3_IN_LOSS),
    "k3, mean of each response": (as_written(k3_terms, of_each), "token mean", *K3_IN_LOSS),
    "k3, mean over all tokens": (as_written(k3_terms, of_all), "token mean", *K3_IN_LOSS),
    "k3 over the greatest length": (as_written(k3_terms, of_the_longest), *K3_IN_LOSS),
    "own log-ratio, longest": (as_written(own_terms, of_the_longest), "future KL dropped"),
    "grpo, mean of each response": (as_written(grpo_terms, of_each),)
    + ("reward divided by spread", "token mean", *K3_IN_LOSS),
    "k3 and a clipped reward": (as_written(lambda p, q, r, b: k3_terms(p, q, r.clamp(-1, 1), b)),)
    + ("reward clipped", *K3_IN_LOSS),
    "clipped and thrice": (as_written(lambda p, q, r, b: 3 * own_terms(p, q, r.clamp(-1, 1), b)),)
    + ("reward clipped", "future KL dropped"),
    "a baseline and half of beta": (
        as_written(lambda p, q, r, b: own_terms(p, q, r - 2, b / 2)),
        *("beta scaled", "future KL dropped"),
    ),
    "an objective, said to be a loss": (as_written(lambda *x: -k3_terms(*x)),)
    + ("reward sign flipped", "KL sign flipped", *K3_IN_LOSS),
    "both kinds of bound": (
        lambda log_probs, ref_log_probs, rewards, mask, beta: charged(
            lambda p, q: (p - q).clamp(-10, 10)
        )(log_probs, ref_log_probs, rewards.clamp(-5, 5), mask, beta),
        *("reward clipped", "log-ratio clamped"),
    ),
    # Not listed, and not called what they are not:
    "k1 in the reward, k3 in the loss": (
        per_response(
            lambda p, q, r, _, b: -(p * (r - b * tail((p - q).detach())) - b * k3(p, q)).sum()
        ),
        "unknown",
    ),
    "the sign of the reward": (rewards_first(torch.sign), "unknown"),
    "a tenth of what is below 0": (rewards_first(lambda r: r.where(r > 0, r / 10)), "unknown"),
    "no end token": (without_the_end_token, "unknown"),
    "absolute log-ratio": (charged(lambda p, q: (p - q).abs()), "unknown"),
}


@pytest.mark.parametrize("which", COMBINED)
def test_what_people_combine_is_named_or_unknown(which):
    loss, *names = COMBINED[which]
    seed = list(COMBINED).index(which) % 5
    assert verdict(loss, loss=True, seed=seed).faults == tuple(names)


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


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        verdict(lambda *x: form_a(*x) * torch.nan)
