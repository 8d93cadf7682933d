"""An expectation is a weighted batch of trajectories.

`sample` draws responses and gives each the same weight, a constant. `enumerate_all` lists every
response and weighs it by its probability, which carries gradient. All that comes after (reward,
KL, objective) is the same code for both.

Shapes: B trajectories, P prompt tokens, T response tokens, V vocabulary. A policy with a leading
axis of runs, `policy.runs == (G,)`, puts G before B in everything that depends on it.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppo_toy.axes import check_axes, check_counts, check_generator
from ppo_toy.contract import Policy, World, check_logits, check_still, device_of, known, rewards_of
from ppo_toy.enumeration import list_responses
from ppo_toy.kl import masked_kl
from ppo_toy.sampling import draw, roll_out

AXES = {"prompts": "B P", "responses": "B T", "mask": "B T", "weights": "B"}


@dataclass(frozen=True, eq=False)
class Trajectories:
    """A batch of responses that stands for an expectation.

    Attributes:
        prompts: [B, P] tokens.
        responses: [B, T] tokens; what the mask leaves out is padding.
        mask: [B, T], True up to and including the end token.
        weights: [B], of each trajectory in the expectation; they sum to 1.

    A ValueError names parts that do not fit together, or are of another type.
    """

    prompts: Tensor
    responses: Tensor
    mask: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        """Looks at shapes and types."""
        check_axes(AXES, vars(self))
        for name in ("prompts", "responses"):
            if getattr(self, name).is_floating_point():
                raise ValueError(f"{name} is of {getattr(self, name).dtype}; tokens are integers")

    @property
    def tokens(self) -> Tensor:
        """The responses with every padded position set to token 0, [B, T]."""
        return self.responses.where(self.mask, 0)


def sample(policy: Policy, world: Any, n: int, *, generator: torch.Generator) -> Trajectories:
    """Draws n prompts and a response to each; every weight is the constant 1/n.

    Args:
        policy: asked once for each token, in inference mode. One that offers `next_logits` may
            keep what it computed for the tokens before; any other reads the whole prefix again.
            Each run of a policy with runs draws prompts and responses of its own.
        world: gives the prompts, the response length T and the end token.
        n: the number of trajectories of each run, >= 1.
        generator: a CPU generator; the numbers do not depend on where the policy computes.

    Returns:
        A batch of B = n trajectories on the policy's device, weights in double precision.

    Raises:
        ValueError: `n` is below 1, the world is none, or the policy's logits have the wrong shape
            or are NaN.
    """
    check_counts(n=n)
    check_generator(generator)
    check_still("policy", policy)
    world = known(world)
    return respond(policy, world, draw_prompts(policy, world, n, generator), generator)


def draw_prompts(policy: Policy, world: World, n: int, generator: torch.Generator) -> Tensor:
    """Draws n prompts, [B, P], for each run of the policy."""
    numbers = (*getattr(policy, "runs", ()), n)
    uniforms = torch.rand(numbers, generator=generator, dtype=torch.float64)
    return world.prompts[draw(world.prompt_weights.log(), uniforms)].to(device_of(policy))


def respond(
    policy: Policy, world: World, prompts: Tensor, generator: torch.Generator
) -> Trajectories:
    """Draws a response to each prompt; see `sample`."""
    lead, device = prompts.shape[:-1], prompts.device
    numbers = (world.response_length, *lead)
    uniforms = torch.rand(numbers, generator=generator, dtype=torch.float64).to(device)
    responses, mask = roll_out(policy, world, prompts, uniforms)
    weights = torch.full(lead, 1 / lead[-1], dtype=torch.float64, device=device)
    # What was made in inference mode must not enter a gradient; a copy may.
    return Trajectories(prompts, responses.clone(), mask.clone(), weights)


def enumerate_all(policy: Policy, world: Any, *, name: str = "policy") -> Trajectories:
    """Lists every response to every prompt; a weight is the probability of its trajectory.

    The weights are differentiated with respect to the policy, which is what makes
    `penalized_objective(...).backward()` on this batch the true gradient.

    Args:
        policy: called once, on every prefix of T - 1 tokens. With runs, only the weights have
            their axis.
        world: any world with at most `enumeration.MAX_RESPONSES` responses over all its prompts.
        name: of the policy, for errors.

    Returns:
        One trajectory for each prompt and response, in the order of the prompts, then of the
        tokens; the padding of a short response repeats the end token.

    Raises:
        ValueError: too many responses, said before any is listed; no world, or no policy for it.
    """
    world = known(world)
    check_still(name, policy)
    responses, mask = list_responses(world)
    n_prompts, n_responses = len(world.prompts), len(responses)
    device = device_of(policy)
    batch = Trajectories(
        prompts=world.prompts.repeat_interleave(n_responses, dim=0).to(device),
        responses=responses.repeat(n_prompts, 1).to(device),
        mask=mask.repeat(n_prompts, 1).to(device),
        weights=world.prompt_weights.repeat_interleave(n_responses).to(device),
    )
    parents, family = families(batch)
    log_p = _numbers(policy, parents, name, len(world.vocabulary)).index_select(-3, family)
    p_response = of_tokens(log_p, batch).sum(dim=-1).exp()
    return replace(batch, weights=p_response * batch.weights)


def log_probs(policy: Policy, trajectories: Trajectories) -> Tensor:
    """Log-probability of each response token under the policy, differentiated.

    Returns:
        [B, T], in nats; 0 where the mask is False.

    Raises:
        ValueError: the policy's answer has the wrong shape, or no numbers for a state.
    """
    parents, family = families(trajectories)
    step_log_p = _numbers(policy, parents).index_select(-3, family)
    return of_tokens(step_log_p, trajectories)


def per_step_kl(policy: Policy, reference: Policy, trajectories: Trajectories) -> Tensor:
    """Exact KL(policy || reference) at every state that a trajectory passes through.

    At step t the state is the prompt and the tokens before t; the sum runs over the whole
    vocabulary, not over the token drawn. Differentiated with respect to the policy only.

    Returns:
        [B, T], in nats; 0 where the mask is False.

    Raises:
        ValueError: the two have different vocabularies, or as for `log_probs`.
    """
    parents, family = families(trajectories)
    log_pi = _numbers(policy, parents)
    with torch.no_grad():
        log_ref = _numbers(reference, parents, "reference", log_pi.shape[-1])
    return masked_kl(log_pi, log_ref, parents.mask).index_select(-2, family)


def step_log_probs(
    policy: Policy, trajectories: Trajectories, name: str = "policy", n_tokens: int | None = None
) -> Tensor:
    """Log-probabilities of the whole vocabulary at every step, [B, T, V], in nats.

    `of_tokens` and `masked_kl` start from here, so that training, which needs both, calls the
    policy once.

    Raises:
        ValueError: the policy's answer has the wrong shape, or not `n_tokens` tokens if given.
    """
    logits = policy(trajectories.prompts, trajectories.tokens[..., :-1])
    check_logits(name, logits, trajectories.mask.shape[-2:], n_tokens)
    return logits.log_softmax(dim=-1)


def _numbers(
    policy: Policy, trajectories: Trajectories, name: str = "policy", n_tokens: int | None = None
) -> Tensor:
    """`step_log_probs`, unless those of a state are NaN."""
    log_p = step_log_probs(policy, trajectories, name, n_tokens)
    bad = log_p[..., 0].isnan()
    if bad.any() and (bad := bad & trajectories.mask).any():
        *row, t = bad.nonzero()[0].tolist()[-trajectories.tokens.dim() :]
        prompt, said = (x[tuple(row)].tolist() for x in (trajectories.prompts, trajectories.tokens))
        raise ValueError(
            f"after the prompt {prompt} and the tokens {said[:t]} the {name}'s logits hold NaN "
            "or inf, or no token has any probability"
        )
    return log_p


def families(trajectories: Trajectories) -> tuple[Trajectories, Tensor]:
    """One of each family of siblings, and for every response the row of its family, [B].

    Siblings differ in the last token alone, so that they pass through the same T states: a policy
    asked about one has answered for all. `enumerate_all` lists siblings next to each other, about
    V to a family; of a sampled batch, nearly every response is a family of its own.
    """
    prompts, mask = trajectories.prompts, trajectories.mask
    states = torch.cat([prompts, trajectories.tokens[..., :-1], mask], dim=-1)
    states = states.movedim(-2, 0).flatten(start_dim=1)
    first = (states[1:] != states[:-1]).any(dim=1)
    first = torch.cat([first.new_ones(1), first])
    per_token = (x[..., first, :] for x in (prompts, trajectories.responses, mask))
    return Trajectories(*per_token, trajectories.weights[..., first]), first.cumsum(dim=0) - 1


def of_tokens(step_log_p: Tensor, trajectories: Trajectories) -> Tensor:
    """Picks the response tokens out of `step_log_probs`: [B, T], 0 where masked."""
    index = trajectories.tokens.expand(step_log_p.shape[:-1]).unsqueeze(-1)
    return step_log_p.gather(-1, index).squeeze(-1).masked_fill(~trajectories.mask, 0)


def score(world: Any, trajectories: Trajectories) -> Tensor:
    """R of each trajectory, by the world's reward, which sees prompts and responses in two axes.

    Returns:
        [B], in reward; no gradient.

    Raises:
        ValueError: a reward is not finite (the response is named), or there is not one for each.
    """
    each = (x.flatten(end_dim=-2) for x in (trajectories.prompts, trajectories.responses))
    return rewards_of(world, *each).unflatten(0, trajectories.responses.shape[:-1])
