"""A language of one-line reviews: its words, its grammar and what a review is worth.

A review has up to four words from a vocabulary of 17 tokens, the full stop among them:

    review  ->  clause  |  clause "and" clause  |  clause "but" clause
    clause  ->  ["not"] ["very"] adjective

A full stop ends it; a review of four words has no room for one. No adjective is said twice. The
grammar is a policy like any other, so what the corpus is drawn from is known exactly. A review's
worth is composed out of the scores of its words, with the constants of Hutto and Gilbert (2014).
"""

from functools import cache

import torch
from torch import Tensor

FUNCTION_WORDS = [".", "not", "very", "and", "but"]
ADJECTIVES = "superb great lovely good funny fine okay silly dull boring bad awful".split()
VOCABULARY = FUNCTION_WORDS + ADJECTIVES
LENGTH = 4
END, NOT, VERY, AND, BUT = range(len(FUNCTION_WORDS))
# Prompt tokens are numbered after the response tokens, so that one embedding serves both.
NOUNS = "film plot acting music ending cast".split()
WORDS = [*VOCABULARY, "the", *NOUNS]
PROMPTS = torch.tensor([[WORDS.index("the"), WORDS.index(noun)] for noun in NOUNS])

# How often each adjective is said of each thing, out of 40. The numbers are invented.
_COUNTS = {
    #  superb great lovely good funny fine okay silly dull boring bad awful
    "film": [2, 4, 2, 8, 4, 3, 4, 2, 3, 4, 3, 1],
    "plot": [1, 2, 1, 6, 3, 3, 5, 5, 5, 6, 2, 1],
    "acting": [4, 5, 2, 7, 2, 4, 4, 3, 2, 1, 3, 3],
    "music": [3, 4, 9, 6, 1, 4, 4, 1, 4, 2, 1, 1],
    "ending": [1, 3, 2, 5, 3, 3, 5, 5, 4, 3, 4, 2],
    "cast": [4, 6, 5, 7, 5, 4, 3, 1, 1, 1, 2, 1],
}
# How often each kind of token follows a token, out of 20; invented too.
_AFTER = {
    #   .  not very and but adjective
    "": [0, 4, 4, 0, 0, 12],  # at the beginning
    "not": [0, 0, 6, 0, 0, 14],
    "very": [0, 0, 0, 0, 0, 20],
    "and": [0, 2, 4, 0, 0, 14],
    "but": [0, 4, 4, 0, 0, 12],
    "adjective": [10, 0, 0, 5, 5, 0],
}

NEGATION = -0.74
BOOST = 0.293
BEFORE_BUT, AFTER_BUT = 0.5, 1.5


def grammar(prompts: Tensor, responses: Tensor, *, slip: float = 0.0) -> Tensor:
    """The language itself as a policy: the exact log-probabilities of each next token.

    A continuation outside the language has -inf. What follows the full stop, the fourth word, or
    a beginning that is outside the language is the full stop.

    Args:
        prompts: [..., 2] tokens, each a row of `PROMPTS`.
        responses: [..., t] tokens.
        slip: probability, at each step, of a token drawn uniformly from the whole vocabulary.
            Above 0 every response can occur: a policy that leaves the language has a finite KL.

    Returns:
        Log-probabilities in nats, double precision, [..., t + 1, 17].

    Raises:
        ValueError: a prompt is not one of the six; the message shows it.
    """
    table = ((1 - slip) * _table() + slip / len(VOCABULARY)).log().to(responses.device)
    rows = [torch.zeros(responses.shape[:-1], dtype=torch.long, device=responses.device)]
    for token in responses.unbind(dim=-1):
        rows.append((len(VOCABULARY) * rows[-1] + token + 1).clamp(max=table.shape[1] - 1))
    return table[noun_of(prompts).unsqueeze(-1), torch.stack(rows, dim=-1)]


def compose(responses: Tensor, word_scores: Tensor) -> Tensor:
    """Returns what each review is worth to each rater.

    With the "not"s and "very"s that stand right before it, an adjective counts

        (s + 0.293 * sign(s) * number of "very"s) * (-0.74) ** (number of "not"s)

    where s is its score, and the adjectives add up. Where there is a "but", what stands before the
    first one counts 0.5 times, and what stands after it 1.5 times. The rule holds for any tokens
    in any order, so a response outside the language has a worth too.

    Args:
        responses: [B, T] tokens; what stands after a full stop is not read.
        word_scores: scores of the vocabulary, [17] or, for R raters, [R, 17]; those of the full
            stop, "not", "very", "and" and "but" are taken to be 0.

    Returns:
        In the unit of the scores, [B] or [R, B].

    Source: the constants are those of Hutto and Gilbert (2014), in their code vaderSentiment 3.3.2:
    N_SCALAR, B_INCR and `_but_check`. The rule is simpler. There a "not" reaches back three words,
    over an adjective too, and the sum is squeezed into (-1, 1) in the end.
    """
    ended = (responses == END).cumsum(dim=-1) > 0
    tokens = responses.masked_fill(ended, END)
    after = (tokens == BUT).cumsum(dim=-1) > 0
    share = torch.where(after[:, -1:], torch.where(after, AFTER_BUT, BEFORE_BUT), 1.0)
    scores = word_scores.to(tokens.device).clone()
    scores[..., : len(FUNCTION_WORDS)] = 0
    nots = verys = torch.zeros(len(tokens), dtype=scores.dtype, device=scores.device)
    total = torch.zeros(*scores.shape[:-1], len(tokens), dtype=scores.dtype, device=scores.device)
    for token, counts in zip(tokens.unbind(dim=1), share.to(scores).unbind(dim=1), strict=True):
        score = scores[..., token]
        total += counts * (score + BOOST * score.sign() * verys) * NEGATION**nots
        modifies = (token == NOT) | (token == VERY)
        nots, verys = (nots + (token == NOT)) * modifies, (verys + (token == VERY)) * modifies
    return total


