"""What lies in `data/`: people's ratings of words, a corpus and preferences, as tensors.

    python -m ppo_toy.data                    makes every file again, byte for byte
    python -m ppo_toy.data preferences.tsv    makes this one again

`data/README.md` says where the ratings come from and what each column holds.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppo_toy import reviews
from ppo_toy.tables import read_table, table_text, write_whole

N_RATERS = 10
COLUMNS = {
    "ratings.tsv": ["word", *[f"rater_{rater}" for rater in range(N_RATERS)]],
    "corpus.tsv": ["prompt", "review"],
    "preferences.tsv": ["prompt", "chosen", "rejected", "rater"],
}
N_ROWS = {"ratings.tsv": len(reviews.ADJECTIVES), "corpus.tsv": 4000, "preferences.tsv": 3000}
SEEDS = {"corpus.tsv": 1, "preferences.tsv": 2}
# Scores that differ by less are the same number, reached in two orders of addition.
TIE = 1e-9
LEXICON = ("vaderSentiment", "3.3.2", "vader_lexicon.txt")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Reviews that the language's own grammar wrote.

    Attributes:
        prompts: [N, 2] tokens.
        responses: [N, 4] tokens, the full stop repeated as padding.
        mask: [N, 4], True up to and including the full stop.
    """

    prompts: Tensor
    responses: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two reviews of the same thing, and which of them one rater prefers.

    Attributes:
        prompts: [N, 2] tokens.
        chosen: [N, 4] tokens, the full stop repeated as padding.
        rejected: [N, 4] tokens, likewise.
        raters: [N], 0 to 9: the column of the ratings that decided.
    """

    prompts: Tensor
    chosen: Tensor
    rejected: Tensor
    raters: Tensor

    def __getitem__(self, which: Any) -> "Pairs":
        """Returns some of the pairs, by a slice, a mask or a tensor of indices."""
        return Pairs(*(column[which] for column in vars(self).values()))


def folder() -> Path:
    """Returns where the files lie: beside the installed package, or in the checkout."""
    installed = Path(__file__).parent / "datafiles"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "data"


def read_ratings(path: str | Path | None = None) -> Tensor:
    """Returns each person's score of each word of the vocabulary.

    Args:
        path: a file of your own in the columns of `ratings.tsv`; that file by default. A word
            that it leaves out scores 0.

    Returns:
        [10, 17] in double precision, from -4 to 4; 0 for the five tokens that are not adjectives.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged. Both messages name the file, the line if there is one, and, for
            a file of the course, the command that makes it again.
    """
    ratings = torch.zeros(N_RATERS, len(reviews.VOCABULARY), dtype=torch.float64)
    rated = set()

    def rate(word: str, *scores: str) -> None:
        if word not in reviews.ADJECTIVES:
            raise ValueError(
                f'"{word}" is not one of the adjectives: {" ".join(reviews.ADJECTIVES)}'
            )
        if word in rated:
            raise ValueError(f'"{word}" is rated twice')
        rated.add(word)
        numbers = [_integer(score, -4, 4) for score in scores]
        ratings[:, reviews.VOCABULARY.index(word)] = torch.tensor(numbers, dtype=torch.float64)

    _read("ratings.tsv", path, rate)
    return ratings


def read_corpus(path: str | Path | None = None) -> Corpus:
    """Returns the reviews to pretrain on; argument and errors as for `read_ratings`."""
    rows = _read("corpus.tsv", path, _sentence)
    prompts, responses = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Corpus(prompts, responses, reviews.mask_of(responses))


def read_preferences(path: str | Path | None = None) -> Pairs:
    """Returns the pairs to learn a reward from; argument and errors as for `read_ratings`."""
    rows = _read("preferences.tsv", path, _preference)
    return Pairs(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def make_ratings() -> str:
    """Returns the text of `ratings.tsv`, out of the lexicon that vaderSentiment carries.

    Raises:
        FileNotFoundError: that package is not installed in the version that is read here.
    """
    package, version, name = LEXICON
    found = [each for each in metadata.distributions(name=package) if each.version == version]
    if not found:
        raise FileNotFoundError(
            f"ratings.tsv is made from {package} {version}: pip install {package}=={version}"
        )
    (path,) = (file.locate() for file in found[0].files if file.name == name)
    lines = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    scores = {line[0]: json.loads(line[3]) for line in lines if line[0] in reviews.ADJECTIVES}
    rows = [[word, *scores[word]] for word in reviews.ADJECTIVES]
    return table_text(COLUMNS["ratings.tsv"], rows)


def make_corpus() -> str:
    """Returns the text of `corpus.tsv`: reviews drawn from the grammar."""
    generator = torch.Generator().manual_seed(SEEDS["corpus.tsv"])
    prompts = reviews.PROMPTS[_draw_integers(len(reviews.PROMPTS), N_ROWS["corpus.tsv"], generator)]
    responses = _draw_responses(prompts, generator)
    rows = (map(reviews.decode, row) for row in zip(prompts, responses, strict=True))
    return table_text(COLUMNS["corpus.tsv"], rows)


def make_preferences() -> str:
    """Returns the text of `preferences.tsv`: two reviews from the grammar, and a rater's choice.

    A pair that is worth the same to its rater is left out.
    """
    n, ratings = N_ROWS["preferences.tsv"], read_ratings()
    generator = torch.Generator().manual_seed(SEEDS["preferences.tsv"])
    prompts = reviews.PROMPTS[_draw_integers(len(reviews.PROMPTS), 2 * n, generator)]
    one, other = _draw_responses(prompts, generator), _draw_responses(prompts, generator)
    raters = _draw_integers(N_RATERS, 2 * n, generator)
    margins = reviews.compose(one, ratings) - reviews.compose(other, ratings)
    margins = margins.gather(0, raters.unsqueeze(0)).squeeze(0)
    rows = []
    for i in (margins.abs() > TIE).nonzero().flatten()[:n].tolist():
        chosen, rejected = (one[i], other[i]) if margins[i] > 0 else (other[i], one[i])
        rows.append([*map(reviews.decode, (prompts[i], chosen, rejected)), raters[i].item()])
    return table_text(COLUMNS["preferences.tsv"], rows)


MAKERS = {
    "ratings.tsv": make_ratings,
    "corpus.tsv": make_corpus,
    "preferences.tsv": make_preferences,
}


def asked_for(names: list[str], makers: Mapping[str, Any]) -> list[str]:
    """Returns these names of files, or all if there are none.

    Raises:
        SystemExit: a name is not one of the files, or help is asked for.
    """
    if {"-h", "--help"} & set(names):
        print("names of the files to make again, all without one:", *makers)
        raise SystemExit
    for name in names:
        if name not in makers:
            raise SystemExit(f"{name} is not one of the files: {' '.join(makers)}")
    return names or list(makers)


def main(names: list[str]) -> None:
    """Makes the files of these names again; see `asked_for`."""
    for name in asked_for(names, MAKERS):
        write_whole(folder() / name, MAKERS[name]())
        print(f"{folder() / name}: {N_ROWS[name]:,} rows")


def _draw_responses(prompts: Tensor, generator: torch.Generator) -> Tensor:
    responses = torch.zeros(len(prompts), 0, dtype=torch.long)
    for _ in range(reviews.LENGTH):
        cumulative = reviews.grammar(prompts, responses)[:, -1].exp().cumsum(dim=-1)
        threshold = cumulative[:, -1:] * _uniforms((len(prompts), 1), generator)
        token = (threshold >= cumulative[:, :-1]).sum(dim=-1, keepdim=True)
        responses = torch.cat([responses, token], dim=1)
    return responses


def _draw_integers(high: int, n: int, generator: torch.Generator) -> Tensor:
    return (high * _uniforms((n,), generator)).long()


def _uniforms(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator, dtype=torch.float64)


def _read(name: str, path: str | Path | None, parse: Callable[..., Any]) -> list:
    if path:
        return read_table(Path(path), COLUMNS[name], parse)
    command = f"python -m ppo_toy.data {name}"
    file, n_rows = folder() / name, N_ROWS[name]
    return read_table(file, COLUMNS[name], parse, n_rows=n_rows, command=command)


def _sentence(prompt: str, review: str) -> tuple[list[int], list[int]]:
    return reviews.encode_prompt(prompt), reviews.encode(review)


def _preference(prompt: str, chosen: str, rejected: str, rater: str) -> tuple:
    if chosen == rejected:
        raise ValueError(f'"{chosen}" is both chosen and rejected')
    return *_sentence(prompt, chosen), reviews.encode(rejected), _integer(rater, 0, N_RATERS - 1)


def _integer(text: str, low: int, high: int) -> int:
    if text not in map(str, range(low, high + 1)):
        raise ValueError(f'"{text}" is not an integer from {low} to {high}')
    return int(text)


if __name__ == "__main__":
    main(sys.argv[1:])
