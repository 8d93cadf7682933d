import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from problems import random_logits
from torch.testing import assert_close

from ppo_toy import exact, reviews
from ppo_toy.reviews import compose, decode, encode, encode_prompt, grammar, mask_of, noun_of
from ppo_toy.trajectories import enumerate_all

PLOT = torch.tensor([encode_prompt("the plot")])
PLOT_COUNTS = dict(zip(reviews.ADJECTIVES, [1, 2, 1, 6, 3, 3, 5, 5, 5, 6, 2, 1], strict=True))
SCORES = torch.zeros(17, dtype=torch.float64)
for scored, its_score in {"good": 2.0, "bad": -3.0, "silly": 1.0}.items():
    SCORES[reviews.VOCABULARY.index(scored)] = its_score


def tokens_of(text: str) -> list[int]:
    """Of any tokens in any order, padded with full stops."""
    tokens = [reviews.VOCABULARY.index(word) for word in text.split()]
    return tokens + [0] * (4 - len(tokens))


def next_words(*said: str, prompt: torch.Tensor = PLOT) -> dict[str, float]:
    """Probability of each word that can come next."""
    tokens = torch.tensor([[reviews.VOCABULARY.index(word) for word in said]]).long()
    p = grammar(prompt, tokens)[0, -1].exp()
    return {word: x for word, x in zip(reviews.VOCABULARY, p.tolist(), strict=True) if x > 0}


def world_of(reward=None) -> SimpleNamespace:
    return SimpleNamespace(
        prompts=reviews.PROMPTS,
        vocabulary=reviews.VOCABULARY,
        response_length=4,
        end_token=0,
        reward=reward or (lambda prompts, responses: torch.zeros(len(responses))),
    )


def sentences(counts: dict[str, int]) -> dict[str, Fraction]:
    """Every review of one thing and its probability, written out clause by clause."""

    def clause(first: str | None, room: int):
        # after the conjunction, "not" is rarer behind "and" than behind "but"
        p_not = {None: Fraction(4, 20), "and": Fraction(2, 20), "but": Fraction(4, 20)}[first]
        p_very = Fraction(4, 20)
        if room == 1:  # an adjective is all that fits
            return [([], Fraction(1))]
        openings = [([], 1 - p_not - p_very), (["very"], p_very)]
        if room == 2:
            return [*openings, (["not"], p_not)]
        after_not = [
            (["not"], p_not * Fraction(14, 20)),
            (["not", "very"], p_not * Fraction(6, 20)),
        ]
        return [*openings, *after_not]

    def adjectives(without: str | None):
        left = {word: n for word, n in counts.items() if word != without}
        return [(word, Fraction(n, sum(left.values()))) for word, n in left.items()]

    found = {}
    for (opening, p_opening), (one, p_one) in itertools.product(clause(None, 4), adjectives(None)):
        words, p = [*opening, one], p_opening * p_one
        stops = Fraction(1) if len(words) == 3 else Fraction(1, 2)
        found[" ".join([*words, "."])] = p * stops
        if len(words) == 3:
            continue
        for conjunction in ("and", "but"):
            room = 4 - len(words) - 1
            for (second, p_second), (other, p_other) in itertools.product(
                clause(conjunction, room), adjectives(one)
            ):
                text = [*words, conjunction, *second, other]
                text += ["."] if len(text) < 4 else []
                found[" ".join(text)] = p * Fraction(1, 4) * p_second * p_other
    return found


def slow_worth(text: str, scores: dict[str, float]) -> float:
    """Of a review, word by word, looking backwards from each adjective."""
    words = text.split(".")[0].split()
    before, after = [], []
    for at, word in enumerate(words):
        if word not in reviews.ADJECTIVES:
            continue
        worth = scores[word]
        modifiers = list(itertools.takewhile(lambda x: x in ("not", "very"), reversed(words[:at])))
        for _ in range(modifiers.count("very")):
            worth += math.copysign(0.293, scores[word]) if scores[word] else 0.0
        for _ in range(modifiers.count("not")):
            worth *= -0.74
        (after if "but" in words[:at] else before).append(worth)
    if "but" in words:
        return 0.5 * sum(before) + 1.5 * sum(after)
    return sum(before)


