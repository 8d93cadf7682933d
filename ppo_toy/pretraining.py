"""Where a reference policy comes from: predict the next token of examples."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppo_toy.policies import device_of
from ppo_toy.progress import bar


def pretrain(
    model: nn.Module,
    prompts: Tensor,
    responses: Tensor,
    mask: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    weights: Tensor | None = None,
) -> Tensor:
    """Trains the model in place to predict the next token of the examples; returns the losses.

        loss = -mean over the batch of sum_t log p(y_t | x, y_<t)

    The mean loss cannot fall below the entropy of the responses given the prompts, and what it
    has above it is KL(examples || model). The learning rate falls in a straight line towards 0.

    Args:
        model: a policy that is a module.
        prompts: of the N examples, [N, P].
        responses: their tokens, [N, T].
        mask: True up to and including the end token, [N, T]; no other token is learned.
        steps: updates, >= 1.
        batch_size: examples drawn for each update, with replacement, >= 1.
        learning_rate: of Adam at the first step, > 0.
        generator: a CPU generator, which draws the examples.
        weights: how often each example is drawn, in proportion, [N]; evenly if None.

    Returns:
        The loss of each batch before its update, in nats per response, [steps].

    Raises:
        ValueError: a number or a weight is out of its range, or there is not a response, a mask
            and a weight for each prompt.

    Source: Radford et al. (2018), Improving Language Understanding by Generative Pre-Training,
    eq. 1.
    """
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be 1 or more")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate}; it must be positive and finite")
    weights = torch.ones(len(prompts)) if weights is None else weights.detach().cpu()
    if not len(prompts) == len(responses) == len(weights) or mask.shape != responses.shape:
        raise ValueError(
            f"there are {len(prompts)} prompts, responses {tuple(responses.shape)}, a mask "
            f"{tuple(mask.shape)} and {len(weights)} weights"
        )
    share = weights.double().cumsum(dim=0)
    if (weights < 0).any() or not 0 < share[-1] < math.inf:
        raise ValueError(f"the weights sum to {share[-1]}; each must be 0 or more, one more than 0")
    share = share / share[-1]
    device = device_of(model)
    adam = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    for step in bar(range(steps), "pretraining"):
        adam.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        uniforms = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        which = torch.searchsorted(share, uniforms, right=True)
        x, y, counts = (t[which.to(t.device)].to(device) for t in (prompts, responses, mask))
        y = y.where(counts, 0)
        token_losses = F.cross_entropy(model(x, y[:, :-1]).mT, y, reduction="none")
        loss = token_losses.masked_fill(~counts, 0).sum(dim=1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()
