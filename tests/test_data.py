import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from ppo_toy import data, reviews
from ppo_toy.reviews import compose, decode, encode, encode_prompt
from ppo_toy.trajectories import enumerate_all
from ppo_toy.worlds import ToyReviews

ROOT = Path(__file__).parents[1]
CARD = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
READERS = {
    "ratings.tsv": data.read_ratings,
    "corpus.tsv": data.read_corpus,
    "preferences.tsv": data.read_preferences,
}


def bytes_of(name: str) -> bytes:
    return (ROOT / "data" / name).read_bytes()


def worth(prefers: data.Pairs) -> torch.Tensor:
    """By how much each chosen review is worth more to each rater, [10, N]."""
    ratings = data.read_ratings()
    return compose(prefers.chosen, ratings) - compose(prefers.rejected, ratings)


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder with the three files, which the readers take for the course's own."""
    for name in READERS:
        (tmp_path / name).write_bytes(bytes_of(name))
    monkeypatch.setattr(data, "folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def preferences(tmp_path):
    """Writes a file of one's own with the given rows below a right header, and two good lines."""

    def write(*rows: str) -> Path:
        lines = ["prompt\tchosen\trejected\trater", "the film\tgood .\tbad .\t0", *rows]
        path = tmp_path / "mine.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


# By hand


def test_ratings_have_a_row_for_each_rater_and_a_column_for_each_token():
    ratings = data.read_ratings()
    assert ratings.dtype == torch.float64
    assert ratings.shape == (10, 17)
    assert (ratings[:, :5] == 0).all()
    awful = ratings[:, reviews.VOCABULARY.index("awful")]
    assert awful.tolist() == [-2, -2, -3, -3, -2, -3, 4, -3, -3, -3]
    superb = ratings[:, reviews.VOCABULARY.index("superb")]
    assert superb.tolist() == [3, 4, 2, 4, 3, 1, 3, 3, 4, 4]


def test_the_means_are_those_of_the_lexicon():
    # its second column, for the words in the order of the vocabulary
    means = [3.1, 3.1, 2.8, 1.9, 1.9, 0.8, 0.9, 0.1, -1.7, -1.3, -2.5, -2.0]
    assert_close(data.read_ratings().mean(dim=0)[5:], torch.tensor(means))


def test_the_first_lines_of_the_corpus_and_of_the_preferences():
    corpus, pairs = data.read_corpus(), data.read_preferences()
    for n, line in enumerate(bytes_of("corpus.tsv").decode().splitlines()[1:4]):
        assert line == f"{decode(corpus.prompts[n])}\t{decode(corpus.responses[n])}"
    for n, line in enumerate(bytes_of("preferences.tsv").decode().splitlines()[1:4]):
        prompt, chosen, rejected, rater = line.split("\t")
        assert pairs.prompts[n].tolist() == encode_prompt(prompt)
        assert pairs.chosen[n].tolist() == encode(chosen)
        assert pairs.rejected[n].tolist() == encode(rejected)
        assert pairs.raters[n].item() == int(rater)


def test_a_file_of_ones_own_may_be_of_any_length(preferences):
    pairs = data.read_preferences(preferences("the cast\tnot dull but funny\tawful .\t9"))
    assert pairs.prompts.tolist() == [[17, 18], [17, 23]]
    assert pairs.chosen.tolist() == [[8, 0, 0, 0], [1, 13, 4, 9]]
    assert pairs.rejected.tolist() == [[15, 0, 0, 0], [16, 0, 0, 0]]
    assert pairs.raters.tolist() == [0, 9]


@pytest.mark.parametrize(
    ("which", "raters"),
    [
        (slice(1, None), [1, 2, 9]),
        (slice(-1, None), [9]),
        (slice(0, 0), []),
        (torch.tensor([True, False, False, True]), [0, 9]),
        (torch.tensor([3, 0, 3]), [9, 0, 9]),
    ],
    ids=["all but the first", "the last", "none", "a mask", "indices"],
)
def test_some_of_the_pairs_are_pairs_too(which, raters):
    # each column says in which row it stands: rater r has prompt r and responses r + 20, r + 40
    rows = torch.tensor([0, 1, 2, 9])
    column = rows.unsqueeze(1)
    pairs = data.Pairs(column.repeat(1, 2), column + 20, column + 40, rows)[which]
    assert isinstance(pairs, data.Pairs)
    assert pairs.raters.tolist() == raters
    assert pairs.prompts.tolist() == [[rater, rater] for rater in raters]
    assert pairs.chosen.tolist() == [[rater + 20] for rater in raters]
    assert pairs.rejected.tolist() == [[rater + 40] for rater in raters]


# Properties


def test_the_corpus_has_a_mask_up_to_the_full_stop():
    corpus = data.read_corpus()
    assert corpus.prompts.shape == (4000, 2)
    assert corpus.responses.shape == corpus.mask.shape == (4000, 4)
    for response, mask in zip(corpus.responses.tolist(), corpus.mask.tolist(), strict=True):
        words = response.index(0) + 1 if 0 in response else 4
        assert mask == [True] * words + [False] * (4 - words)


def test_all_that_is_written_is_in_the_language():
    corpus, pairs = data.read_corpus(), data.read_preferences()
    for prompts, responses in [
        (corpus.prompts, corpus.responses),
        (pairs.prompts, pairs.chosen),
        (pairs.prompts, pairs.rejected),
    ]:
        log_p = reviews.grammar(prompts, responses)[:, :-1]
        assert log_p.gather(-1, responses.unsqueeze(-1)).isfinite().all()


def test_the_corpus_says_words_as_often_as_the_grammar():
    corpus = data.read_corpus()
    film = corpus.responses[corpus.prompts[:, 1] == 18]
    p = reviews.grammar(reviews.PROMPTS[:1], torch.zeros(1, 0).long())[0, 0].exp()
    shares = torch.bincount(film[:, 0], minlength=17) / len(film)
    # five standard errors for each of 14 words; the draw is fixed, so this is no chance
    assert ((shares - p).abs() <= 5 * (p * (1 - p) / len(film)).sqrt()).all()


def test_the_rater_of_a_pair_prefers_the_chosen_review():
    pairs = data.read_preferences()
    own = worth(pairs).gather(0, pairs.raters.unsqueeze(0))
    assert (own > 1e-3).all()
    assert pairs.raters.unique().tolist() == list(range(10))


def test_the_card_counts_what_there_is():
    pairs, corpus = data.read_preferences(), data.read_corpus()
    by = worth(pairs)
    with_all = (by.mean(dim=0) > data.TIE).sum().item()
    assert f"In {with_all:,} of the 3,000 pairs ({with_all / 30:.1f} %)" in CARD
    alike = (by > data.TIE).all(dim=0).double().mean().item()
    assert f"in {alike:.1%}".replace("%", " %") in CARD
    cut = corpus.mask.all(dim=1) & (corpus.responses[:, -1] != reviews.END)
    assert f"{cut.double().mean():.1%}".replace("%", " %") + " of the reviews here are cut" in CARD
    columns = (pairs.prompts, pairs.chosen, pairs.rejected)
    asked = [(x, *sorted(two)) for x, *two in zip(*map(torch.Tensor.tolist, columns), strict=True)]
    again = sum(pair in asked[:2500] for pair in asked[2500:])
    assert f"Of the last 500 pairs, which are held out, {again} also stand" in CARD
    for name in READERS:
        rows = len(bytes_of(name).splitlines()) - 1
        assert f"| `{name}` | {rows:,} |" in CARD


def test_the_card_says_how_far_the_rule_is_from_vaders_own():
    world = ToyReviews(prompts=reviews.PROMPTS[:1])
    language = enumerate_all(reviews.grammar, world)
    language = language.responses[language.weights > 0]
    judge = SentimentIntensityAnalyzer().polarity_scores
    texts = [decode(review).removesuffix(" .") for review in language]
    theirs = torch.tensor([judge(text)["compound"] for text in texts]).double()
    ours = compose(language, data.read_ratings().mean(dim=0))
    ours = ours / (ours**2 + 15).sqrt()  # its last step
    otherwise = (ours - theirs).abs() > 2e-4  # it rounds to four decimals
    turned = otherwise & (ours * theirs < 0)
    assert f"{otherwise.sum()} of the {len(texts):,} reviews of the" in CARD
    assert f"{turned.sum()} of them with the other sign" in CARD


def test_the_licence_of_the_ratings_lies_beside_them():
    licence = bytes_of("LICENSE-vader.txt").decode()
    assert "Copyright (c) 2016 C.J. Hutto" in licence
    assert "Permission is hereby granted, free of charge" in licence


def test_an_install_that_is_not_editable_carries_the_files(tmp_path, monkeypatch):
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setup = setup["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "ppo_toy").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setup["packages"]) == names | {"ppo_toy.datafiles"}
    assert setup["package-dir"] == {"ppo_toy.datafiles": "data"}
    for path in (ROOT / "data").iterdir():
        assert any(path.match(pattern) for pattern in setup["package-data"]["ppo_toy.datafiles"])
    monkeypatch.setattr(data, "__file__", str(tmp_path / "ppo_toy" / "data.py"))
    assert data.folder() == tmp_path / "data"
    (tmp_path / "ppo_toy" / "datafiles").mkdir(parents=True)
    assert data.folder() == tmp_path / "ppo_toy" / "datafiles"


# Edges and errors


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_an_error_with_the_command_that_makes_it(copies, name):
    (copies / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        READERS[name]()
    assert str(copies / name) in str(error.value)
    assert f"is missing; to make it again: python -m ppo_toy.data {name}" in str(error.value)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "", "line 1: the columns are not"),
        (lambda text: text[2:], "line 1: the columns are not"),
        (lambda text: text.split(b"\n")[0], "has 0 rows"),
        (lambda text: text[: text.rindex(b"\n", 0, -1) + 1], "rows; "),
        (lambda text: text[: text.rindex(b"\t")], "columns where"),
        (lambda text: text + b"\n", "1 columns where"),
        (lambda text: text[:90] + b"\xff" + text[90:], "is not UTF-8 text"),
    ],
    ids=["empty", "no start", "header only", "a row short", "a field short", "a blank", "bytes"],
)
def test_a_damaged_file_is_an_error_with_the_command_that_makes_it(copies, name, damage, said):
    (copies / name).write_bytes(damage(bytes_of(name)) or b"")
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        READERS[name]()
    assert str(copies / name) in str(error.value)
    assert str(error.value).endswith(f"; to make it again: python -m ppo_toy.data {name}")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("the film\tgood .\tbad .", "3 columns where 4 were due"),
        ("the film\tgood .\tbad .\t0\t1", "5 columns where 4 were due"),
        ("", "1 columns where 4 were due"),
        ("the book\tgood .\tbad .\t0", '"book" is not in the vocabulary'),
        ("the good\tgood .\tbad .\t0", '"the good" is not one of the prompts'),
        ("the film\tgrand .\tbad .\t0", '"grand" is not in the vocabulary'),
        ("the film\tgood .\tbad\t0", '"bad" does not end'),
        ("the film\tgood .\tgood .\t0", '"good ." is both chosen and rejected'),
        ("the film\tgood .\tbad .\t10", '"10" is not an integer from 0 to 9'),
        ("the film\tgood .\tbad .\t-1", '"-1" is not an integer from 0 to 9'),
        ("the film\tgood .\tbad .\tx", '"x" is not an integer from 0 to 9'),
    ],
)
def test_a_bad_line_of_preferences_is_named(preferences, row, said):
    path = preferences("the plot\tfine .\tdull .\t3", row, "the plot\tfine .\tdull .\t3")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 4: {said}")) as error:
        data.read_preferences(path)
    assert "to make it again" not in str(error.value)  # the course cannot make it


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("grand" + 10 * "\t1", '"grand" is not one of the adjectives'),
        ("not" + 10 * "\t1", '"not" is not one of the adjectives'),
        ("good" + 9 * "\t1", "10 columns where 11 were due"),
        ("good" + 9 * "\t1" + "\t5", '"5" is not an integer from -4 to 4'),
        ("good" + 9 * "\t1" + "\t-5", '"-5" is not an integer from -4 to 4'),
        ("good" + 9 * "\t1" + "\t1.5", '"1.5" is not an integer from -4 to 4'),
    ],
)
def test_a_bad_line_of_ratings_is_named(tmp_path, row, said):
    path = tmp_path / "mine.tsv"
    path.write_text("\t".join(data.COLUMNS["ratings.tsv"]) + "\n" + row + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2: {said}")):
        data.read_ratings(path)


def test_a_word_that_is_rated_twice_is_an_error_in_the_courses_file_too(monkeypatch, tmp_path):
    text = (data.folder() / "ratings.tsv").read_text(encoding="utf-8")
    (tmp_path / "ratings.tsv").write_text(text.replace("great\t", "superb\t"), encoding="utf-8")
    monkeypatch.setattr(data, "folder", lambda: tmp_path)
    with pytest.raises(ValueError, match='"superb" is rated twice; to make it again: python -m'):
        data.read_ratings()


def test_the_lowest_and_the_highest_rating_are_read(tmp_path):
    path = tmp_path / "mine.tsv"
    row = "good\t-4\t4\t0\t-3\t3\t-2\t2\t-1\t1\t0"
    path.write_text("\t".join(data.COLUMNS["ratings.tsv"]) + "\n" + row + "\n", encoding="utf-8")
    ratings = data.read_ratings(str(path))
    assert ratings[:, 8].tolist() == [-4, 4, 0, -3, 3, -2, 2, -1, 1, 0]
    assert ratings.count_nonzero() == 8


def installed(*versions: str):
    """In place of `metadata.distributions`: these versions of the lexicon, without its files."""

    def distributions(*, name):
        assert name == "vaderSentiment"
        return (SimpleNamespace(version=version, files=[]) for version in versions)

    return distributions


@pytest.mark.parametrize("versions", [[], ["3.3.1"], ["3.3.1", "3.3.20"]])
def test_ratings_are_made_from_one_version_of_the_lexicon_only(monkeypatch, versions):
    monkeypatch.setattr(metadata, "distributions", installed(*versions))
    with pytest.raises(FileNotFoundError, match="pip install vaderSentiment==3.3.2"):
        data.make_ratings()


def test_another_version_or_the_same_twice_does_not_hide_the_right_one(monkeypatch):
    found = list(metadata.distributions(name="vaderSentiment"))

    def distributions(*, name):
        return [*installed("3.3.1")(name=name), *found, *found]

    monkeypatch.setattr(metadata, "distributions", distributions)
    assert data.make_ratings().encode() == bytes_of("ratings.tsv")


def test_a_name_that_is_no_file_is_refused_before_any_is_made(copies):
    (copies / "corpus.tsv").unlink()
    with pytest.raises(SystemExit, match=r"pairs.tsv is not one of the files: ratings.tsv"):
        data.main(["corpus.tsv", "pairs.tsv"])
    assert not (copies / "corpus.tsv").exists()


# Against an independent route


@pytest.mark.parametrize("name", READERS)
def test_a_file_is_made_again_byte_for_byte_and_no_other(copies, capsys, name):
    (copies / name).unlink()
    data.main([name])
    assert capsys.readouterr().out == f"{copies / name}: {data.N_ROWS[name]:,} rows\n"
    assert (copies / name).read_bytes() == bytes_of(name)


def test_the_command_makes_all_files(copies, capsys):
    for name in READERS:
        (copies / name).write_bytes(b"damaged")
    data.main([])
    assert capsys.readouterr().out.count("rows") == 3
    for name in READERS:
        assert (copies / name).read_bytes() == bytes_of(name)


def test_the_bytes_do_not_hang_on_the_default_precision():
    torch.set_default_dtype(torch.float32)  # the fixture in conftest.py sets it back
    assert data.make_preferences().encode() == bytes_of("preferences.tsv")
    assert data.make_corpus().encode() == bytes_of("corpus.tsv")


def test_no_draw_and_no_choice_is_so_close_that_rounding_could_turn_it(monkeypatch):
    closest, grammar, rand = [], reviews.grammar, torch.rand
    asked = {}

    def grammar_seen(prompts, responses):
        asked["cumulative"] = grammar(prompts, responses)[:, -1].exp().cumsum(dim=-1)
        return grammar(prompts, responses)

    def rand_seen(size, **options):
        numbers = rand(size, **options)
        if len(size) == 2:
            closest.append((numbers - asked["cumulative"]).abs().min().item())
        return numbers

    monkeypatch.setattr(reviews, "grammar", grammar_seen)
    monkeypatch.setattr(torch, "rand", rand_seen)
    data.make_corpus()
    data.make_preferences()
    assert len(closest) == 4 + 2 * 4
    assert min(closest) > 1e-9  # rounding is of the order of 1e-16


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "ppo_toy.data", "pairs.tsv"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stderr.strip() == (
        "pairs.tsv is not one of the files: ratings.tsv corpus.tsv preferences.tsv"
    )
