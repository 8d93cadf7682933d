"""Policies that keep one row of logits for each prefix.

A policy is any callable `policy(prompts [B, P], responses [B, t]) -> logits [B, t + 1, V]`:
position i holds the logits of response token i, given the prompt and the i tokens before it.
"""

import copy
import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppo_toy.contract import Policy as Policy
from ppo_toy.contract import device_of as device_of
from ppo_toy.contract import table_of
from ppo_toy.enumeration import MAX_LOGITS

SMALL = 1e-3  # exp(x) of a smaller x loses digits that exp(x) - 1 keeps


class TabularPolicy(nn.Module):
    """A row of logits for every prompt and every prefix of fewer than T tokens.

    The prefixes of one prompt are numbered as nodes of a tree: the empty one is 0, and node k
    followed by token v is V * k + v + 1. Every distribution over responses can be written so, the
    best policy included.

    With a leading axis of runs, G tables stand side by side in one tensor, and one call advances
    all of them: everything that comes out has the axis too. Runs share nothing.

    Args:
        world: gives prompts [n, P], the vocabulary and the response length.
        logits: one row for each prompt and prefix, [S, V] or [G, S, V], in nats; zeros by default.

    Raises:
        ValueError: `logits` has another shape, two prompts are the same, or the table would be
            too large; that is said before memory is touched.
    """

    def __init__(self, world: Any, logits: Tensor | None = None) -> None:
        """Builds the table; see the class."""
        super().__init__()
        prompts = table_of(world.prompts)
        self.n_tokens = len(world.vocabulary)
        self.response_length = world.response_length
        self.n_nodes = sum(self.n_tokens**length for length in range(self.response_length))
        table = (self.n_nodes * len(prompts), self.n_tokens)
        if math.prod(table) > MAX_LOGITS:
            raise ValueError(
                f"this world needs a table of 10^{math.log10(math.prod(table)):.1f} logits "
                f"({len(prompts)} prompts, {self.n_tokens} tokens, length "
                f"{self.response_length}); at most {MAX_LOGITS:,} are kept"
            )
        if logits is None:
            logits = torch.zeros(table, dtype=torch.float64)
        logits = torch.as_tensor(logits)
        if logits.dim() not in (2, 3) or logits.shape[-2:] != table:
            raise ValueError(
                f"logits has shape {tuple(logits.shape)}; this world needs {table}, "
                "with or without a leading axis of runs"
            )
        if len(prompts.unique(dim=0)) < len(prompts):
            raise ValueError("two of the world's prompts are the same; each needs rows of its own")
        self.logits = nn.Parameter(logits.detach().clone())
        self.register_buffer("known_prompts", prompts.clone())

    @classmethod
    def random(
        cls, world: Any, *, generator: torch.Generator, scale: float = 1.0
    ) -> "TabularPolicy":
        """Returns a policy with normal logits of mean 0 and standard deviation `scale`, in nats."""
        size = cls(world).logits.shape
        return cls(world, scale * torch.randn(size, generator=generator, dtype=torch.float64))

    @classmethod
    def of_responses(
        cls, world: Any, batch: Any, log_mass: Tensor, otherwise: Tensor
    ) -> "TabularPolicy":
        """Returns the policy that draws each response in proportion to exp(log_mass), [B].

        The batch is every response, as `enumerate_all` lists them. States below which there is no
        mass get their logits from `otherwise`, [B, T, V].
        """
        policy = cls(world).to(log_mass.device)
        rows = policy.rows(batch.prompts, batch.tokens)[:, :-1][batch.mask]
        entries = rows * policy.n_tokens + batch.tokens[batch.mask]
        mass = log_mass.unsqueeze(1).expand(batch.mask.shape)[batch.mask]
        table = logsumexp_by(mass, entries, policy.logits.numel()).view_as(policy.logits)
        with torch.no_grad():
            policy.logits[rows] = otherwise[batch.mask]
            reached = table.isfinite().any(dim=1)
            policy.logits[reached] = table[reached]
        return policy

    def repeat(self, runs: int) -> "TabularPolicy":
        """Returns a policy of `runs` equal tables, each of which learns for itself.

        Raises:
            ValueError: `runs` is below 1, or this policy has an axis of runs already.
        """
        if runs < 1:
            raise ValueError(f"runs is {runs}; it must be 1 or more")
        if self.runs:
            raise ValueError(f"the policy has runs already, {self.runs}; repeat a single table")
        twin = copy.deepcopy(self)
        twin.logits = nn.Parameter(self.logits.detach().expand(runs, -1, -1).clone())
        return twin

    @property
    def runs(self) -> tuple[int, ...]:
        """The leading axis of runs: (G,), or () without one."""
        return tuple(self.logits.shape[:-2])

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Returns the logits of each position.

        Args:
            prompts: [B, P]; [G, B, P] where each run has its own.
            responses: the tokens so far, [B, t] or [G, B, t], with t from 0 to T.

        Returns:
            Logits in nats, [B, t + 1, V] or [G, B, t + 1, V]. After a full response there is
            nothing to choose, and the last position repeats some row of the table.

        Raises:
            ValueError: a prompt is not one of the world's, or a response is too long or holds
                something that is no token.
        """
        rows = self.rows(prompts, responses)
        if self.runs:
            first_rows = torch.arange(*self.runs, device=rows.device) * self.logits.shape[-2]
            rows = rows + first_rows.view(-1, 1, 1)
        return F.embedding(rows, self.logits.flatten(end_dim=-2))

    def rows(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Returns the row of the table that each position reads, [B, t + 1]; see `forward`."""
        if responses.numel():
            lowest, highest = (x.item() for x in responses.aminmax())
            if lowest < 0 or highest >= self.n_tokens:
                tokens = f"0 to {self.n_tokens - 1}"
                raise ValueError(f"a response holds a token that is not one of {tokens}")
        if responses.shape[-1] > self.response_length:
            raise ValueError(
                f"the responses have {responses.shape[-1]} tokens, the table is made for "
                f"{self.response_length}"
            )
        prompt = index_of_prompts(prompts, self.known_prompts)
        nodes = [torch.zeros_like(prompt)]
        for child in (responses + 1).unbind(dim=-1):
            nodes.append(torch.add(child, nodes[-1], alpha=self.n_tokens))
        # The node of a full response lies beyond the table.
        node = torch.stack(nodes, dim=-1).clamp(max=self.n_nodes - 1)
        return self.n_nodes * prompt.unsqueeze(-1) + node


