import re
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from problems import generator, random_policies, random_world
from torch.testing import assert_close

from ppo_toy.envs import TokenBanditEnv, TokenEnv, TokenSequenceEnv, make_vector
from ppo_toy.policies import TabularPolicy
from ppo_toy.sampling import draw
from ppo_toy.trajectories import sample, score
from ppo_toy.worlds import TokenBandit, TokenSequence, prompt_weights

IDS = ["ppo_toy/TokenBandit-v0", "ppo_toy/TokenSequence-v0"]
HEADINGS = [
    "Description",
    "Action space",
    "Observation space",
    "Reward",
    "Starting state",
    "Episode end",
    "Information",
    "Arguments",
    "References",
]


def two_prompts() -> TokenSequence:
    """Prompts of two tokens, responses of up to three; "end" is token 1."""
    return TokenSequence(
        ["yes", "end", "no"],
        response_length=3,
        reward=lambda x, y: x[:, 1] + (100 * y[:, 0] + 10 * y[:, 1] + y[:, 2]) / 8,
        end_token=1,
        prompts=torch.tensor([[4, 0], [2, 6]]),
    )


def with_prompt_weights(world, *weights: float) -> SimpleNamespace:
    return SimpleNamespace(**vars(world), prompt_weights=torch.tensor(weights))


def play(env, actions: list[int], prompt: int = 0) -> list[tuple]:
    env.reset(options={"prompt": prompt})
    return [env.step(action) for action in actions]


# By hand


def test_an_episode_by_hand():
    env = gym.make("ppo_toy/TokenSequence-v0", world=two_prompts())
    start, info = env.reset(options={"prompt": 1})
    assert start["prompt"].tolist() == [2, 6]
    assert start["response"].tolist() == [3, 3, 3]  # V = 3 stands for a place still empty
    assert info == {"text": "", "prompt_index": 1}
    seen, reward, terminated, truncated, info = env.step(2)
    assert seen["prompt"].tolist() == [2, 6]
    assert seen["response"].tolist() == [2, 3, 3]
    assert (reward, terminated, truncated) == (0, False, False)
    assert info == {"text": "no", "prompt_index": 1}
    seen, reward, terminated, truncated, info = env.step(0)
    assert seen["response"].tolist() == [2, 0, 3]
    assert (reward, terminated, truncated) == (0, False, False)
    seen, reward, terminated, truncated, info = env.step(2)
    assert seen["response"].tolist() == [2, 0, 2]
    assert (reward, terminated, truncated) == (6 + (200 + 0 + 2) / 8, True, False)
    assert info == {"text": "no yes no", "prompt_index": 1}


def test_the_end_token_ends_the_episode_and_the_reward_sees_it_as_padding():
    env = gym.make("ppo_toy/TokenSequence-v0", world=two_prompts())
    (seen, reward, terminated, truncated, info) = play(env, [0, 1])[-1]
    assert seen["response"].tolist() == [0, 1, 3]
    # the third place is filled with the end token, 1
    assert (reward, terminated, truncated) == (0 + (0 + 10 + 1) / 8, True, False)
    assert info["text"] == "yes end"


def test_the_bandit_of_the_first_lesson_by_hand():
    env = gym.make("ppo_toy/TokenBandit-v0")
    for action, (word, reward) in enumerate(
        [("fine", 0.0), ("good", 0.5), ("nice", 0.5), ("great", 1.0), ("superb", 1.5)]
    ):
        ((seen, got, terminated, truncated, info),) = play(env, [action])
        assert seen["response"].tolist() == [action]
        assert (got, terminated, truncated) == (reward, True, False)
        assert info == {"text": word, "prompt_index": 0}


def test_a_pair_of_brackets_earns_1_and_a_lone_one_costs_a_half():
    env = gym.make("ppo_toy/TokenSequence-v0")
    # "( ) ( ." is one pair and a bracket alone
    rewards = [reward for _, reward, *_ in play(env, [0, 1, 0, 2])]
    assert rewards == [0, 0, 0, 1 - 0.5]