# By hand


def test_the_vocabulary_has_17_tokens_and_prompts_are_numbered_after_them():
    assert len(reviews.VOCABULARY) == 17
    assert reviews.VOCABULARY[reviews.END] == "."
    assert len(reviews.WORDS) == len(set(reviews.WORDS)) == 24
    assert reviews.PROMPTS.tolist() == [[17, 18], [17, 19], [17, 20], [17, 21], [17, 22], [17, 23]]


def test_a_review_of_the_plot_begins_with_good_9_times_in_100():
    # an adjective comes first in 12 of 20, and it is "good" in 6 of 40
    first = next_words()
    assert first["good"] == pytest.approx(12 / 20 * 6 / 40)
    assert first["not"] == first["very"] == pytest.approx(4 / 20)
    assert len(first) == 2 + 12


def test_a_clause_is_not_then_very_then_an_adjective():
    assert next_words("not")["very"] == pytest.approx(6 / 20)
    assert next_words("not")["bad"] == pytest.approx(14 / 20 * 2 / 40)
    assert set(next_words("very")) == set(next_words("not", "very")) == set(reviews.ADJECTIVES)


def test_after_an_adjective_comes_a_full_stop_or_a_conjunction():
    assert next_words("good") == pytest.approx({".": 10 / 20, "and": 5 / 20, "but": 5 / 20})
    assert next_words("not", "good") == next_words("good")
    assert next_words("not", "very", "good") == {".": 1.0}  # no room for another clause


def test_no_adjective_is_said_twice():
    after = next_words("dull", "and")
    assert "dull" not in after
    assert after["good"] == pytest.approx(14 / 20 * 6 / (40 - 5))
    assert next_words("not", "dull", "but")["good"] == pytest.approx(6 / 35)


def test_a_review_has_one_conjunction():
    assert next_words("good", "and", "dull") == {".": 1.0}
    assert next_words("good", "but", "dull") == {".": 1.0}


def test_what_is_said_depends_on_the_prompt():
    music = torch.tensor([encode_prompt("the music")])
    assert next_words("very", prompt=music)["lovely"] == pytest.approx(9 / 40)
    assert next_words("very")["lovely"] == pytest.approx(1 / 40)


@pytest.mark.parametrize(
    "said", [("and",), (".",), ("good", "."), ("good", "good"), ("very", "not"), ("very", "very")]
)
def test_only_the_full_stop_follows_an_end_or_what_is_outside_the_language(said):
    assert next_words(*said) == {".": 1.0}
    assert next_words(*said, "good") == {".": 1.0}


def test_a_slip_is_any_token_at_all():
    p = grammar(PLOT, torch.tensor([[5]]), slip=0.34).exp()[0]
    assert_close(p[1, reviews.AND], torch.tensor(0.66 * 5 / 20 + 0.34 / 17))
    assert_close(p[1, reviews.NOT], torch.tensor(0.34 / 17))


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("good .", 2.0),
        ("not good .", 2 * -0.74),
        ("very good .", 2 + 0.293),
        ("very bad .", -3 - 0.293),
        ("not very bad .", (-3 - 0.293) * -0.74),
        ("very not bad .", (-3 - 0.293) * -0.74),
        ("very very good .", 2 + 2 * 0.293),
        ("not not good .", 2 * 0.74**2),
        ("not okay .", 0.0),
        ("very okay .", 0.0),
        ("good and bad .", 2 - 3.0),
        ("good but bad .", 0.5 * 2 - 1.5 * 3),
        ("not bad but good", 0.5 * -3 * -0.74 + 1.5 * 2),
        ("bad and not good", -3 + 2 * -0.74),
        ("very bad and good", -3 - 0.293 + 2),
        ("good silly bad good", 2 + 1 - 3 + 2.0),
        ("but good bad good", 1.5 * (2 - 3 + 2)),
        ("good but bad but", 0.5 * 2 - 1.5 * 3),
        ("good but but bad", 0.5 * 2 - 1.5 * 3),
        ("not and good .", 2.0),
        ("not silly good .", 1 * -0.74 + 2),
        (". good bad but", 0.0),
        ("good . but bad", 2.0),
    ],
)
def test_the_worth_of_a_review_by_hand(text, worth):
    assert_close(compose(torch.tensor([tokens_of(text)]), SCORES), torch.tensor([worth]))


