"""PPO with a value function, for environments that this course did not make.

The same `objectives` and `advantages` as everywhere else; what is new is that an episode can be cut
short (truncated) without having ended (terminated), and that there is no reference policy. The KL
here is to the policy that drew the batch, kl_old. G runs with different random numbers stand side
by side in every tensor and share nothing.

Departures from Schulman et al. (2017): each epoch is one minibatch, the advantages of a batch are
whitened, and the norm of a gradient is limited. (Step size and clip shrink in their Table 5 too.)
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ppo_toy.advantages import gae, whiten
from ppo_toy.axes import check_counts, check_generator, check_range
from ppo_toy.contract import check_env, check_learns
from ppo_toy.envs import Driver, Rollout
from ppo_toy.kl import masked_kl
from ppo_toy.kl_controllers import adapted, double_or_halve, fixed
from ppo_toy.objectives import clipped_surrogate, kl_penalty_surrogate, value_loss
from ppo_toy.progress import bar


class ActorCritic(nn.Module):
    """Two networks of the same shape for each run: one for the logits, one for the value.

    Both have two hidden layers of tanh units. All weights of a layer stand in one tensor, so that
    one matrix product serves every network.

    Args:
        n_observations: D, numbers in an observation.
        n_actions: A, actions to choose from.
        runs: G.
        hidden: units in a layer.
        generator: a CPU generator for the initial weights, which are orthogonal.
    """

    def __init__(
        self,
        n_observations: int,
        n_actions: int,
        *,
        runs: int = 1,
        hidden: int = 64,
        generator: torch.Generator,
    ) -> None:
        """Draws the weights; see the class."""
        super().__init__()
        self.runs, self.sizes = runs, (n_observations, n_actions)
        widths = [n_observations, hidden, hidden, n_actions]
        # A small last layer of the actor starts every policy close to uniform.
        gains = [(math.sqrt(2), math.sqrt(2)), (math.sqrt(2), math.sqrt(2)), (0.01, 1.0)]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out, (actor, critic) in zip(widths[:-1], widths[1:], gains, strict=True):
            weights = torch.empty(2 * runs, fan_in, fan_out)
            for k, weight in enumerate(weights):
                nn.init.orthogonal_(weight, actor if k < runs else critic, generator=generator)
            self.weights.append(nn.Parameter(weights))
            self.biases.append(nn.Parameter(torch.zeros(2 * runs, 1, fan_out)))
        # A ParameterList looks its entries up by name; these tuples are read at every step.
        self.layers = tuple(zip(self.weights, self.biases, strict=True))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities [G, ..., A], in nats, and values [G, ...] at [G, ..., D]."""
        lead = observations.shape[:-1]
        x = observations.reshape(1, self.runs, -1, observations.shape[-1])
        x = x.expand(2, -1, -1, -1).flatten(end_dim=1)
        (first, first_bias), *others = self.layers
        x = torch.baddbmm(first_bias, x, first)
        for weight, bias in others:
            # tanh(x) = 2 * (sigmoid(2 * x) - 1/2), and the sigmoid is many times faster here.
            x = torch.baddbmm(bias, (2 * x).sigmoid() - 0.5, weight, alpha=2)
        actor, critic = x.split(self.runs)
        return actor.log_softmax(dim=-1).view(*lead, -1), critic[..., 0].view(lead)


class Curve(NamedTuple):
    """How training went, one row for each rollout.

    Attributes:
        steps: environment steps of one run so far, [K].
        mean_return: of the run's last 100 finished episodes, [K, G]; NaN before the first.
        kl_old: mean KL(old || new) of a state after the update, in nats, [K, G].
        beta_old: its coefficient in force, [K, G].
    """

    steps: np.ndarray
    mean_return: np.ndarray
    kl_old: np.ndarray
    beta_old: np.ndarray


