import copy
import math
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from problems import generator, random_policies, random_world
from torch import nn
from torch.testing import assert_close

from ppo_toy import exact
from ppo_toy.actor_critic import ActorCritic, train_on
from ppo_toy.contract import known
from ppo_toy.envs import TokenEnv
from ppo_toy.kl_controllers import double_or_halve, proportional
from ppo_toy.policies import TabularPolicy, freeze
from ppo_toy.proximal import Surrogate
from ppo_toy.rewards import tabulated
from ppo_toy.training import Schedule, train
from ppo_toy.trajectories import Trajectories, enumerate_all, log_probs, per_step_kl, sample, score
from ppo_toy.worlds import TokenBandit, TokenSequence


class Echo:
    """A world of a user's own: say "yes" as often as the prompt asks, then stop."""

    prompts = [[1], [2]]
    vocabulary = ["yes", "no", "."]
    response_length = 3
    end_token = 2

    def reward(self, prompts, responses):
        before_the_end = (responses == self.end_token).cumsum(dim=1) == 0
        said = ((responses == 0) & before_the_end).sum(dim=1)
        return said == prompts[:, 0]


class Bigram(nn.Module):
    """A policy of a user's own: it knows the prompt and the token before."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3, 3))
        self.after = nn.Parameter(torch.zeros(3, 3, 3))

    def forward(self, prompts, responses):
        return torch.cat([self.first[prompts], self.after[prompts, responses]], dim=1)


def changed(**attributes):
    """The world with some attributes replaced; None takes one away."""
    own = {name: getattr(Echo(), name) for name in
        ("prompts", "vocabulary", "response_length", "end_token", "reward")}  # fmt: skip
    return SimpleNamespace(**{k: v for k, v in (own | attributes).items() if v is not ...})


def learn(policy, reference, world, **settings):
    given = {"beta": 0.1, "steps": 2, "batch_size": 16, "learning_rate": 0.1}
    return train(policy, reference, world, **given | {"generator": generator(0)} | settings)


# A world and a policy of one's own


@pytest.mark.parametrize("kind", ["class", "namespace", "frozen"])
def test_a_world_and_a_policy_of_ones_own_go_all_the_way(kind):
    world = {"class": Echo(), "namespace": changed(), "frozen": known(Echo())}[kind]
    policy = Bigram()
    reference = freeze(policy)
    history = learn(policy, reference, world, steps=150, learning_rate=0.05, batch_size=128)
    best, end = exact.optimum(reference, world, 0.1), exact.evaluate(policy, reference, world, 0.1)
    assert history.kl[0] == 0
    assert 0.85 * best.objective < end.objective <= best.objective < 1
    for gradient in exact.gradient(best.policy.requires_grad_(), reference, world, 0.1):
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    table = tabulated(world)
    assert exact.evaluate(policy, reference, table, 0.1) == end
    env = TokenEnv(world)
    env.reset(seed=0, options={"prompt": 1})
    steps = [env.step(token) for token in (0, 0, 2)]
    assert [step[1] for step in steps] == [0.0, 0.0, 1.0]
    assert steps[-1][2]


def test_a_plain_function_is_a_policy_for_all_but_learning():
    def even(prompts, responses):
        return torch.zeros(*responses.shape[:-1], responses.shape[-1] + 1, 3)

    policy, world = Bigram(), Echo()
    assert exact.evaluate(even, even, world, 0.5).kl == 0
    assert_close(enumerate_all(even, world).weights.sum(), torch.tensor(1.0))
    assert sample(even, world, 5, generator=generator(0)).responses.shape == (5, 3)
    assert learn(policy, even, world).kl[0] == 0
    with pytest.raises(ValueError, match="the policy is a function; what learns is an nn.Module"):
        learn(even, even, world)


def test_the_rewards_of_true_and_false_are_1_and_0():
    batch = enumerate_all(Bigram(), Echo())
    rewards = score(Echo(), batch)
    # 27 responses at most to a prompt; "yes ." and "yes no ...", "no yes ..." and so on earn 1
    assert set(rewards.tolist()) == {0, 1}
    got = exact.evaluate(Bigram(), Bigram(), Echo(), 0.0).reward
    # once "yes" of prompt 1: y. yn. ynn | ny. nyn | nny at 1/9 1/27 1/27 1/27 1/27 1/27; of
    # prompt 2, twice: yy. yyn | yny | nyy at 1/27 each
    assert_close(got, 0.5 * (1 / 9 + 5 / 27) + 0.5 * 4 / 27)


class Dropping(Bigram):
    def forward(self, prompts, responses):
        return nn.functional.dropout(super().forward(prompts, responses) + 1, 0.5, self.training)


class Shorter(Bigram):
    def forward(self, prompts, responses):
        return super().forward(prompts, responses)[:, : responses.shape[1]]


class Paired(Bigram):
    def forward(self, prompts, responses):
        return super().forward(prompts, responses), None


class LastOnly(Bigram):
    def forward(self, prompts, responses):
        return super().forward(prompts, responses)[:, -1]


class Wider(Bigram):
    def forward(self, prompts, responses):
        logits = super().forward(prompts, responses)
        return torch.cat([logits, logits[..., :1]], dim=-1)


class Detached(Bigram):
    def forward(self, prompts, responses):
        return super().forward(prompts, responses).detach()


POLICY_SLIPS = {
    "dropout in train mode": (Dropping(), "the policy gives two answers to one question.*eval"),
    "no row for the next token": (Shorter(), r"gave logits \(2, 1, 3\); \[2, 2, V\] was due"),
    "a pair": (Paired(), "the policy gave tuple; logits are due"),
    "the last row alone": (LastOnly(), r"gave logits \(2, 3\); \[2, 2, V\] was due"),
    "another vocabulary": (Wider(), "the policy has 4 tokens, the world 3"),
    "detached": (Detached(), "logits carry no gradient"),
    "frozen": (freeze(Bigram()), r"carry no gradient: policy.requires_grad_\(True\)"),
    "the class": (Bigram, "the policy is a type; what learns is an nn.Module"),
}


@pytest.mark.parametrize("slip", POLICY_SLIPS)
def test_a_slip_in_a_policy_is_named_before_it_learns(slip):
    policy, message = POLICY_SLIPS[slip]
    with pytest.raises(ValueError, match=message):
        learn(policy, Bigram(), Echo())
    if slip in ("dropout in train mode", "detached", "frozen", "the class"):
        return
    for call in (
        lambda: exact.evaluate(policy, Bigram(), Echo(), 1.0),
        lambda: exact.gradient(policy, Bigram(), Echo(), 1.0),
        lambda: exact.values(policy, Bigram(), Echo(), 1.0),
    ):
        with pytest.raises(ValueError, match="the policy (gave|has 4 tokens, the world 3)"):
            call()
    with pytest.raises(ValueError, match="the reference (gave|has 4 tokens, the world 3)"):
        learn(Bigram(), policy, Echo())
    for call in (
        lambda: exact.evaluate(Bigram(), policy, Echo(), 1.0),
        lambda: exact.optimum(policy, Echo(), 1.0),
        lambda: exact.frontier(policy, Echo(), [1.0]),
        lambda: exact.soft_values(policy, Echo(), 1.0),
    ):
        with pytest.raises(ValueError, match="the reference (gave|has 4 tokens, the world 3)"):
            call()


@pytest.mark.parametrize("slip", [Shorter, Paired, LastOnly, Wider])
def test_a_slip_in_a_policy_is_named_where_it_is_sampled_and_listed(slip):
    message = "the policy (gave|has 4 tokens, the world 3)"
    with pytest.raises(ValueError, match=message):
        sample(slip(), Echo(), 3, generator=generator(0))
    with pytest.raises(ValueError, match=message):
        enumerate_all(slip(), Echo())


WORLD_SLIPS = {
    "no end token": ({"end_token": ...}, "the world, a SimpleNamespace, has no end_token"),
    "no vocabulary": ({"vocabulary": ...}, "has no vocabulary"),
    "the number of words": ({"vocabulary": 3}, "vocabulary is 3; it must be 2 distinct strings"),
    "a word twice": ({"vocabulary": ["a", "a"]}, r"vocabulary is \['a', 'a'\]; .* distinct"),
    "the end token as a word": ({"end_token": "."}, r"end_token is '\.'; the tokens are 0 to 2"),
    "an end token out of range": ({"end_token": 3}, "end_token is 3; the tokens are 0 to 2"),
    "no length": ({"response_length": 0}, "response_length is 0; it must be an integer, 1 or"),
    "half a token": ({"response_length": 2.5}, "response_length is 2.5"),
    "prompts in one row": ({"prompts": [1, 2]}, r"prompts has shape \(2,\)"),
    "prompts of two lengths": ({"prompts": [[1], [1, 2]]}, r"prompts is \[\[1\], \[1, 2\]\]"),
    "prompts of text": ({"prompts": ["a", "b"]}, r"prompts is \['a', 'b'\]"),
    "prompts of floats": ({"prompts": torch.ones(2, 1)}, "type torch.float"),
    "weights that sum to 2": ({"prompt_weights": [1.0, 1.0]}, "prompt_weights is"),
}
REWARD_SLIPS = {
    "no reward": (..., "the world's reward is None; it must be a function"),
    "a table": (torch.zeros(2), "the world's reward is tensor.*must be a function"),
    "nothing returned": (lambda x, y: None, r"reward gave None; numbers \[B\] are due"),
    "a number": (lambda x, y: 1.0, r"reward gave \(\) for"),
    "a column": (lambda x, y: y[:, :1], r"reward gave \(\d+, 1\) for \d+ responses"),
    "one for each token": (lambda x, y: y, r"reward gave \(\d+, 3\) for"),
    "words": (lambda x, y: ["good"] * len(y), "reward gave .*numbers"),
    "0 / 0": (lambda x, y: y[:, 0] * 0.0 / (y[:, 0] * 0.0), r"the reward of \[.*\] is nan"),
}


def doors(world):
    """Each way into the package that a world has."""
    table = TabularPolicy(random_world(0, tokens=3))
    policies = (Bigram(), Bigram())
    return {
        "train": lambda: learn(*policies, world),
        "evaluate": lambda: exact.evaluate(*policies, world, 1.0),
        "gradient": lambda: exact.gradient(*policies, world, 1.0),
        "values": lambda: exact.values(*policies, world, 1.0),
        "optimum": lambda: exact.optimum(policies[0], world, 1.0),
        "frontier": lambda: exact.frontier(policies[0], world, [1.0]),
        "soft values": lambda: exact.soft_values(policies[0], world, 1.0),
        "tabulated": lambda: tabulated(world),
        "sample": lambda: score(world, sample(policies[0], world, 4, generator=generator(0))),
        "enumerate_all": lambda: score(world, enumerate_all(policies[0], world)),
        "env": lambda: play(TokenEnv(world)),
        "itself": lambda: table,
    }


def play(env):
    env.reset(seed=0)
    return [env.step(1) for _ in range(3)]


@pytest.mark.parametrize("slip", WORLD_SLIPS)
def test_a_slip_in_a_world_is_named_at_every_door(slip):
    attributes, message = WORLD_SLIPS[slip]
    for name, enter in doors(changed(**attributes)).items():
        if name != "itself":
            with pytest.raises(ValueError, match=message):
                enter()


@pytest.mark.parametrize("slip", REWARD_SLIPS)
def test_a_slip_in_a_reward_is_named_at_every_door(slip):
    reward, message = REWARD_SLIPS[slip]
    for name, enter in doors(changed(reward=reward)).items():
        if name != "itself":
            with pytest.raises(ValueError, match=message):
                enter()


def test_the_class_of_a_world_is_no_world():
    for enter in (
        lambda: learn(Bigram(), Bigram(), Echo),
        lambda: tabulated(Echo),
        lambda: TokenEnv(Echo),
    ):
        with pytest.raises(ValueError, match="the world is the class Echo; give an instance"):
            enter()


def test_prompts_may_be_lists_wherever_a_world_is_made():
    lists = [[0, 1], [2, 0]]
    world = TokenSequence(["a", "b"], 2, lambda x, y: x[:, 0] + y[:, 0], prompts=lists)
    assert torch.equal(world.prompts, torch.tensor(lists))
    short = known(changed(prompts=torch.tensor([[1], [2]], dtype=torch.int32)))
    assert short.prompts.dtype == torch.long
    assert known(short) is short
    assert TabularPolicy(changed()).logits.shape == (2 * 13, 3)


# Batches


def test_a_batch_whose_parts_do_not_fit_is_an_error():
    good = {
        "prompts": torch.zeros(4, 1, dtype=torch.long),
        "responses": torch.zeros(4, 3, dtype=torch.long),
        "mask": torch.ones(4, 3).bool(),
        "weights": torch.full((4,), 0.25),
    }
    Trajectories(**good)
    for name, x in good.items():
        for wrong in (x[:3], x[..., :1] if name == "mask" else x.unsqueeze(-1), x[0]):
            with pytest.raises(ValueError, match=rf"{name} \[.*do not fit together"):
                Trajectories(**good | {name: wrong})
    with pytest.raises(ValueError, match="mask is of torch.float64; it must be of torch.bool"):
        Trajectories(**good | {"mask": torch.ones(4, 3)})
    for name in ("prompts", "responses"):
        with pytest.raises(ValueError, match=f"{name} is of torch.float64; tokens are integers"):
            Trajectories(**good | {name: good[name].double()})


# Exact values


@pytest.mark.parametrize("row", [[math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0], [-math.inf] * 3])
def test_a_state_without_numbers_is_named(row):
    world = random_world(0, tokens=3, length=2)
    policy, reference = random_policies(world, 0)
    broken = TabularPolicy(world, policy.logits)
    broken.logits.data[5] = torch.tensor(row)  # the second prompt's, after token 0
    message = (
        r"after the prompt \[1\] and the tokens \[0\] the (policy|reference)'s logits hold NaN"
    )
    for pair in ((broken, reference), (reference, broken)):
        for call in (exact.evaluate, exact.gradient, exact.values):
            with pytest.raises(ValueError, match=message):
                call(*pair, world, 1.0)
    for call in (exact.optimum, exact.soft_values):
        with pytest.raises(ValueError, match=message):
            call(broken, world, 1.0)
    batch = enumerate_all(policy, world)
    with pytest.raises(ValueError, match=message):
        per_step_kl(policy, broken, batch)
    with pytest.raises(ValueError, match=message):
        log_probs(broken.repeat(2), batch)


def test_at_beta_0_a_policy_may_say_what_the_reference_cannot():
    world = TokenBandit(torch.tensor([[1.0, 2.0]]))
    reference = TabularPolicy(world, torch.tensor([[0.0, -math.inf]]))
    policy = TabularPolicy(world)
    got = exact.evaluate(policy, reference, world, 0.0)
    assert got == (1.5, 1.5, math.inf)
    # d/dz_v of sum p R is p_v (R_v - mean R)
    (gradient,) = exact.gradient(policy, reference, world, 0.0)
    assert_close(gradient, torch.tensor([[-0.25, 0.25]]))
    assert exact.values(policy, reference, world, 0.0).tolist() == [[1.5], [1.5]]
    pair = TabularPolicy(world, torch.tensor([[[0.0, 0.0]], [[0.0, -math.inf]]]))
    both = exact.evaluate(pair, reference, world, 0.5)
    assert both.objective.tolist() == [-math.inf, 1.0]
    assert both.kl.tolist() == [math.inf, 0.0]


@pytest.mark.parametrize("beta", [None, "1", [[1.0]]], ids=str)
def test_a_beta_that_is_no_number_is_refused_everywhere(beta):
    world = TokenSequence.brackets()
    policy = TabularPolicy(world)
    for ask in (
        lambda: exact.evaluate(policy, policy, world, beta),
        lambda: exact.gradient(policy, policy, world, beta),
        lambda: exact.optimum(policy, world, beta),
        lambda: exact.frontier(policy, world, [0.5, beta]),
    ):
        with pytest.raises(ValueError, match="beta"):
            ask()
    with pytest.raises(ValueError, match="there is no beta"):
        exact.frontier(policy, world, [])


def test_what_is_no_policy_and_prompts_without_tokens_are_named():
    world = TokenSequence.brackets()
    policy = TabularPolicy(world)
    with pytest.raises(ValueError, match="the policy is None; it must be a function"):
        exact.evaluate(None, policy, world, 1.0)
    with pytest.raises(ValueError, match="the policy is None; it must be a function"):
        sample(None, world, 3, generator=generator(0))
    with pytest.raises(ValueError, match=r"prompts has shape \(2, 0\)"):
        known(SimpleNamespace(**{**vars(world), "prompts": torch.zeros(2, 0).long()}))


def test_tables_may_be_lists():
    assert TokenBandit([[1.0, 2.0]]).rewards.tolist() == [[1.0, 2.0]]
    world = TokenSequence.from_table([[[1, 2], [3, 4]]])
    assert world.reward(torch.zeros(1, 1).long(), torch.tensor([[1, 0]])).tolist() == [3]
    table = [[0.0, 1.0]]
    assert TabularPolicy(TokenBandit(table), table).logits.tolist() == table


@pytest.mark.parametrize("beta", [-1.0, math.nan, math.inf, torch.tensor(-1.0)])
def test_a_beta_out_of_range_is_refused_everywhere(beta):
    world = random_world(0)
    policy, reference = random_policies(world, 0)
    for call in (exact.evaluate, exact.gradient, exact.values):
        with pytest.raises(ValueError, match="beta is"):
            call(policy, reference, world, beta)


@pytest.mark.parametrize("beta", [1e4, 1e8, 1e10, 1e12])
def test_the_optimum_of_a_very_large_beta_keeps_its_digits(beta):
    world = TokenBandit.one_word_reply()
    p_ref = torch.tensor([0.30, 0.25, 0.20, 0.15, 0.07, 0.03])
    best = exact.optimum(TabularPolicy(world, p_ref.log().unsqueeze(0)), world, beta)
    # J* = E R + Var R / 2 beta + ..., R* = E R + Var R / beta, KL* = Var R / 2 beta^2
    mean = (p_ref * world.rewards[0]).sum().item()
    variance = (p_ref * (world.rewards[0] - mean) ** 2).sum().item()
    assert_close(mean, 0.555)
    assert abs(best.objective - mean - variance / 2 / beta) < 1e-3 / beta + 1e-14
    assert abs(best.reward - mean - variance / beta) < 1e-3 / beta + 1e-14
    assert best.kl >= 0
    assert abs(best.kl - variance / 2 / beta**2) < 1e-3 / beta**2
    values = exact.soft_values(TabularPolicy(world, p_ref.log().unsqueeze(0)), world, beta)
    assert_close(values, torch.full((6, 1), best.objective))


# Training


def test_a_reference_that_says_what_the_policy_says_is_found_out_after_one_update():
    for disguise in (
        lambda policy: lambda prompts, responses: policy(prompts, responses),
        lambda policy: lambda prompts, responses: policy(prompts, responses).detach() + 0.0,
        lambda policy: SimpleNamespaceCall(policy),
    ):
        policy, steps = Bigram(), []
        schedule = Schedule(on_step=lambda step, policy, steps=steps: steps.append(step))
        with pytest.raises(ValueError, match="the reference moved when the policy was updated"):
            learn(policy, disguise(policy), Echo(), steps=9, schedule=schedule)
        assert steps == [0]


class SimpleNamespaceCall:
    """A policy that is neither a function nor a module, and half of it the other's."""

    def __init__(self, policy):
        self.policy, self.own = policy, copy.deepcopy(policy)

    def __call__(self, *asked):
        return (self.policy(*asked) + self.own(*asked)) / 2