# Properties


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_finds_nothing_to_say(env_id):
    check_env(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_accepts_a_world_of_ones_own(env_id):
    check_env(gym.make(env_id, world=two_prompts()).unwrapped)


@pytest.mark.parametrize(
    ("env_id", "cls", "n_tokens", "length"),
    [(IDS[0], TokenBanditEnv, 6, 1), (IDS[1], TokenSequenceEnv, 3, 6)],
)
def test_the_spaces_are_those_of_the_class_docstring(env_id, cls, n_tokens, length):
    env = gym.make(env_id)
    assert type(env.unwrapped) is cls
    assert env.action_space == spaces.Discrete(n_tokens)
    response = spaces.MultiDiscrete([n_tokens + 1] * length)
    assert env.observation_space["response"] == response
    assert set(env.observation_space.spaces) == {"prompt", "response"}


def test_the_space_of_prompts_holds_each_tokens_largest_value():
    env = TokenEnv(two_prompts())
    assert env.observation_space["prompt"] == spaces.MultiDiscrete([5, 7])
    for prompt in range(2):
        start, _ = env.reset(options={"prompt": prompt})
        assert env.observation_space.contains(start)


def test_every_observation_lies_in_its_space_and_is_a_new_array():
    env = TokenEnv(two_prompts())
    first, _ = env.reset(seed=0, options={"prompt": 0})
    observations = [first, *(env.step(action)[0] for action in (2, 0, 2))]
    for observation in observations:
        assert env.observation_space.contains(observation)
    assert [x["response"].tolist() for x in observations] == [
        [3, 3, 3], [2, 3, 3], [2, 0, 3], [2, 0, 2],
    ]  # fmt: skip
    first["prompt"][:] = 99
    assert env.world.prompts.tolist() == [[4, 0], [2, 6]]


def test_the_class_docstring_has_its_headings_in_order():
    assert re.findall(r"^ *## (.*)$", TokenEnv.__doc__, re.MULTILINE) == HEADINGS
    for cls in (TokenBanditEnv, TokenSequenceEnv):
        assert issubclass(cls, TokenEnv)
        assert "`TokenEnv`" in cls.__doc__


def test_a_seed_fixes_the_prompt_and_the_prompts_follow():
    world = random_world(0, prompts=8, length=1)
    env = TokenEnv(world)
    rounds = []
    for seed in (3, 3, 4):
        env.reset(seed=seed)
        rounds.append([env.reset()[1]["prompt_index"] for _ in range(20)])
    assert rounds[0] == rounds[1]
    assert rounds[0] != rounds[2]


@pytest.mark.parametrize("weights", [None, (0.125, 0.625, 0.0, 0.25)])
def test_prompts_are_drawn_as_often_as_the_world_weighs_them(weights):
    world = random_world(0, prompts=4, length=1)
    if weights is not None:
        world = with_prompt_weights(world, *weights)
    env = TokenEnv(world)
    env.reset(seed=0)
    n = 2000
    drawn = [env.reset()[1]["prompt_index"] for _ in range(n)]
    for index, p in enumerate(weights or [0.25] * 4):
        # five standard errors, four times: a right environment fails for about one seed in 400,000
        error = (p * (1 - p) / n) ** 0.5
        assert abs(drawn.count(index) / n - p) <= 5 * error


def test_a_prompt_that_is_asked_for_is_shown_whatever_the_weights():
    env = TokenEnv(with_prompt_weights(two_prompts(), 1.0, 0.0))
    assert env.reset(seed=0)[1]["prompt_index"] == 0
    start, info = env.reset(seed=0, options={"prompt": 1})
    assert info["prompt_index"] == 1
    assert start["prompt"].tolist() == [2, 6]


def test_an_action_may_be_a_number_of_numpys():
    env = TokenEnv(two_prompts())
    env.reset(options={"prompt": 0})
    seen, *_ = env.step(np.int64(2))
    assert seen["response"].tolist() == [2, 3, 3]


def test_a_new_reset_throws_the_begun_response_away():
    env = TokenEnv(two_prompts())
    play(env, [2, 0], prompt=0)
    start, info = env.reset(options={"prompt": 1})
    assert start["response"].tolist() == [3, 3, 3]
    assert info["text"] == ""


def test_a_vector_environment_is_so_many_copies_stepped_as_one():
    env = make_vector("CartPole-v1", 3)
    start, _ = env.reset(seed=0)
    seen, reward, terminated, truncated, _ = env.step(np.array([0, 1, 0]))
    assert env.num_envs == 3
    assert start.shape == seen.shape == (3, 4)
    assert reward.tolist() == [1, 1, 1]
    assert terminated.tolist() == truncated.tolist() == [False] * 3
    # the second entry is the cart's velocity: each copy follows its own action
    assert ((seen[:, 1] - start[:, 1]) > 0).tolist() == [False, True, False]
    env.close()


# Edges and errors


@pytest.mark.parametrize("action", [3, -1, 1.5, "yes"])
def test_an_action_that_is_no_token_is_an_error(action):
    env = TokenEnv(two_prompts())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"action {action!r} is not a token; Discrete\(3\)"):
        env.step(action)
    # and nothing was written
    seen, *_ = env.step(0)
    assert seen["response"].tolist() == [0, 3, 3]