def encode(text: str) -> list[int]:
    """Returns the four tokens of a review such as "not dull but funny" or "very good .".

    Raises:
        ValueError: a word is not in the vocabulary, or the review does not end as reviews do, with
            its only full stop or with the fourth word.
    """
    tokens = _tokens(text, VOCABULARY)
    if len(tokens) > LENGTH or END in tokens[:-1] or (len(tokens) < LENGTH and END not in tokens):
        raise ValueError(f'"{text}" does not end with its only full stop, or with the fourth word')
    return tokens + [END] * (LENGTH - len(tokens))


def encode_prompt(text: str) -> list[int]:
    """Returns the two tokens of a prompt such as "the film".

    Raises:
        ValueError: a word is not in the vocabulary, or the prompt is not one of the six.
    """
    tokens = _tokens(text, WORDS)
    if tokens not in PROMPTS.tolist():
        raise ValueError(f'"{text}" is not one of the prompts, "the {NOUNS[0]}" and so on')
    return tokens


def noun_of(prompts: Tensor) -> Tensor:
    """Returns which of the six things each prompt speaks of, [...], from tokens [..., 2].

    Raises:
        ValueError: a prompt is not one of the six; the message shows it.
    """
    if prompts.shape[-1:] != (2,):
        raise ValueError(f"prompts has shape {tuple(prompts.shape)}; it must be [..., 2]")
    known = (prompts.unsqueeze(-2) == PROMPTS.to(prompts.device)).all(dim=-1)
    if not known.any(dim=-1).all():
        wrong = prompts[~known.any(dim=-1)][0].tolist()
        raise ValueError(f"the prompt {wrong} is not one of {PROMPTS.tolist()}")
    return known.long().argmax(dim=-1)


def mask_of(responses: Tensor) -> Tensor:
    """True up to and including each response's first full stop, [..., T]."""
    ends = (responses == END).long()
    return ends.cumsum(dim=-1) - ends == 0


def decode(tokens: Tensor) -> str:
    """Returns the words of a prompt [2], or of a response [T] up to its full stop."""
    words = [WORDS[token] for token in tokens]
    return " ".join(words[: words.index(".") + 1] if "." in words else words)


@cache
def _table() -> Tensor:
    """Probabilities of the next token after every beginning of fewer than four tokens.

    The beginnings are numbered as in `TabularPolicy`: the empty one is 0, and beginning k followed
    by token v is 17 * k + v + 1. The last row stands for all that is longer: [6, 5221, 17].
    """
    n_rows = sum(len(VOCABULARY) ** length for length in range(LENGTH)) + 1
    table = torch.zeros(len(NOUNS), n_rows, len(VOCABULARY), dtype=torch.float64)
    table[..., END] = 1
    for noun in range(len(NOUNS)):
        beginnings = [(0, [])]
        while beginnings:
            row, said = beginnings.pop()
            table[noun, row] = torch.tensor(_next(noun, said), dtype=torch.float64)
            if len(said) + 1 < LENGTH:
                tokens = table[noun, row].nonzero().flatten().tolist()
                children = [(len(VOCABULARY) * row + v + 1, [*said, v]) for v in tokens if v != END]
                beginnings.extend(children)
    return table


def _next(noun: int, said: list[int]) -> list[float]:
    """Probabilities of the token after the tokens said, the beginning of a review."""
    last = VOCABULARY[said[-1]] if said else ""
    follows = _AFTER.get(last, _AFTER["adjective"])
    first = len(FUNCTION_WORDS)
    counts = [0 if v in said else n for v, n in enumerate(_COUNTS[NOUNS[noun]], start=first)]
    weights = [*follows[:first], *(follows[first] * n / sum(counts) for n in counts)]
    # In the last place nothing begins that an adjective would have to finish. That also keeps a
    # review to one conjunction: four words have no room for two.
    if len(said) == LENGTH - 1:
        weights[NOT] = weights[VERY] = weights[AND] = weights[BUT] = 0
    return [weight / sum(weights) for weight in weights]


def _tokens(text: str, words: list[str]) -> list[int]:
    for word in text.split():
        if word not in words:
            raise ValueError(f'"{word}" is not in the vocabulary: {" ".join(words)}')
    return [words.index(word) for word in text.split()]
