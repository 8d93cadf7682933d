"""The worlds as Gymnasium environments; importing this module registers them.

import gymnasium as gym
import ppo_toy.envs
env = gym.make("ppo_toy/TokenSequence-v0")
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ppo_toy.contract import known, rewards_of
from ppo_toy.sampling import draw
from ppo_toy.worlds import TokenBandit, TokenSequence


class TokenEnv(gym.Env):
    """A world in which each step writes one token of the response.

    ## Description
    The environment shows a prompt; the agent answers token by token. When the response is
    complete, the world scores it as a whole. The KL penalty is no part of the environment: it
    compares two policies, and an environment knows none.

    ## Action space
    `Discrete(V)`: the next token.

    ## Observation space
    `Dict` of two `MultiDiscrete` arrays: `prompt` [P], its tokens, and `response` [T], the tokens
    written so far, with V in each place that is still empty.

    ## Reward
    R of the response, given with its last token; 0 before.

    ## Starting state
    A prompt drawn with the world's weights (uniform unless it has `prompt_weights`) and an empty
    response. `reset(options={"prompt": i})` takes prompt i instead.

    ## Episode end
    Terminated by the end token, where the world has one, or by the T-th token. Never truncated.

    ## Information
    `text`: the response so far, as one string. `prompt_index`: which prompt it answers.

    ## Arguments
    `world`: any world with `prompts`, `vocabulary`, `response_length`, `end_token` and `reward`.

    ## References
    Towers et al. (2024), Gymnasium: A Standard Interface for Reinforcement Learning Environments.
    """

    metadata = {"render_modes": []}

    def __init__(self, world: Any) -> None:
        """Makes the spaces; see the class."""
        self.world = world = known(world)
        n_tokens = len(world.vocabulary)
        self.action_space = spaces.Discrete(n_tokens)
        self.observation_space = spaces.Dict(
            prompt=spaces.MultiDiscrete((world.prompts.max(dim=0).values + 1).numpy()),
            response=spaces.MultiDiscrete([n_tokens + 1] * world.response_length),
        )
        self._tokens: list[int] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts a response to a drawn prompt, or to `options["prompt"]`.

        Raises:
            ValueError: there is no prompt of that index.
        """
        super().reset(seed=seed)
        n = len(self.world.prompts)
        uniform = torch.tensor(self.np_random.random(), dtype=torch.float64)
        index = draw(self.world.prompt_weights.log(), uniform).item()
        index = (options or {}).get("prompt", index)
        if not 0 <= index < n:
            raise ValueError(f"prompt {index} was asked for; this world has {n} prompts")
        self._index, self._tokens = index, []
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Writes one token.

        Raises:
            ValueError: the action is not a token.
            RuntimeError: there is no response to write to; call `reset` first.
        """
        if self._tokens is None:
            raise RuntimeError("no response is being written; call reset first")
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not a token; {self.action_space} is due")
        self._tokens.append(int(action))
        over = int(action) == self.world.end_token or self._missing == 0
        observation, reward, info = self._observation(), 0.0, self._info()
        if over:
            reward = self._reward()
            self._tokens = None
        return observation, reward, over, False, info

    @property
    def _missing(self) -> int:
        return self.world.response_length - len(self._tokens)

    def _observation(self) -> dict[str, np.ndarray]:
        empty = [len(self.world.vocabulary)] * self._missing
        return {
            "prompt": self.world.prompts[self._index].numpy().copy(),
            "response": np.array(self._tokens + empty, dtype=np.int64),
        }

    def _info(self) -> dict[str, Any]:
        text = " ".join(str(self.world.vocabulary[token]) for token in self._tokens)
        return {"text": text, "prompt_index": self._index}

    def _reward(self) -> float:
        padding = [self.world.end_token] * self._missing
        response = torch.tensor([self._tokens + padding])
        prompt = self.world.prompts[self._index].unsqueeze(0)
        return float(rewards_of(self.world, prompt, response).item())


class TokenBanditEnv(TokenEnv):
    """`TokenEnv` with the world `TokenBandit.one_word_reply()` unless another is given."""

    def __init__(self, world: Any = None) -> None:
        """Makes the spaces; see `TokenEnv`."""
        super().__init__(TokenBandit.one_word_reply() if world is None else world)


class TokenSequenceEnv(TokenEnv):
    """`TokenEnv` with the world `TokenSequence.brackets()` unless another is given."""

    def __init__(self, world: Any = None) -> None:
        """Makes the spaces; see `TokenEnv`."""
        super().__init__(TokenSequence.brackets() if world is None else world)


def make_vector(env_id: str, n: int) -> gym.vector.VectorEnv:
    """Returns n copies, stepped as one, of an environment written for arrays, as "CartPole-v1"."""
    return gym.make_vec(env_id, num_envs=n, vectorization_mode="vector_entry_point")


class Rollout(NamedTuple):
    """What N environments of each run did in T steps, [G, N, T] in each column."""

    observations: Tensor  # before each step, [G, N, T, D]
    actions: Tensor
    log_pi: Tensor  # log-probabilities of all actions under the policy that acted, [G, N, T, A]
    values: Tensor
    next_values: Tensor  # of the state after each step, 0 where it is terminal
    rewards: Tensor
    mask: Tensor  # False where an environment was only being reset


class Driver:
    """Steps a Gymnasium vector environment and keeps what carries over between rollouts.

    The environment resets an ended episode at its next step (`AutoresetMode.NEXT_STEP`), so the
    last observation of an episode is seen, and the step that resets is masked.

    Args:
        env: a vector environment of G * N copies, N for each run.
        runs: G.
        seed: of the environment.
    """

    def __init__(self, env: Any, *, runs: int = 1, seed: int) -> None:
        """Resets all environments with the seed."""
        self.env, self.shape = env, (runs, env.num_envs // runs)
        # Discrete actions may begin at another number than 0.
        self.start = getattr(getattr(env, "single_action_space", None), "start", 0)
        (self.observation, _), self.steps = env.reset(seed=seed), 0
        self.resetting = np.zeros(env.num_envs, dtype=bool)
        self.returns = np.zeros(env.num_envs)
        self.finished = [deque(maxlen=100) for _ in range(runs)]

    @torch.no_grad()
    def roll_out(self, model: Callable, length: int, generator: torch.Generator) -> Rollout:
        """Acts for `length` steps; a ValueError names one after which something is not finite.

        Args:
            model: from observations [G, ..., D] to log-probabilities [G, ..., A] and values.
            length: T.
            generator: a CPU generator for the actions.
        """
        columns, parameters = [], getattr(model, "parameters", list)()
        dtype = next((p.dtype for p in parameters), torch.get_default_dtype())
        for uniforms in torch.rand(length, *self.shape, generator=generator):
            observation = self._seen(dtype)
            log_pi, values = model(observation)
            actions = draw(log_pi, uniforms)
            sent = actions.flatten().numpy() + self.start
            self.observation, reward, terminated, truncated, _ = self.env.step(sent)
            self.steps += 1
            self._check_finite("reward", reward)
            of_step = (reward.astype(np.float32), terminated, self.resetting)
            columns.append((observation, actions, log_pi, values, *map(self._per_run, of_step)))
            self.returns += reward
            self.resetting = terminated | truncated
            for k in self.resetting.nonzero()[0]:
                self.finished[k // self.shape[1]].append(self.returns[k])
            self.returns[self.resetting] = 0
        observations, actions, log_pi, values, rewards, terminated, resetting = (
            torch.stack(column, dim=2) for column in zip(*columns, strict=True)
        )
        _, last_value = model(self._seen(dtype))
        next_values = torch.cat([values[..., 1:], last_value.unsqueeze(-1)], dim=-1)
        next_values = next_values.masked_fill(terminated, 0)
        return Rollout(observations, actions, log_pi, values, next_values, rewards, ~resetting)

    def mean_returns(self) -> list[float]:
        """The mean of each run's last 100 finished episodes; NaN where there is none."""
        return [sum(done) / len(done) if done else math.nan for done in self.finished]

    def _seen(self, dtype: torch.dtype) -> Tensor:
        self._check_finite("observation", self.observation)
        return self._per_run(self.observation).to(dtype)

    def _check_finite(self, name: str, x: np.ndarray) -> None:
        if not np.isfinite(x).all():
            raise ValueError(f"after step {self.steps} the environment's {name} is {x}")

    def _per_run(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(x)).view(*self.shape, *x.shape[1:])


gym.register(id="ppo_toy/TokenBandit-v0", entry_point="ppo_toy.envs:TokenBanditEnv")
gym.register(id="ppo_toy/TokenSequence-v0", entry_point="ppo_toy.envs:TokenSequenceEnv")