def index_of_prompts(prompts: Tensor, known: Tensor) -> Tensor:
    """Returns which of the known [n, P] each prompt [..., P] is, [...]; a ValueError if none."""
    if prompts.shape[-1] != known.shape[-1]:
        raise ValueError(
            f"the prompts have {prompts.shape[-1]} tokens, the world's {known.shape[-1]}"
        )
    found, index = (prompts.unsqueeze(-2) == known).all(dim=-1).max(dim=-1)
    if not found.all():
        raise ValueError(f"prompt {prompts[~found][0].tolist()} is not among the world's prompts")
    return index


def freeze(policy: nn.Module) -> nn.Module:
    """Returns a copy that shares nothing with the policy and asks for no gradient: a reference."""
    return copy.deepcopy(policy).eval().requires_grad_(False)


def fingerprint(policy: nn.Module) -> str:
    """Returns the SHA-256 of the state; it changes as soon as one bit of one tensor in it does.

    Names, types and shapes count too, the device does not.
    """
    digest = hashlib.sha256()
    for name, tensor in policy.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def logsumexp_by(x: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """The logsumexp of the numbers in each group, [n_groups]; -inf for a group without any."""
    largest = torch.full((n_groups,), -torch.inf, dtype=x.dtype, device=x.device)
    largest = largest.scatter_reduce(0, group, x, "amax")
    shift = largest.where(largest.isfinite(), 0)
    total = torch.zeros_like(largest).index_add(0, group, (x - shift[group]).exp())
    return total.log() + shift


def log_mean_exp_by(x: Tensor, log_p: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Returns the log of the mean of exp(x) in each group, x counting in proportion to p."""
    log_mass = logsumexp_by(log_p, group, n_groups)
    if x.abs().max() >= SMALL:
        return logsumexp_by(log_p + x, group, n_groups) - log_mass
    share = (log_p - log_mass[group]).exp()
    return torch.zeros_like(log_mass).index_add(0, group, share * x.expm1()).log1p()