@pytest.mark.parametrize("prompt", [2, -1])
def test_a_prompt_that_the_world_does_not_have_is_an_error(prompt):
    env = TokenEnv(two_prompts())
    with pytest.raises(ValueError, match=f"prompt {prompt} was asked for; this world has 2"):
        env.reset(options={"prompt": prompt})


def test_a_step_before_reset_is_an_error():
    with pytest.raises(RuntimeError, match="call reset first"):
        TokenEnv(two_prompts()).step(0)


@pytest.mark.parametrize("actions", [[1], [0, 2, 0]])
def test_a_step_after_the_end_is_an_error(actions):
    env = TokenEnv(two_prompts())
    assert play(env, actions)[-1][2]
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step(0)


def test_without_an_end_token_only_the_last_place_ends_the_episode():
    env = TokenEnv(random_world(0, tokens=3, length=4))
    for action in range(3):
        ends = [step[2:4] for step in play(env, [action] * 4)]
        assert ends == [(False, False)] * 3 + [(True, False)]


# Independent routes


def uniforms_of(seed: int, n: int, length: int) -> torch.Tensor:
    """The numbers that `sample` draws: n for the prompts, then n for each token."""
    numbers = generator(seed)
    return torch.stack(
        [torch.rand(n, generator=numbers, dtype=torch.float64) for _ in range(1 + length)]
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"prompts": 1, "tokens": 5, "length": 1},
        {"prompts": 3, "tokens": 3, "length": 3},
        {"prompts": 2, "tokens": 3, "length": 4, "end_token": 0},
    ],
)
def test_the_same_numbers_give_the_same_episodes_as_sample(kwargs):
    n, world = 40, random_world(5, **kwargs)
    policy, _ = random_policies(world, 5)
    batch = sample(policy, world, n, generator=generator(7))
    rewards = score(world, batch)
    prompts, *steps = uniforms_of(7, n, world.response_length)
    env = gym.make("ppo_toy/TokenSequence-v0", world=world)
    lengths = set()
    for i in range(n):
        index = draw(prompt_weights(world).log(), prompts[i]).item()
        seen, _ = env.reset(options={"prompt": index})
        assert seen["prompt"].tolist() == batch.prompts[i].tolist()
        written, earned, over = [], [], False
        while not over:
            response = torch.tensor([written], dtype=torch.long)
            logits = policy(torch.from_numpy(seen["prompt"]).unsqueeze(0), response)[0, -1]
            written.append(draw(logits, steps[len(written)][i]).item())
            seen, reward, over, truncated, _ = env.step(written[-1])
            earned.append(reward)
            assert not truncated
        assert written == batch.responses[i][batch.mask[i]].tolist()
        assert len(written) == batch.mask[i].sum()
        assert earned[:-1] == [0] * (len(written) - 1)
        assert_close(earned[-1], rewards[i].item())
        empty = [len(world.vocabulary)] * (world.response_length - len(written))
        assert seen["response"].tolist() == written + empty
        lengths.add(len(written))
    if world.end_token is not None:
        assert len(lengths) > 2


@pytest.mark.parametrize("env_id", IDS)
def test_the_default_worlds_give_the_episodes_of_sample_too(env_id):
    world = TokenBandit.one_word_reply() if env_id == IDS[0] else TokenSequence.brackets()
    policy = TabularPolicy.random(world, generator=generator(1))
    batch = sample(policy, world, 20, generator=generator(2))
    env = gym.make(env_id)
    for i, reward in enumerate(score(world, batch).tolist()):
        steps = play(env, batch.responses[i][batch.mask[i]].tolist())
        assert [step[2] for step in steps] == [False] * (len(steps) - 1) + [True]
        assert [step[1] for step in steps] == [0] * (len(steps) - 1) + [reward]
