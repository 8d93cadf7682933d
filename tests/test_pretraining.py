import math

import pytest
import torch
from problems import generator, logits_of, random_world
from torch.testing import assert_close

from ppo_toy import exact
from ppo_toy.gpt import GPTConfig, TinyGPT
from ppo_toy.policies import TabularPolicy, fingerprint
from ppo_toy.pretraining import pretrain
from ppo_toy.trajectories import enumerate_all, log_probs, sample

SETTINGS = {"steps": 3, "batch_size": 4, "learning_rate": 0.01}


def two_tokens() -> tuple[TabularPolicy, dict[str, torch.Tensor]]:
    """A table for prompts 0 and 1, and two examples: "a" that ends after it, and "b c"."""
    world = random_world(0, prompts=2, tokens=3, length=2, end_token=0)
    rows = [logits_of(0.5, 0.25, 0.25), logits_of(0.1, 0.2, 0.7), logits_of(0.3, 0.3, 0.4)]
    rows += [logits_of(0.2, 0.2, 0.6)]
    policy = TabularPolicy(world, torch.stack(rows * 2))
    examples = {
        "prompts": torch.tensor([[0], [1]]),
        "responses": torch.tensor([[0, 99], [1, 2]]),
        "mask": torch.tensor([[True, False], [True, True]]),
    }
    return policy, examples


@pytest.mark.parametrize(("weights", "p"), [([1.0, 0.0], [0.5]), ([0.0, 3.0], [0.25, 0.4])])
def test_the_first_loss_is_minus_the_log_probability_of_a_response_by_hand(weights, p):
    # prompt 0 answers token 0 at once: 1/2. Prompt 1 answers token 1, then in node 2 token 2.
    policy, examples = two_tokens()
    losses = pretrain(
        policy, **examples, **SETTINGS, generator=generator(0), weights=torch.tensor(weights)
    )
    assert_close(losses[0], torch.tensor(-math.log(math.prod(p))))
    assert losses[1] < losses[0]


def test_no_token_behind_the_mask_is_learned():
    policy, examples = two_tokens()
    before = policy.logits.detach().clone()
    pretrain(
        policy, **examples, **SETTINGS, generator=generator(0), weights=torch.tensor([1.0, 0.0])
    )
    changed = (policy.logits != before).any(dim=1)
    assert changed.tolist() == [True] + [False] * 7


def test_the_loss_is_the_mean_over_the_batch_and_the_sum_over_the_tokens():
    policy, examples = two_tokens()
    losses = pretrain(
        policy, **examples, steps=1, batch_size=1000, learning_rate=0.01, generator=generator(0)
    )
    drawn = torch.rand(1000, generator=generator(0), dtype=torch.float64)
    share = (drawn < 0.5).double().mean()
    expected = -share * math.log(0.5) - (1 - share) * math.log(0.25 * 0.4)
    assert_close(losses, expected.reshape(1))
    assert 0.4 < share < 0.6  # six standard errors


def test_weights_say_how_often_an_example_is_drawn():
    # five standard errors of a binomial share: one seed in two million fails
    policy, examples = two_tokens()
    n = 10_000
    losses = pretrain(
        policy, **examples, steps=1, batch_size=n, learning_rate=0.01, generator=generator(1),
        weights=torch.tensor([3.0, 1.0]),
    )  # fmt: skip
    share = (losses[0].item() + math.log(0.1)) / (math.log(0.1) - math.log(0.5))
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / n)


def test_the_step_falls_in_a_straight_line():
    # Adam moves each logit of the first row by very nearly the learning rate at a step: on one
    # example again and again, the gradient hardly changes. 0.001 * (1 + 3/4 + 1/2 + 1/4)
    policy, examples = two_tokens()
    before = policy.logits[0, 0].item()
    pretrain(
        policy, **examples, steps=4, batch_size=1, learning_rate=0.001, generator=generator(0),
        weights=torch.tensor([1.0, 0.0]),
    )  # fmt: skip
    # a thousandth is what the gradient changes by
    assert_close(policy.logits[0, 0].item() - before, 0.0025, rtol=2e-3, atol=0)


def test_a_pretrained_transformer_approaches_the_language_it_read():
    world = random_world(0, prompts=2, tokens=4, length=3, end_token=3)
    language = TabularPolicy.random(world, generator=generator(1))
    batch = enumerate_all(language, world)
    entropy = -(batch.weights * log_probs(language, batch).sum(dim=-1)).sum().item()
    model = TinyGPT(GPTConfig(4, 4, 4, width=16), generator=generator(2), dtype=torch.float32)
    before = exact.evaluate(language, model, world, 1.0).kl
    text = sample(language, world, 5000, generator=generator(3))
    losses = pretrain(
        model, text.prompts, text.responses, text.mask, steps=500, batch_size=64,
        learning_rate=0.01, generator=generator(4),
    )  # fmt: skip
    after = exact.evaluate(language, model, world, 1.0).kl
    assert losses.shape == (500,)
    assert before > 0.3
    assert after < 0.03
    # five standard errors of a mean of 100 batches of 64 responses, whose losses spread by 1
    assert abs(losses[-100:].mean().item() - entropy - after) < 5 / math.sqrt(6400)


def test_the_list_of_all_responses_is_a_corpus_too():
    world = random_world(0, prompts=2, tokens=3, length=2)
    language = TabularPolicy.random(world, generator=generator(1))
    batch = enumerate_all(language, world)
    learner = TabularPolicy(world)
    pretrain(
        learner, batch.prompts, batch.responses, batch.mask, steps=300, batch_size=256,
        learning_rate=0.1, generator=generator(2), weights=batch.weights,
    )  # fmt: skip
    # 256 draws at a time, averaged by Adam's falling steps
    assert exact.evaluate(language, learner, world, 1.0).kl < 0.005


def test_the_same_numbers_give_the_same_model():
    prints = set()
    for seed in (0, 0, 1):
        policy, examples = two_tokens()
        before = torch.get_rng_state()
        losses = pretrain(policy, **examples, **SETTINGS, generator=generator(seed))
        assert torch.equal(torch.get_rng_state(), before)
        assert not losses.requires_grad
        prints.add(fingerprint(policy))
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"weights": torch.ones(3)}, "there are 2 prompts, .* and 3 weights"),
        ({"weights": torch.tensor([1.0, -0.5])}, "the weights .* 0 or more"),
        ({"weights": torch.zeros(2)}, "the weights .* 0 or more"),
        ({"prompts": torch.zeros(3, 1, dtype=torch.long)}, "there are 3 prompts"),
        ({"responses": torch.zeros(3, 2, dtype=torch.long)}, r"responses \(3, 2\)"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"a mask \(2, 3\)"),
    ],
)
def test_settings_that_cannot_be_are_an_error(changes, message):
    policy, examples = two_tokens()
    with pytest.raises(ValueError, match=message):
        pretrain(policy, **{**examples, **SETTINGS, **changes}, generator=generator(0))