def test_a_reference_that_follows_is_found_out_at_the_first_update_that_moves_anything():
    class Silent(Echo):
        def reward(self, prompts, responses):
            return self.scale * (responses[:, 0] == 0)

    policy, world = Bigram(), Silent()

    def wake(step, policy):
        world.scale = 0.0 if step < 3 else 1.0  # nothing to learn from before

    world.scale = 0.0
    with pytest.raises(ValueError, match="the reference moved"):
        learn(
            policy, lambda *asked: policy(*asked), world, steps=4, schedule=Schedule(on_step=wake)
        )


@pytest.mark.parametrize(
    "controller",
    [
        double_or_halve,
        partial(double_or_halve, kl_target=0.1),
        partial(proportional, kl_target=0.1, batch_size=8, horizon=80),
        lambda beta, kl: double_or_halve(beta, kl, kl_target=0.1),
        lambda beta, kl: beta * (2 if kl > 1 else 1),
    ],
)
def test_a_coefficient_of_0_that_is_multiplied_is_refused(controller):
    message = r"is 0.0; of 0 its controller makes 0 whatever the KL"
    with pytest.raises(ValueError, match=f"beta {message}"):
        learn(Bigram(), Bigram(), Echo(), beta=0, controller=controller)
    how = Surrogate(controller_old=controller)
    with pytest.raises(ValueError, match=f"beta_old {message}"):
        learn(Bigram(), Bigram(), Echo(), epochs=2, surrogate=how)


