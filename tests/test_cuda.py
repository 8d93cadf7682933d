"""On another device the same uniforms give the same tokens, and the referee says the same.

Uniforms are drawn on the CPU and turned into tokens by inverting cumulative sums, so a token can
differ only where a uniform falls between two roundings of one sum. In double precision that is one
chance in 10^15 for each entry of the vocabulary, and the tokens are the same; in single precision
one in 10^7 or so, and now and then one is another.

Each test runs on CUDA, where there is one (`.ci/cuda` runs these), and everywhere on a device that
is not there (`elsewhere`), on which a tensor left on the CPU is an error all the same.
"""

import copy
import functools
import json

import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere
from problems import generator, random_world
from torch.testing import assert_close

from ppo_toy import exact, recipes, trajectories
from ppo_toy.data import read_preferences
from ppo_toy.gpt import GPTConfig, TinyGPT
from ppo_toy.in_trl import libraries
from ppo_toy.policies import TabularPolicy, freeze
from ppo_toy.pretraining import pretrain
from ppo_toy.proximal import Surrogate
from ppo_toy.referee import verdict
from ppo_toy.rewards import RewardModel, tabulated, train_reward_model
from ppo_toy.training import train
from ppo_toy.trajectories import enumerate_all, sample, score
from ppo_toy.worlds import TokenSequence, ToyReviews

on_cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; .ci/cuda runs these"),
]


@pytest.fixture(params=["elsewhere", pytest.param("cuda", marks=on_cuda)])
def there(request, monkeypatch):
    """The other device."""
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    # Tensors of that device cannot be made in inference mode.
    for place, name in ((trajectories, "roll_out"), (TinyGPT, "next_logits")):
        plain = getattr(place, name).__wrapped__
        monkeypatch.setattr(place, name, torch.no_grad()(plain))
    with Elsewhere():
        yield ELSEWHERE


def a_table(seed, runs=0):
    table = TabularPolicy.random(TokenSequence.brackets(), generator=generator(seed))
    return table.repeat(runs) if runs else table


def a_gpt(seed, dtype=torch.float64):
    return TinyGPT(GPTConfig(3, 3, 7), generator=generator(seed), dtype=dtype)


POLICIES = {"table": a_table, "runs": functools.partial(a_table, runs=2), "gpt": a_gpt}
makers = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)


def moved(module, device):
    return copy.deepcopy(module).to(device)


def test_a_tensor_left_on_the_cpu_is_an_error_elsewhere():
    with Elsewhere():
        x = torch.arange(3.0).to(ELSEWHERE)
        assert x.device == ELSEWHERE
        assert (x + 2 * x.sum() + torch.ones(3, device=ELSEWHERE)).tolist() == [7, 8, 9]
        with pytest.raises(RuntimeError, match="add: tensors of two devices"):
            x + torch.ones(3)


@makers
def test_the_same_uniforms_give_the_same_tokens(make, there):
    world, policy = TokenSequence.brackets(), make(0)
    here = sample(policy, world, 2048, generator=generator(1))
    batch = sample(moved(policy, there), world, 2048, generator=generator(1))
    for name in ("prompts", "responses", "mask"):
        assert getattr(batch, name).device.type == there.type
        assert torch.equal(getattr(batch, name).cpu(), getattr(here, name))


def test_in_single_precision_nearly_all_tokens_are_the_same(there):
    world, policy = TokenSequence.brackets(), a_gpt(0, torch.float32)
    here = sample(policy, world, 2048, generator=generator(1)).responses
    batch = sample(moved(policy, there), world, 2048, generator=generator(1))
    # 12,000 tokens and a chance of 10^-6 or so for each: five others are one case in 10^10
    assert (batch.responses.cpu() != here).any(dim=1).sum() < 5


@makers
def test_the_exact_values_are_the_same(make, there):
    world, policy, reference = TokenSequence.brackets(), make(0), a_table(1)
    asked = [(policy, reference), (moved(policy, there), moved(reference, there))]
    for here, other in zip(*(exact.evaluate(*pair, world, 0.5) for pair in asked), strict=True):
        assert_close(torch.as_tensor(other).cpu(), torch.as_tensor(here))
    for here, other in zip(*(exact.gradient(*pair, world, 0.5) for pair in asked), strict=True):
        assert_close(other.cpu(), here)


