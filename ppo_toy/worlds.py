"""Worlds small enough that every response can be listed.

A world is any object with these attributes; the classes here are three of them:

    prompts          [n, P] integer tokens
    vocabulary       V strings, one for each response token
    response_length  T, the most tokens a response can have
    end_token        the token that ends a response early, or None
    reward           callable: prompts [B, P], responses [B, T] -> [B], in reward

Prompts are drawn uniformly unless the world has `prompt_weights` [n], which sum to 1. What stands
in a response after its end token is padding, and a reward must not depend on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppo_toy import reviews
from ppo_toy.contract import check_vocabulary, known, table_of
from ppo_toy.contract import prompt_weights as prompt_weights
from ppo_toy.data import read_ratings


@dataclass(frozen=True, eq=False)
class TokenBandit:
    """One choice of one token: each prompt and token has its reward.

    Args:
        rewards: the table, [n, V], in reward.
        vocabulary: V distinct strings; letters, or numbers where letters run out, by default.

    Raises:
        ValueError: the table has another number of axes or an entry that is not finite, or the
            vocabulary another length.
    """

    rewards: Tensor
    vocabulary: Sequence[str] = ()
    response_length: ClassVar[int] = 1
    end_token: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Checks the table and fills in the vocabulary."""
        object.__setattr__(self, "rewards", torch.as_tensor(self.rewards))
        if self.rewards.dim() != 2 or len(self.rewards) == 0:
            raise ValueError(f"rewards has shape {tuple(self.rewards.shape)}; it must be [n, V]")
        _check_finite(self.rewards)
        vocabulary = _checked_vocabulary(self.vocabulary, self.rewards.shape[1])
        object.__setattr__(self, "vocabulary", vocabulary)

    @property
    def prompts(self) -> Tensor:
        """One token for each row of the table, [n, 1]."""
        return torch.arange(len(self.rewards)).unsqueeze(1)

    def reward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Returns the table's entries for prompts [B, 1] and responses [B, 1], as [B]."""
        return self.rewards.to(responses.device)[prompts[:, 0], responses[:, 0]]

    @classmethod
    def one_word_reply(cls) -> "TokenBandit":
        """Returns the bandit of the first lesson: one word in answer to "How was the film?".

        The reward rises with praise, and the reward model behind it has a fault that every such
        model has somewhere: it likes one senseless word best.
        """
        vocabulary = ["fine", "good", "nice", "great", "superb", "pizza"]
        table = torch.tensor([[0.0, 0.5, 0.5, 1.0, 1.5, 2.5]], dtype=torch.float64)
        return cls(table, vocabulary)


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """Responses of several tokens, scored by a rule on the whole response.

    Args:
        vocabulary: V >= 2 distinct strings.
        response_length: T >= 1, the most tokens of a response.
        reward: callable from prompts [B, P] and responses [B, T] to rewards [B].
        end_token: the token that ends a response, or None where every response has T tokens.
        prompts: [n, P] integer tokens, a tensor or lists; one prompt, the token 0, by default.

    Raises:
        ValueError: an argument is out of its range; the message names it. Or the reward has a
            `vocabulary` or an `end_token`, as a reward model has, and it is another one.
    """

    vocabulary: Sequence[str]
    response_length: int
    reward: Callable[[Tensor, Tensor], Tensor]
    end_token: int | None = None
    prompts: Tensor = torch.zeros(1, 1, dtype=torch.long)

    def __post_init__(self) -> None:
        """Checks the arguments."""
        object.__setattr__(self, "prompts", known(self).prompts)
        _check_reads(self.reward, self)

    @classmethod
    def from_table(
        cls, table: Tensor, vocabulary: Sequence[str] = (), end_token: int | None = None
    ) -> "TokenSequence":
        """Returns a world that looks its rewards up: an axis for the prompt, one for each step.

        Args:
            table: rewards, [n, V, ..., V] with T axes of length V. After an end token only the
                entries that repeat it are read.
            vocabulary: V distinct strings; letters by default.
            end_token: the token that ends a response, or None.

        Raises:
            ValueError: the axes after the first differ in length, or an entry is not finite.
        """
        table = torch.as_tensor(table)
        n_prompts, *steps = table.shape if table.dim() else (0,)
        if not n_prompts or len(set(steps)) != 1:
            raise ValueError(f"table has shape {tuple(table.shape)}; it must be [n, V, ..., V]")
        _check_finite(table)

        def look_up(prompts: Tensor, responses: Tensor) -> Tensor:
            if end_token is not None:
                ended = (responses == end_token).cumsum(dim=1) > 0
                responses = responses.masked_fill(ended, end_token)
            return table.to(responses.device)[(prompts[:, 0], *responses.unbind(dim=1))]

        words = _checked_vocabulary(vocabulary, steps[0])
        return cls(words, len(steps), look_up, end_token, torch.arange(n_prompts).unsqueeze(1))

    @classmethod
    def brackets(cls) -> "TokenSequence":
        """Returns a small world in which a token's worth depends on the tokens around it.

        The tokens are "(", ")" and ".", which ends the response; there are at most six of them.
        Each pair of matching brackets earns 1 and each bracket without a partner costs 0.5. There
        are 127 responses; the best earn 3.
        """
        return cls(["(", ")", "."], response_length=6, reward=_bracket_reward, end_token=2)