def test_a_coefficient_of_0_that_can_grow_is_welcome():
    history = learn(Bigram(), Bigram(), Echo(), beta=0, controller=lambda beta, kl: beta + 0.5)
    assert history.beta.tolist() == [0.0, 0.5]


def test_the_exact_gradient_is_that_of_the_parameters_that_learn():
    world = random_world(0)
    policy, _ = random_policies(world, 0)
    for frozen, where in ((freeze(policy), world), (Detached(), Echo())):
        with pytest.raises(ValueError, match="the policy's logits carry no gradient"):
            exact.gradient(frozen, frozen, where, 1.0)
    half = Bigram()
    whole = exact.gradient(half, Bigram(), Echo(), 1.0)
    half.after.requires_grad_(False)
    first, after = exact.gradient(half, Bigram(), Echo(), 1.0)
    assert torch.equal(first, whole[0])
    assert whole[1].any()
    assert not after.any()


def test_a_policy_in_eval_mode_with_dropout_learns():
    policy = Dropping().eval()
    assert learn(policy, freeze(policy), Echo()).kl[0] == 0


# Vector environments


class Two(gym.vector.VectorEnv):
    """Two copies that last three steps; an action is its own reward."""

    num_envs = 2
    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, n_actions=2, start=0, dtype=np.float32, broken=()):
        self.single_action_space = gym.spaces.Discrete(n_actions, start=start)
        self.single_observation_space = gym.spaces.Box(0, 3, (3,), dtype)
        self.dtype, self.broken, self.sent, self.count = dtype, dict(broken), [], 0

    def observe(self):
        seen = np.tile(np.eye(4)[self.time, :3], (2, 1)).astype(self.dtype)
        return (
            np.full_like(seen, self.broken.get("observation") == self.count and np.nan or 0) + seen
        )

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.observe(), {}

    def step(self, actions):
        self.sent.extend(actions.tolist())
        self.count += 1
        self.time = (self.time + 1) % 4
        over = np.full(2, self.time == 3)
        reward = actions * 1.0 if self.broken.get("reward") != self.count else actions * np.nan
        return self.observe(), reward, over, np.zeros(2, dtype=bool), {}


