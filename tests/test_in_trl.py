import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from problems import generator
from torch.testing import assert_close

from ppo_toy import recipes, reviews
from ppo_toy.gpt import TinyGPT
from ppo_toy.in_trl import bridge, libraries, trainer
from ppo_toy.trajectories import per_step_kl, sample, step_log_probs
from ppo_toy.worlds import ToyReviews

# The libraries warn of what other libraries will change.
pytestmark = pytest.mark.filterwarnings("ignore")
NEEDED = 'needs pip install -e ".[scale]"'
needs_scale = pytest.mark.skipif(bool(libraries.missing()), reason=NEEDED)


def a_policy() -> TinyGPT:
    """All weights away from 0, those of norms and biases too."""
    policy = TinyGPT(recipes.CONFIG, generator=generator(0))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(1))
    return policy


@needs_scale
def test_the_translated_model_gives_every_token_the_same_probability():
    policy = a_policy()
    batch = sample(policy, ToyReviews(), 32, generator=generator(2))
    with libraries.quiet(), torch.no_grad():
        model = bridge.to_transformers(policy)
        text = torch.cat([batch.prompts, batch.tokens[:, :-1]], dim=1)
        log_p = model(text).logits[:, 1:].log_softmax(dim=-1)
    # single precision, in another order of operations
    n_tokens = len(reviews.VOCABULARY)
    assert_close(log_p[..., :n_tokens], step_log_probs(policy, batch).detach(), atol=1e-4, rtol=0)
    assert (log_p[..., n_tokens:].exp() == 0).all()


@needs_scale
def test_there_and_back_every_parameter_is_the_same():
    policy = a_policy()
    back = bridge.from_transformers(bridge.to_transformers(policy))
    for (name, before), after in zip(policy.named_parameters(), back.parameters(), strict=True):
        assert torch.equal(before, after), name


@needs_scale
def test_the_tokenizer_has_the_numbers_of_the_words():
    words = bridge.tokenizer()
    for prompt in reviews.PROMPTS:
        assert words(reviews.decode(prompt))["input_ids"] == prompt.tolist()
    assert words.eos_token_id == words.pad_token_id == reviews.END


GREAT = reviews.VOCABULARY.index("great")


class Praise:
    """The share of one word; remembers what it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, prompts, responses):
        self.shown.append((prompts, responses))
        return (responses == GREAT).double().mean(dim=1)


@pytest.fixture(scope="module")
def runs():
    """A run with next to no brake and one with next to no reward, and what they began with."""
    pytest.importorskip("trl", reason=NEEDED)
    reference, praise = TinyGPT(recipes.CONFIG, generator=generator(3)), Praise()
    with torch.no_grad():
        reference.head.bias[GREAT] = 2  # one first word in three; at temperature 2 one in seven
    before = [parameter.clone() for parameter in reference.parameters()]
    made = {"steps": 8, "batch_size": 64, "learning_rate": 1e-2}
    with libraries.quiet():
        light, heavy = (
            trainer.train_in_trl(reference, ToyReviews(reward=praise), beta=beta, **made)
            for beta in (0.01, 10.0)
        )
    return SimpleNamespace(
        reference=reference, before=before, praise=praise, light=light, heavy=heavy
    )


@needs_scale
def test_the_trainer_raises_the_reward_and_leaves_the_reference_alone(runs):
    for parameter, old in zip(runs.reference.parameters(), runs.before, strict=True):
        assert torch.equal(parameter, old)
    earned = [
        Praise()(batch.prompts, batch.responses).mean().item()
        for batch in (
            sample(policy, ToyReviews(), 512, generator=generator(4))
            for policy in (runs.reference, runs.light)
        )
    ]
    # 512 responses of 4 words: a standard error is below 0.01
    assert earned[1] > earned[0] + 0.1


@needs_scale
def test_beta_is_the_brake(runs):
    def kl(policy):
        batch = sample(policy, ToyReviews(), 512, generator=generator(5))
        return per_step_kl(policy, runs.reference, batch).sum(dim=-1).mean().item()

    # Adam steps as far with either price; with the high one it goes to and fro.
    assert kl(runs.heavy) < kl(runs.light) / 4


@needs_scale
def test_the_reward_sees_our_prompts_and_responses_padded_with_the_end(runs):
    prompts, responses = (torch.cat(parts) for parts in zip(*runs.praise.shown, strict=True))
    assert len(responses) == 2 * 8 * 64
    known = (prompts.unsqueeze(1) == ToyReviews().prompts).all(dim=-1)
    assert (known.sum(dim=1) == 1).all()
    assert known.any(dim=0).all()
    assert (known[:64].sum(dim=0) % 8 == 0).all()  # groups of eight
    assert responses.shape[1] == reviews.LENGTH
    ended = (responses == reviews.END).cumsum(dim=1) > 0
    assert ended.any()
    assert not ended[:, -1].all()
    assert (responses[ended] == reviews.END).all()


@needs_scale
def test_the_first_batch_is_drawn_from_the_reference_as_it_is(runs):
    _, responses = runs.praise.shown[0]
    said = (responses[:, 0] == GREAT).double().mean().item()
    # 64 words: a standard error is 0.06
    p_great = math.exp(2) / (16 + math.exp(2))
    assert abs(said - p_great) < 0.1


@needs_scale
def test_a_value_head_is_refused():
    config = dataclasses.replace(recipes.CONFIG, value_head=True)
    with pytest.raises(ValueError, match="value_head is True"):
        bridge.to_transformers(TinyGPT(config, generator=generator(0)))