def test_the_best_policy_and_the_values_of_states_are_the_same(there):
    world = random_world(0, end_token=1)
    reference, policy = (TabularPolicy.random(world, generator=generator(k)) for k in (0, 1))
    asked = [(policy, reference), (moved(policy, there), moved(reference, there))]
    here, other = (exact.optimum(pair[1], world, 0.5) for pair in asked)
    assert other.objective == pytest.approx(here.objective, rel=1e-12)
    assert other.policy.logits.device.type == there.type
    assert_close(other.policy.logits.cpu().softmax(-1), here.policy.logits.softmax(-1))
    for find in (exact.values, lambda _, *others: exact.soft_values(*others)):
        here, other = (find(*pair, world, 0.5) for pair in asked)
        assert_close(other.cpu(), here)
    here, other = (exact.frontier(pair[1], world, [0.5, 1.0]) for pair in asked)
    assert other.kl == pytest.approx(here.kl, rel=1e-12)


@makers
@pytest.mark.parametrize("how", [Surrogate("sampled", clip=0.2), Surrogate(beta_old=0.5)])
def test_training_takes_the_same_steps(make, how, there):
    world, histories = TokenSequence.brackets(), []
    for device in ("cpu", there):
        policy = moved(make(0), device)
        histories.append(train(policy, freeze(policy), world, beta=0.5, steps=4, batch_size=64,
            learning_rate=0.05, generator=generator(2), epochs=2, surrogate=how))  # fmt: skip
    for here, other in zip(*(vars(history).values() for history in histories), strict=True):
        assert_close(other, here)


def test_rewards_are_the_same_wherever_the_model_behind_them_lies(there):
    reference = recipes.reference_policy()
    model = recipes.reward_model()
    batch = sample(moved(reference, there), ToyReviews(), 64, generator=generator(0))
    here = sample(reference, ToyReviews(), 64, generator=generator(0))
    small = random_world(1, length=2)
    for world in (ToyReviews(), ToyReviews(reward=model), ToyReviews(reward=moved(model, there))):
        assert_close(score(world, batch).cpu(), score(world, here))
    table = tabulated(small)
    listed = enumerate_all(moved(TabularPolicy(small), there), small)
    assert_close(score(table, listed), score(small, listed))


def test_models_learn_the_same(there):
    world, found = ToyReviews(), []
    prompts, responses = torch.zeros(8, 1, dtype=torch.long), torch.arange(16).view(8, 2) % 3
    mask, pairs = torch.ones(8, 2, dtype=torch.bool), read_preferences()[:32]
    for device in ("cpu", there):
        policy = moved(a_gpt(0), device)
        pretrain(policy, prompts, responses, mask, steps=3, batch_size=4, learning_rate=0.01,
            generator=generator(1))  # fmt: skip
        reward = RewardModel.from_policy(moved(recipes.reference_policy(), device), world)
        train_reward_model(pairs, reward, steps=3, batch_size=8, learning_rate=0.01,
            weight_decay=0.1, generator=generator(2))  # fmt: skip
        found.append([*policy.parameters(), *reward.parameters()])
    for here, other in zip(*found, strict=True):
        assert other.device.type == there.type
        assert_close(other.detach().cpu(), here.detach())


def right(log_probs, ref_log_probs, rewards, mask, beta):
    k1 = (log_probs - ref_log_probs).detach() * mask
    return -(log_probs * mask * (rewards - beta * k1.sum(1))[:, None]).sum(1).mean()


def wrong(log_probs, ref_log_probs, rewards, mask, beta):
    k1 = (log_probs - ref_log_probs).detach() * mask
    return -(log_probs * mask * (rewards[:, None] - beta * k1)).sum(1).mean()


@pytest.mark.parametrize("loss", [right, wrong])
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; .ci/cuda runs these")
def test_a_loss_that_computes_on_cuda_gets_the_same_verdict(loss):
    def on_cuda(log_probs, ref_log_probs, rewards, mask, beta):
        moved = (x.cuda() for x in (log_probs, ref_log_probs, rewards, mask))
        return loss(*moved, beta).cpu()

    faults = verdict(on_cuda, loss=True).faults
    assert faults == verdict(loss, loss=True).faults
    assert bool(faults) == (loss is wrong)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; .ci/cuda runs these")
@pytest.mark.skipif(bool(libraries.missing()), reason='needs pip install -e ".[scale]"')
@pytest.mark.filterwarnings("ignore")  # the libraries warn of what others will change
def test_trl_trains_on_cuda(dtype, tmp_path):
    from ppo_toy.in_trl import __main__ as terminal

    how = ["--beta", "0.5", "--steps", "4", "--batch-size", "64", "--dtype", dtype]
    terminal.main(["--world", "brackets", *how, "--device", "cuda", "--output", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["KL"] == rows[0]["KL_exact"] == 0
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