def train_two(env, model=None, **settings):
    model = model or ActorCritic(3, env.single_action_space.n, generator=generator(0))
    given = {"steps": 32, "length": 8, "epochs": 2, "learning_rate": 1e-2, "gamma": 0.9,
        "lam": 0.9, "seed": 0, "generator": generator(0)}  # fmt: skip
    curve = train_on(env, model, **given | settings)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return curve


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_observations_of_every_type_are_read(dtype):
    expected = train_two(Two())
    got = train_two(Two(dtype=dtype))
    assert np.array_equal(got.kl_old, expected.kl_old)


def test_actions_may_begin_at_another_number():
    for start in (0, 1, -3):
        env = Two(start=start)
        train_two(env)
        assert set(env.sent) == {start, start + 1}


@pytest.mark.parametrize("step", [0, 1, 5, 8, 16])
@pytest.mark.parametrize("name", ["observation", "reward"])
def test_what_an_environment_says_that_is_no_number_is_named_with_its_step(name, step):
    if (name, step) == ("reward", 0):
        return
    model = ActorCritic(3, 2, generator=generator(0))
    with pytest.raises(ValueError, match=f"after step {step} the environment's {name} is .*nan"):
        train_two(Two(broken={name: step}), model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (Two(3), ActorCritic(3, 2, generator=generator(0))), "the model has 2"),
        (lambda: (Two(), ActorCritic(4, 2, generator=generator(0))), "the model reads 4 numbers"),
        (lambda: (gym.make("CartPole-v1"), ActorCritic(4, 2, generator=generator(0))),
            "is not a vector environment"),
    ],
)  # fmt: skip
def test_a_model_of_other_sizes_and_a_single_environment_are_refused(make, message):
    env, model = make()
    with pytest.raises(ValueError, match=message):
        train_two(env, model)


def test_actions_that_are_not_discrete_are_refused():
    env = Two()
    env.single_action_space = gym.spaces.Box(-1, 1, (2,))
    with pytest.raises(ValueError, match=r"the actions are Box.*; the model has 2"):
        train_two(env, ActorCritic(3, 2, generator=generator(0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_target": 0.001}, "beta_old is 0, which no doubling brings to kl_target"),
        ({"beta_old": -1.0}, "beta_old is -1.0; it must be 0 or more"),
        ({"beta_old": math.nan}, "beta_old is nan"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive"),
        ({"epochs": 0}, "epochs is 0; it must be 1 or more"),
        ({"length": 0}, "length is 0; it must be 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"kl_target": -1.0, "beta_old": 1.0}, "kl_target is -1.0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        train_two(Two(), **settings)