def train_on(
    env: Any,
    model: ActorCritic,
    *,
    steps: int,
    length: int,
    epochs: int,
    learning_rate: float,
    gamma: float,
    lam: float,
    generator: torch.Generator,
    seed: int,
    clip: float = math.inf,
    beta_old: float = 0.0,
    kl_target: float | None = None,
    max_norm: float = 0.5,
) -> Curve:
    """Trains the model in place, with PPO's clip, its KL penalty, or neither.

    Args:
        env: a Gymnasium vector environment with discrete actions that resets at the next step,
            with as many copies for each run of the model.
        model: policy and value.
        steps: environment steps of each run in all.
        length: T, steps of each environment in a rollout.
        epochs: updates from one rollout.
        learning_rate: of Adam at the start; falls linearly to 0.
        gamma: discount.
        lam: of GAE.
        generator: a CPU generator for the actions.
        seed: of the environments.
        clip: epsilon at the start, falling linearly to 0; `math.inf` for none.
        beta_old: coefficient of KL(old || new), for whitened advantages; if above 0, in place of
            the clip.
        kl_target: adapts beta_old by double-or-halve to this KL, nats per state; None keeps it.
        max_norm: the gradient of a run is scaled down to this norm.

    Raises:
        ValueError: the environment does not fit the model or says what is not finite, a setting is
            out of its range, or the steps do not fill one rollout.
    """
    check_env(env, runs=model.runs, sizes=model.sizes)
    for name, number in (("clip", clip), ("max_norm", max_norm)):
        check_range(name, number, "G > 0")
    check_range("beta_old", beta_old, "G >= 0")
    check_range("learning_rate", learning_rate, "G > 0, < inf")
    check_counts(steps=steps, length=length, epochs=epochs)
    check_generator(generator)
    if kl_target is not None and beta_old == 0:
        raise ValueError("beta_old is 0, which no doubling brings to kl_target; start above 0")
    per_rollout = length * env.num_envs // model.runs
    if steps < per_rollout:
        raise ValueError(f"steps is {steps}; one rollout has {per_rollout}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(model.parameters(), lr=learning_rate, eps=1e-5, fused=True)
    controller = fixed if kl_target is None else partial(double_or_halve, kl_target=kl_target)
    driver = Driver(env, runs=model.runs, seed=seed)
    beta, rows = torch.full((model.runs,), float(beta_old)), []
    for k in bar(range(steps // per_rollout), "training"):
        left = 1 - k * per_rollout / steps
        adam.param_groups[0]["lr"] = learning_rate * left
        rollout = driver.roll_out(model, length, generator)
        advantages = gae(rollout.rewards, rollout.values, rollout.mask, gamma=gamma, lam=lam,
            next_values=rollout.next_values)  # fmt: skip
        batch = (rollout, advantages, whiten(advantages, rollout.mask))
        for _ in range(epochs):
            check_learns(loss := _loss(model, batch, clip * left, beta))
            gradients = torch.autograd.grad(loss.sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            _limit_norms(gradients, model.runs, max_norm)
            adam.step()
        kl_old = _kl_old(model, rollout)
        if not kl_old.isfinite().all():
            raise ValueError(f"KL(old || new) is {kl_old.tolist()} in rollout {k}: no numbers")
        rows.append((driver.mean_returns(), kl_old.tolist(), beta.tolist()))
        beta = adapted("beta_old", controller, beta, kl_old)
    steps_so_far = per_rollout * np.arange(1, len(rows) + 1)
    return Curve(steps_so_far, *np.array(rows).transpose(1, 0, 2))


def _loss(model: ActorCritic, batch: tuple, clip: float, beta: Tensor) -> Tensor:
    """To be minimised, one for each run: value loss less surrogate, means over the steps."""
    rollout, advantages, whitened = batch
    log_pi, values = model(rollout.observations)
    index, mask = rollout.actions.unsqueeze(-1), rollout.mask
    log_probs, old_log_probs = (x.gather(-1, index).squeeze(-1) for x in (log_pi, rollout.log_pi))
    # Whitened advantages are 0 where masked, so that a masked step adds nothing.
    ratios = (log_probs, old_log_probs, whitened)
    if beta.any():
        gain = kl_penalty_surrogate(*ratios, masked_kl(rollout.log_pi, log_pi, mask), beta)
    else:
        gain = clipped_surrogate(*ratios, clip=clip)
    weights = (1 / mask.sum(dim=(1, 2))).unsqueeze(1).expand(mask.shape[:-1])
    objective = (weights * gain.sum(dim=-1)).sum(dim=-1)
    return value_loss(values, advantages + rollout.values, mask, weights) - objective


def _limit_norms(gradients: Sequence[Tensor], runs: int, max_norm: float) -> None:
    """Scales the gradients of each run, over actor and critic together, to at most `max_norm`."""
    per_run = [gradient.view(2, runs, *gradient.shape[1:]) for gradient in gradients]
    norms = [torch.linalg.vector_norm(gradient, dim=(0, 2, 3)) for gradient in per_run]
    norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1).view(-1, 1, 1)
    for gradient in per_run:
        gradient.mul_(scale)


@torch.no_grad()
def _kl_old(model: ActorCritic, rollout: Rollout) -> Tensor:
    log_pi, _ = model(rollout.observations)
    kl = masked_kl(rollout.log_pi, log_pi, rollout.mask)
    return kl.sum(dim=(1, 2)) / rollout.mask.sum(dim=(1, 2))