def test_raters_have_an_axis_of_their_own():
    scores = torch.stack([SCORES, -2 * SCORES])
    responses = torch.tensor([tokens_of("good and bad ."), tokens_of("not good .")])
    assert_close(compose(responses, scores), torch.tensor([[-1.0, -1.48], [2.0, 2.96]]))


def test_texts_become_tokens_and_tokens_texts():
    assert encode("not dull but funny") == [1, 13, 4, 9]
    assert encode("very good .") == [2, 8, 0, 0]
    assert encode(".") == [0, 0, 0, 0]
    assert decode(torch.tensor([2, 8, 0, 0])) == "very good ."
    assert decode(torch.tensor([1, 13, 4, 9])) == "not dull but funny"
    assert decode(torch.tensor([17, 18])) == "the film"
    assert encode_prompt("the film") == [17, 18]


def test_the_mask_is_true_up_to_and_including_the_full_stop():
    mask = mask_of(torch.tensor([[2, 8, 0, 0], [1, 13, 4, 9], [0, 8, 8, 8], [8, 8, 8, 0]]))
    assert mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]


# Properties


def test_every_distribution_sums_to_one_at_every_beginning():
    batch = enumerate_all(grammar, world_of())
    p = grammar(batch.prompts, batch.responses)
    assert p.shape == (6 * 69_905, 5, 17)
    assert_close(p.logsumexp(dim=-1), torch.zeros(p.shape[:2]))


def test_a_beginning_is_answered_alike_whatever_comes_after_it():
    responses = torch.tensor([encode("not dull but funny")])
    whole = grammar(PLOT, responses)
    for length in range(4):
        assert torch.equal(grammar(PLOT, responses[:, :length]), whole[:, : length + 1])


def test_further_leading_axes_are_kept():
    prompts = reviews.PROMPTS.view(2, 3, 2)
    responses = torch.tensor(encode("not dull but funny")).expand(2, 3, 4)
    got = grammar(prompts, responses)
    assert got.shape == (2, 3, 5, 17)
    assert torch.equal(got[1, 2], grammar(prompts[1, 2:], responses[1, 2:])[0])


def test_what_stands_after_a_full_stop_has_no_worth():
    responses = torch.tensor([[8, 0, 12, 4], [8, 0, 99, 99], [8, 0, 0, 0]])
    scores = random_logits(0, 3, 17)
    assert_close(compose(responses, scores), scores[:, 8:9].expand(3, 3))


def test_scores_of_words_without_a_rating_are_not_read():
    scores = random_logits(0, 17)
    blank = scores.clone()
    blank[:5] = 0
    responses = torch.tensor([tokens_of("not very good but"), tokens_of("good and bad .")])
    assert_close(compose(responses, scores), compose(responses, blank))
    assert (scores[:5] != 0).all()


def test_the_language_with_a_slip_can_say_anything():
    def slips(prompts, responses):
        return grammar(prompts, responses, slip=0.05)

    weights = enumerate_all(slips, world_of()).weights
    assert (weights > 0).all()
    assert_close(weights.sum(), torch.tensor(1.0))
    kl = exact.evaluate(grammar, slips, world_of(), 1.0).kl
    assert 0 < kl < 4 * -math.log(0.95)  # each step loses at most the slip


