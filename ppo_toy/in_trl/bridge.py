"""Our policies, worlds and words as transformers has them, and back."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ppo_toy import reviews
from ppo_toy.contract import known
from ppo_toy.gpt import GPTConfig, TinyGPT
from ppo_toy.policies import freeze

MODEL_TYPE = "ppo_toy_tiny_gpt"
NEVER = -1e4  # the logit of a prompt token as a response token: its probability is exactly 0
NO_END = "<end>"  # the word that never comes, in a world whose responses have one length


def words_of(world: Any) -> tuple[list[str], int]:
    """Returns the word of each token of a world, prompt tokens too, and which token ends.

    A world names its prompt tokens by an attribute `words`, [n_tokens] strings that begin with its
    vocabulary; without it, token 9 is `<9>`. A world without an end token gets a word for it.

    Raises:
        ValueError: two tokens have one word, or a word is empty or has a space in it.
    """
    looked_at = known(world)
    words = list(getattr(world, "words", looked_at.vocabulary))
    words += [f"<{token}>" for token in range(len(words), int(looked_at.prompts.max()) + 1)]
    end = looked_at.end_token
    if end is None:
        words, end = [*words, NO_END], len(words)
    for token, word in enumerate(words):
        if word.split() != [word] or words.index(word) != token:
            raise ValueError(f"token {token} is {word!r}; words are distinct and have no spaces")
    return words, end


def text_of(tokens: Sequence[int], words: Sequence[str]) -> str:
    """Returns tokens as text: their words with a space between."""
    return " ".join(words[token] for token in tokens)


def tokenizer(words: Sequence[str] = reviews.WORDS, end: int = reviews.END) -> Any:
    """Returns a tokenizer of transformers that knows these words, divided by spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(WordLevel({w: k for k, w in enumerate(words)}, unk_token=words[end]))
    tokens.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token=words[end], eos_token=words[end], padding_side="left"
    )


def _classes() -> tuple[type, type]:
    """GPT-2 with a bias in its head, which ours has, and its config; known to transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    class TinyGPTConfig(GPT2Config):
        model_type = MODEL_TYPE
        # TRL asks for it where the model is not one of transformers' own.
        auto_map: ClassVar[dict] = {}

    class TinyGPTForCausalLM(GPT2LMHeadModel):
        config_class = TinyGPTConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
            self.post_init()

    AutoConfig.register(MODEL_TYPE, TinyGPTConfig, exist_ok=True)
    AutoModelForCausalLM.register(TinyGPTConfig, TinyGPTForCausalLM, exist_ok=True)
    return TinyGPTConfig, TinyGPTForCausalLM


def _pairs(policy: TinyGPT, model: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each of our parameters with the part of GPT-2's that it becomes, laid out alike."""
    for ours, (name, theirs) in zip(policy.parameters(), model.named_parameters(), strict=True):
        # Both list their parameters in the same order; GPT-2 keeps matrices in a block transposed,
        # and has rows for the end that never comes, its head for the prompt tokens too.
        yield ours, theirs.t() if ".c_" in name and theirs.dim() == 2 else theirs[: len(ours)]


@torch.no_grad()
def to_transformers(policy: TinyGPT, end: int = reviews.END) -> Any:
    """Returns a transformers model that gives every response the probability that the policy does.

    Args:
        policy: without a value head; its response tokens come first in its vocabulary.
        end: the token that ends a response; one beyond all tokens never comes.

    Raises:
        ValueError: the policy has a value head, for which GPT-2 has no place.
    """
    sizes = policy.config
    if sizes.value_head:
        raise ValueError("value_head is True; transformers' GPT-2 has no place for one")
    config_class, model_class = _classes()
    config = config_class(vocab_size=max(sizes.n_tokens_in, end + 1), n_positions=sizes.context,
        n_embd=sizes.width, n_layer=sizes.layers, n_head=sizes.heads, activation_function="gelu",
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=end, pad_token_id=end,
        ppo_toy_sizes=[sizes.n_tokens_in, sizes.n_tokens_out])  # fmt: skip
    model = model_class(config).eval()
    model.lm_head.weight.zero_()
    model.lm_head.bias.fill_(NEVER)
    for ours, theirs in _pairs(policy, model):
        theirs.copy_(ours)
    return model


@torch.no_grad()
def from_transformers(model: Any) -> TinyGPT:
    """Returns the policy that such a model is, on the CPU."""
    config = model.config
    sizes = GPTConfig(*config.ppo_toy_sizes, context=config.n_positions, width=config.n_embd,
        layers=config.n_layer, heads=config.n_head)  # fmt: skip
    policy = TinyGPT(sizes, generator=torch.Generator())
    for ours, theirs in _pairs(policy, model):
        ours.copy_(theirs)
    return policy


def read_policy(folder: str | Path) -> TinyGPT:
    """Returns the policy that lies in a folder in the form of transformers, frozen.

    Raises:
        ValueError: no policy of ours lies there.
    """
    from transformers import AutoModelForCausalLM

    _classes()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        return freeze(from_transformers(model))
    except (OSError, AttributeError, ValueError) as error:
        raise ValueError(f"no policy of ours lies in {folder}: {error}") from None