def _mean_of_raters() -> Callable[[Tensor, Tensor], Tensor]:
    ratings = read_ratings()
    return lambda prompts, responses: reviews.compose(responses, ratings).mean(dim=0)


@dataclass(frozen=True, eq=False)
class ToyReviews:
    """One-line reviews in the language of `reviews`: six prompts, 69,905 responses to each.

    Args:
        reward: callable from prompts [B, 2] and responses [B, 4] to rewards [B]. By default the
            mean over ten people of what the response is worth to each, by their own ratings of its
            words and the rules of `reviews.compose`: the gold reward, on the ratings' scale, where
            a word alone earns -4 to 4. It does not depend on the prompt.
        prompts: [n, 2] rows of `reviews.PROMPTS`; all six by default.

    Raises:
        ValueError: a prompt is not one of the six, the reward has another `vocabulary` or
            `end_token`, or the file of ratings is damaged.
        FileNotFoundError: the file of ratings is missing; the message says how to make it again.
    """

    reward: Callable[[Tensor, Tensor], Tensor] = field(default_factory=_mean_of_raters)
    prompts: Tensor = reviews.PROMPTS
    vocabulary: ClassVar[Sequence[str]] = reviews.VOCABULARY
    words: ClassVar[Sequence[str]] = reviews.WORDS  # of prompt tokens too
    response_length: ClassVar[int] = reviews.LENGTH
    end_token: ClassVar[int] = reviews.END

    def __post_init__(self) -> None:
        """Checks the prompts and that a reward model reads these words."""
        object.__setattr__(self, "prompts", table_of(self.prompts))
        reviews.noun_of(self.prompts)
        _check_reads(self.reward, self)


def _bracket_reward(prompts: Tensor, responses: Tensor) -> Tensor:
    counts = (responses == 2).cumsum(dim=1) == 0
    waiting = torch.zeros(len(responses), dtype=torch.float64, device=responses.device)
    pairs, alone = waiting.clone(), waiting.clone()
    left, right = (((responses == token) & counts).unbind(dim=1) for token in (0, 1))
    for opens, closes in zip(left, right, strict=True):
        matched = closes & (waiting > 0)
        pairs += matched
        alone += closes & ~matched
        waiting += opens.double() - matched.double()
    return pairs - (alone + waiting) / 2


def _check_reads(reward: Any, world: Any) -> None:
    known = getattr(reward, "vocabulary", world.vocabulary)
    for token, (theirs, ours) in enumerate(zip_longest(known, world.vocabulary)):
        if theirs != ours:
            raise ValueError(f"token {token} is {theirs!r} to the reward, {ours!r} in this world")
    end = getattr(reward, "end_token", world.end_token)
    if end != world.end_token:
        raise ValueError(f"the reward's end token is {end}, this world's {world.end_token}")


def _check_finite(table: Tensor) -> None:
    if not table.isfinite().all():
        at = (~table.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"the reward at {at} is {table[tuple(at)].item()}; it must be finite")


def _checked_vocabulary(vocabulary: Sequence[str], n_tokens: int) -> list[str]:
    if len(vocabulary) == 0:
        letters = [chr(ord("a") + token) for token in range(n_tokens)]
        vocabulary = letters if n_tokens <= 26 else [str(token) for token in range(n_tokens)]
    check_vocabulary(vocabulary, max(n_tokens, 2))
    return list(vocabulary)
