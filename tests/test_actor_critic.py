import math

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from problems import generator, random_logits
from torch.testing import assert_close

from ppo_toy.actor_critic import ActorCritic, _limit_norms, train_on
from ppo_toy.envs import Driver, make_vector

SETTINGS = {
    "length": 32, "epochs": 10, "learning_rate": 3e-3, "gamma": 0.98, "lam": 0.9, "seed": 0,
}  # fmt: skip


class Corridor:
    """Two lanes in step: lane 0 ends after 2 steps, lane 1 is cut off after 3. Rewards 1, 2, ...

    An observation is (lane, steps so far). As Gymnasium's NEXT_STEP mode has it, the step after an
    end ignores its action, earns nothing and shows the first observation of the next episode.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    num_envs = 2

    def reset(self, *, seed):
        self.time = np.zeros(2, dtype=int)
        self.over = np.zeros(2, dtype=bool)
        return self.observation(), {}

    def observation(self):
        return np.stack([np.arange(2.0), self.time], axis=1).astype(np.float32)

    def step(self, actions):
        assert actions.shape == (2,)
        self.time = np.where(self.over, 0, self.time + 1)
        reward = self.time * 1.0
        terminated = np.array([self.time[0] == 2, False])
        truncated = np.array([False, self.time[1] == 3])
        self.over = terminated | truncated
        return self.observation(), reward, terminated, truncated, {}


class KnownValues(torch.nn.Module):
    """A model whose values are 10 * lane + steps so far, so that each can be told apart."""

    runs = 1

    def forward(self, observations):
        log_pi = torch.zeros(*observations.shape[:-1], 2).log_softmax(dim=-1)
        return log_pi, 10 * observations[..., 0] + observations[..., 1]


@pytest.fixture(autouse=True)
def _single_precision():
    torch.set_default_dtype(torch.float32)


def test_a_rollout_tells_an_end_from_a_cut_and_masks_the_step_that_resets():
    driver = Driver(Corridor(), seed=0)
    rollout = driver.roll_out(KnownValues(), 4, generator(0))
    assert rollout.rewards[0].tolist() == [[1, 2, 0, 1], [1, 2, 3, 0]]
    assert rollout.mask[0].tolist() == [[True, True, False, True], [True, True, True, False]]
    assert rollout.values[0].tolist() == [[0, 1, 2, 0], [10, 11, 12, 13]]
    # lane 0 ended at its second step: no future; lane 1 was cut at its third: V of what it saw
    assert rollout.next_values[0, 0].tolist() == [1, 0, 0, 1]
    assert rollout.next_values[0, 1, :3].tolist() == [11, 12, 13]


def test_returns_of_episodes_are_counted_across_rollouts():
    driver = Driver(Corridor(), seed=0)
    for _ in range(3):
        driver.roll_out(KnownValues(), 3, generator(0))
    # lane 0 earns 1 + 2 in steps 1-2, 4-5, 7-8; lane 1 earns 1 + 2 + 3 in steps 1-3 and 5-7
    assert sorted(driver.finished[0]) == [3, 3, 3, 6, 6]
    assert driver.mean_returns() == [21 / 5]


def test_an_episode_goes_on_where_the_last_rollout_stopped():
    driver = Driver(Corridor(), seed=0)
    driver.roll_out(KnownValues(), 1, generator(0))
    rollout = driver.roll_out(KnownValues(), 2, generator(0))
    assert rollout.observations[0, :, 0, 1].tolist() == [1, 1]


def test_each_run_has_its_own_episodes():
    driver = Driver(Corridor(), runs=2, seed=0)
    model = KnownValues()
    driver.roll_out(model, 6, generator(0))
    assert [list(done) for done in driver.finished] == [[3, 3], [6]]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_every_network_gives_what_it_would_give_alone_in_value_and_gradient(scale):
    # observations for which the first tanh is a straight line, a curve and nearly flat
    model = ActorCritic(3, 2, runs=3, hidden=5, generator=generator(0)).double()
    parameters = list(model.parameters())
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter += 0.3 * random_logits(number, *parameter.shape)
    observations = scale * random_logits(1, 3, 4, 6, 3)
    log_pi, values = model(observations)
    coefficients, of_values = random_logits(2, *log_pi.shape), random_logits(3, *values.shape)
    total = 0
    for run in range(3):
        outs = []
        for network in (run, 3 + run):
            x = observations[run]
            for layer in range(3):
                x = x @ model.weights[layer][network] + model.biases[layer][network]
                x = x.tanh() if layer < 2 else x
            outs.append(x)
        assert_close(log_pi[run], outs[0].log_softmax(dim=-1))
        assert_close(values[run], outs[1][..., 0])
        total = total + (coefficients[run] * outs[0].log_softmax(dim=-1)).sum()
        total = total + (of_values[run] * outs[1][..., 0]).sum()
    got = (coefficients * log_pi).sum() + (of_values * values).sum()
    expected = torch.autograd.grad(total, parameters)
    assert all((gradient != 0).any() for gradient in expected)
    assert_close(torch.autograd.grad(got, parameters), expected)


def test_the_norm_of_each_runs_gradient_is_limited_by_itself():
    model = ActorCritic(3, 2, runs=2, hidden=4, generator=generator(0))
    gradients = [torch.zeros_like(parameter) for parameter in model.parameters()]
    first, second, *_, last_bias = gradients
    # run 0: actor 3 and critic 4, norm 5; run 1: norm 0.3
    first[0, 0, 0], second[2, 1, 1], last_bias[1, 0, 0] = 3.0, 4.0, -0.3
    _limit_norms(gradients, 2, 0.5)
    assert_close(first[0, 0, 0], torch.tensor(0.3))
    assert_close(second[2, 1, 1], torch.tensor(0.4))
    assert_close(last_bias[1, 0, 0], torch.tensor(-0.3))


def test_a_new_actor_is_close_to_uniform():
    model = ActorCritic(4, 2, generator=generator(0))
    log_pi, _ = model(torch.randn(1, 50, 4, generator=generator(1)))
    assert (log_pi.exp() - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("penalty", [{"clip": 0.2}, {"beta_old": 1.0}])
def test_clip_and_penalty_both_learn_to_hold_the_pole_up_longer(penalty):
    model = ActorCritic(4, 2, runs=2, generator=generator(0))
    env = make_vector("CartPole-v1", 16)
    curve = train_on(env, model, steps=15_000, generator=generator(0), **SETTINGS, **penalty)
    # a random policy holds it for about 22 steps
    assert (curve.mean_return[-1] > 40).all()
    assert curve.steps[-1] == 15_000 // 256 * 256
    assert curve.mean_return.shape == (58, 2)
    assert (curve.kl_old > 0).all()


def test_a_heavier_penalty_moves_the_policy_less():
    moved = []
    for beta_old in (0.3, 30.0):
        model = ActorCritic(4, 2, generator=generator(0))
        env = make_vector("CartPole-v1", 8)
        curve = train_on(
            env, model, steps=2_560, generator=generator(0), **SETTINGS, beta_old=beta_old
        )
        moved.append(np.median(curve.kl_old))
    assert moved[1] < moved[0] / 3


def test_the_adaptive_rule_doubles_or_halves_beta_old_from_rollout_to_rollout():
    model = ActorCritic(4, 2, generator=generator(0))
    curve = train_on(
        make_vector("CartPole-v1", 8), model, steps=2_560, generator=generator(0), **SETTINGS,
        beta_old=1.0, kl_target=0.01,
    )  # fmt: skip
    beta, kl = curve.beta_old[:, 0], curve.kl_old[:-1, 0]
    expected = np.where(kl < 0.01 / 1.5, 0.5, np.where(kl > 0.01 * 1.5, 2.0, 1.0))
    assert np.array_equal(beta[1:] / beta[:-1], expected)
    assert len(set(beta)) > 1


def test_the_same_seeds_give_the_same_curve():
    curves = [
        train_on(
            make_vector("CartPole-v1", 4),
            ActorCritic(4, 2, generator=generator(3)),
            steps=512,
            generator=generator(4),
            **SETTINGS,
            clip=math.inf,
        )  # fmt: skip
        for _ in range(2)
    ]
    assert np.array_equal(curves[0].kl_old, curves[1].kl_old)


def test_too_few_steps_and_another_way_of_resetting_are_refused():
    model = ActorCritic(4, 2, generator=generator(0))
    env = make_vector("CartPole-v1", 8)
    with pytest.raises(ValueError, match="steps is 255; one rollout has 256"):
        train_on(env, model, steps=255, generator=generator(0), **SETTINGS)
    pair = ActorCritic(4, 2, runs=3, generator=generator(0))
    with pytest.raises(ValueError, match="8 environments cannot be shared by 3 runs"):
        train_on(env, pair, steps=256, generator=generator(0), **SETTINGS)
    env.metadata = env.metadata | {"autoreset_mode": AutoresetMode.SAME_STEP}
    with pytest.raises(ValueError, match="SAME_STEP"):
        train_on(env, model, steps=256, generator=generator(0), **SETTINGS)


def frozen(model: ActorCritic) -> ActorCritic:
    return model.requires_grad_(False)


def broken(model: ActorCritic) -> ActorCritic:
    with torch.no_grad():
        model.weights[0].fill_(math.nan)
    return model


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (frozen, {}, "carry no gradient"),
        (broken, {}, "no numbers"),
        (None, {"learning_rate": math.inf}, "learning_rate is inf; it must be positive and finite"),
        (None, {"learning_rate": 1e30}, "no numbers"),
        (None, {"max_norm": -1.0}, "max_norm is -1.0; it must be positive"),
        (None, {"generator": None}, "generator is None"),
        (None, {"epochs": 1.5}, "epochs is 1.5; it must be an integer"),
    ],
)
def test_a_run_that_could_not_learn_is_refused(change, settings, said):
    env = make_vector("CartPole-v1", 2)
    model = ActorCritic(4, 2, runs=1, hidden=4, generator=generator(0))
    model = change(model) if change else model
    usual = {"steps": 40, "length": 10, "epochs": 2, "learning_rate": 1e-3, "gamma": 0.99}
    usual |= {"lam": 0.95, "generator": generator(0), "seed": 0, "clip": 0.2}
    with pytest.raises(ValueError, match=said):
        train_on(env, model, **usual | settings)