def test_a_worth_is_as_precise_as_its_scores_whatever_the_default():
    responses = torch.tensor([tokens_of("not very bad .")])
    torch.set_default_dtype(torch.float32)  # the fixture in conftest.py sets it back
    worth = compose(responses, SCORES)
    assert worth.dtype == torch.float64
    assert worth.item() == pytest.approx((-3 - 0.293) * -0.74, rel=1e-15)


# Edges and errors


@pytest.mark.parametrize("prompt", [[17, 24], [17, 17], [18, 17], [17, 5], [17, -1]])
def test_a_prompt_out_of_the_vocabulary_is_an_error_that_shows_it(prompt):
    prompts = torch.tensor([[17, 18], prompt])
    for call in (noun_of, lambda p: grammar(p, torch.zeros(2, 0).long())):
        with pytest.raises(ValueError, match=rf"the prompt \[{prompt[0]}, {prompt[1]}\] is not"):
            call(prompts)


def test_a_prompt_has_two_tokens():
    with pytest.raises(ValueError, match=r"prompts has shape \(2, 1\); it must be \[..., 2\]"):
        noun_of(torch.tensor([[17], [18]]))


@pytest.mark.parametrize("text", ["grand .", "the .", "Good .", "not great."])
def test_a_word_out_of_the_vocabulary_is_an_error_that_names_it(text):
    wrong = next(word for word in text.split() if word not in reviews.VOCABULARY)
    with pytest.raises(ValueError, match=f'"{wrong}" is not in the vocabulary: . not very'):
        encode(text)


@pytest.mark.parametrize("text", ["good", "", "good . bad .", "good and not very bad", ". ."])
def test_a_review_ends_with_a_full_stop_or_the_fourth_word(text):
    with pytest.raises(ValueError, match=f'"{text}" does not end'):
        encode(text)


def test_a_text_that_is_no_prompt_is_an_error():
    with pytest.raises(ValueError, match='"book" is not in the vocabulary'):
        encode_prompt("the book")
    for text in ("the good", "film", "the film film", ""):
        with pytest.raises(ValueError, match=f'"{text}" is not one of the prompts'):
            encode_prompt(text)


# Against an independent route


def test_the_grammar_gives_every_review_its_probability_and_nothing_else_any():
    batch = enumerate_all(grammar, world_of())
    written = sentences(PLOT_COUNTS)
    assert sum(written.values()) == 1
    of_plot = slice(69_905, 2 * 69_905)
    possible = batch.weights[of_plot] > 0
    listed = {
        decode(response): 6 * weight
        for response, weight in zip(
            batch.responses[of_plot][possible],
            batch.weights[of_plot][possible].tolist(),
            strict=True,
        )
    }
    assert listed == pytest.approx({text: float(p) for text, p in written.items()})
    assert len(listed) == 1368


def test_a_review_carries_5_703_nats_as_the_card_says():
    weights = 6 * enumerate_all(grammar, world_of()).weights.view(6, -1)
    entropy = torch.special.entr(weights).sum(dim=1)
    plot = -sum(float(p) * math.log(p) for p in sentences(PLOT_COUNTS).values())
    assert_close(entropy[1], torch.tensor(plot))
    assert f"{entropy.mean():.3f}" == "5.703"


def test_a_review_in_the_language_can_be_encoded_and_decoded():
    for text in sentences(PLOT_COUNTS):
        assert decode(torch.tensor(encode(text))) == text


def test_all_responses_are_worth_what_a_loop_over_their_words_says():
    rng = torch.Generator().manual_seed(0)
    scores = random_logits(1, 2, 17)
    scores[0, 9] = 0.0
    responses = torch.randint(0, 9, (3000, 4), generator=rng)
    responses[::3] = torch.randint(0, 17, (1000, 4), generator=rng)
    got = compose(responses, scores)
    for rater in range(2):
        by_word = dict(zip(reviews.VOCABULARY, scores[rater].tolist(), strict=True))
        texts = [" ".join(reviews.VOCABULARY[token] for token in row) for row in responses]
        assert_close(got[rater], torch.tensor([slow_worth(text, by_word) for text in texts]))
