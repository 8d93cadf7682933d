"""A transformer small enough to read in one sitting and to train in seconds.

Decoder-only, with learned positions (Vaswani et al. 2017, Attention Is All You Need) and the norm
before each part of a block and once at the end (Radford et al. 2019, Language Models are
Unsupervised Multitask Learners, section 2.3; Xiong et al. 2020, On Layer Normalization in the
Transformer Architecture, on why that trains without a warm-up).

Shapes: B texts, m tokens read now, n tokens read in all, C width, H heads, V response tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a `TinyGPT`.

    Args:
        n_tokens_in: tokens that may be read, of prompts and responses together.
        n_tokens_out: V; the response tokens are 0 to V - 1, and so are those of `n_tokens_in`.
        context: the most tokens of a prompt and its response together.
        width: C, numbers that stand for one token inside the model.
        layers: blocks, one after the other.
        heads: H, attention patterns of a block; the width is shared out among them.
        value_head: whether the model has `values` too.

    Raises:
        ValueError: a size is below 1, `heads` does not divide `width`, or V > `n_tokens_in`.
    """

    n_tokens_in: int
    n_tokens_out: int
    context: int
    width: int = 32
    layers: int = 2
    heads: int = 2
    value_head: bool = False

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for name, size in vars(self).items():
            if name != "value_head" and size < 1:
                raise ValueError(f"{name} is {size}; it must be 1 or more")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared out among {self.heads} heads")
        if self.n_tokens_out > self.n_tokens_in:
            raise ValueError(
                f"n_tokens_out, {self.n_tokens_out}, is above n_tokens_in, {self.n_tokens_in}"
            )


@dataclass(frozen=True, eq=False)
class Cache:
    """The keys and values of the first `length` tokens: [layers, 2, context, B, H, C / H]."""

    memory: Tensor
    length: int = 0


class Attention(nn.Module):
    """Causal self-attention: each token gathers what it wants from itself and those before it.

        softmax(q k^T / sqrt(C / H)) v   in each head, over the tokens up to its own

    Source: Vaswani et al. (2017), eq. 1 and section 3.2.2.
    """

    def __init__(self, config: GPTConfig) -> None:
        """Builds the two linear maps."""
        super().__init__()
        self.heads = config.heads
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, visible: Tensor, memory: Tensor | None = None) -> Tensor:
        """Returns what each token gathered, [B, m, C].

        Args:
            x: the m tokens that are new, [B, m, C].
            visible: which of the n tokens each may see, [m, n] of bool; the new ones come last.
            memory: keys and values of the first n - m; those of the new ones are written into it.
        """
        m, n = visible.shape
        per_head = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 1, 0, 3, 4)
        query, key_value = per_head[0], per_head[1:]  # one and two of [m, B, H, C / H]
        if memory is not None:
            memory[:, n - m : n] = key_value
            key_value = memory[:, :n]
        key, value = key_value
        if m == 1:  # it may see all n, and for one token the plain formula is the quicker
            weights = ((query * key).sum(-1, keepdim=True) / key.shape[-1] ** 0.5).softmax(dim=0)
            gathered = (weights * value).sum(dim=0).unsqueeze(dim=2)  # [B, H, m, C / H]
        else:
            query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out(gathered.transpose(1, 2).flatten(start_dim=2))


class Block(nn.Module):
    """Tokens exchange what they know (attention), then each works on its own (perceptron)."""

    def __init__(self, config: GPTConfig) -> None:
        """Builds the layers."""
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.norm_mlp = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
        )

    def forward(self, x: Tensor, visible: Tensor, memory: Tensor | None = None) -> Tensor:
        """Returns the tokens, [B, m, C], each with two things added; arguments of `Attention`."""
        x = x + self.attention(self.norm_attention(x), visible, memory)
        return x + self.mlp(self.norm_mlp(x))


class TinyGPT(nn.Module):
    """A policy that reads prompt and response from left to right.

    The weights are drawn in double precision on the CPU and then rounded, so that they are the
    same on every machine: normal with standard deviation 1 / sqrt(C), a tenth of that in the head,
    so that a new model is close to uniform. Biases and the value head are 0.

    Args:
        config: the sizes.
        generator: a CPU generator, from which the weights are drawn.
        dtype: of the weights; torch's default if None.
    """

    def __init__(
        self, config: GPTConfig, *, generator: torch.Generator, dtype: torch.dtype | None = None
    ) -> None:
        """Builds the layers and draws the weights; see the class."""
        super().__init__()
        self.config = config
        # PyTorch's layers begin with random weights; the global generator is put back after.
        with torch.random.fork_rng(devices=[]):
            self.tokens = nn.Embedding(config.n_tokens_in, config.width)
            self.positions = nn.Embedding(config.context, config.width)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
            self.norm = nn.LayerNorm(config.width)
            self.head = nn.Linear(config.width, config.n_tokens_out)
            self.value_head = nn.Linear(config.width, 1) if config.value_head else None
        causal = torch.ones(config.context, config.context, dtype=torch.bool).tril()
        self.register_buffer("causal", causal, persistent=False)
        self.to(dtype or torch.get_default_dtype())
        self._draw_weights(generator)

    @torch.no_grad()
    def _draw_weights(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name.startswith("value_head"):
                parameter.zero_()
            elif parameter.dim() == 2:
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                scale = 0.1 if name.startswith("head") else 1.0
                parameter.copy_(drawn * scale * self.config.width**-0.5)

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Returns the logits of each response token, and of the one that would come next.

        Args:
            prompts: [B, P] tokens, 0 to n_tokens_in - 1, P >= 1.
            responses: the response tokens so far, [B, t], 0 to V - 1.

        Returns:
            Logits in nats, [B, t + 1, V].

        Raises:
            ValueError: a token is out of its vocabulary, or a text has no prompt or does not fit.
        """
        return self.head(self._states(prompts, responses))

    def values(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Returns the value of the state before each token, [B, t + 1], in reward; 0 when new.

        Raises:
            ValueError: as for `forward`, or the model has no value head.
        """
        if self.value_head is None:
            raise ValueError("this model has no value head; GPTConfig(value_head=True) gives one")
        return self.value_head(self._states(prompts, responses)).squeeze(-1)

    @torch.inference_mode()
    def next_logits(
        self, prompts: Tensor, responses: Tensor, cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """Returns the logits of the next token alone, [B, V], and the cache for the one after.

        Only the tokens that the cache does not hold yet are checked and read. What comes back is
        the last position of `forward`, up to rounding, without gradient.

        Args:
            prompts: as for `forward`.
            responses: as for `forward`, longer than when the cache was made.
            cache: from the call before, on the same prompts and a beginning of the same
                responses; it is written to. None starts anew.

        Raises:
            ValueError: as for `forward`.
        """
        if cache is None:
            config, weight = self.config, self.head.weight
            room = (config.context, len(prompts), config.heads, config.width // config.heads)
            cache = Cache(weight.new_empty(config.layers, 2, *room))
        new = self._text(prompts, responses, cache.length)
        x = self.norm(self._read(new, cache)[:, -1])
        return self.head(x), Cache(cache.memory, length=cache.length + new.shape[1])

    def _states(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """What the model knows before each response token and at the end, [B, t + 1, C]."""
        x = self._read(self._text(prompts, responses))
        # Cut before the norm, which lays its result out afresh: PyTorch multiplies a part of a
        # tensor by another route when there is gradient, and a KL of 0 would be 1e-17.
        return self.norm(x[:, prompts.shape[1] - 1 :])

    def _read(self, new: Tensor, cache: Cache | None = None) -> Tensor:
        """Runs the tokens that are new to the cache, [B, m], through all blocks, [B, m, C]."""
        start = cache.length if cache else 0
        n = start + new.shape[1]
        x = self.tokens(new) + self.positions.weight[start:n]
        visible = self.causal[start:n, :n]
        for layer, block in enumerate(self.blocks):
            x = block(x, visible, cache.memory[layer] if cache else None)
        return x

    def _text(self, prompts: Tensor, responses: Tensor, start: int = 0) -> Tensor:
        """Prompt and response in one, checked, from token `start` on: [B, P + t - start]."""
        parts = [prompts[:, start:], responses[:, max(start - prompts.shape[1], 0) :]]
        for kind, tokens, last in (
            ("prompt", parts[0], self.config.n_tokens_in - 1),
            ("response", parts[1], self.config.n_tokens_out - 1),
        ):
            known = tokens.clamp(0, last)
            if not torch.equal(known, tokens):
                stranger = tokens[known != tokens][0]
                raise ValueError(f"a {kind} holds the token {stranger}; it must be 0 to {last}")
        if not 1 <= prompts.shape[1] <= self.config.context - responses.shape[1]:
            raise ValueError(
                f"a prompt of {prompts.shape[1]} tokens and a response of {responses.shape[1]} do "
                f"not fit: the context is {self.config.context}, and a prompt has at least 1"
            )
        return torch.cat(parts, dim=1)
