import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from problems import random_logits
from torch.testing import assert_close

from ppo_toy import data, exact, reviews
from ppo_toy.trajectories import enumerate_all, sample, score
from ppo_toy.worlds import TokenBandit, TokenSequence, ToyReviews, prompt_weights

TABLE = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]], dtype=torch.float64)
PROMPT = torch.zeros(1, 1, dtype=torch.long)


def no_reward(prompts, responses):
    return torch.zeros(len(responses))


def bracket_reward(text: str) -> float:
    """Of a text of brackets, by a stack: 1 for each pair, -1/2 for each bracket left alone."""
    text = text.split(".")[0]
    stack, reward = [], 0.0
    for letter in text:
        if letter == ")" and stack and stack[-1] == "(":
            stack.pop()
            reward += 1
        else:
            stack.append(letter)
    return reward - len(stack) / 2


def tokens_of(*texts: str) -> torch.Tensor:
    return torch.tensor([["().".index(letter) for letter in text] for text in texts])


# By hand


def test_a_bandit_reads_its_table_by_prompt_and_token():
    world = TokenBandit(TABLE)
    prompts, responses = torch.tensor([[1], [0], [1]]), torch.tensor([[0], [1], [2]])
    assert_close(world.reward(prompts, responses), torch.tensor([4.0, -2.0, -6.0]))


def test_a_bandit_has_a_prompt_for_each_row_and_responses_of_one_token():
    world = TokenBandit(TABLE)
    assert world.prompts.tolist() == [[0], [1]]
    assert world.response_length == 1
    assert world.end_token is None


def test_letters_are_the_default_vocabulary():
    assert TokenBandit(TABLE).vocabulary == ["a", "b", "c"]
    assert TokenSequence.from_table(TABLE).vocabulary == ["a", "b", "c"]
    assert TokenBandit(torch.zeros(1, 26)).vocabulary[-1] == "z"


def test_numbers_are_the_default_vocabulary_where_letters_run_out():
    vocabulary = TokenBandit(torch.zeros(1, 27)).vocabulary
    assert vocabulary == [str(token) for token in range(27)]


def test_a_vocabulary_that_is_given_is_kept():
    assert TokenBandit(TABLE, ["x", "y", "z"]).vocabulary == ["x", "y", "z"]
    assert TokenSequence.from_table(TABLE, ("x", "y", "z")).vocabulary == ["x", "y", "z"]


def test_the_first_lessons_bandit_likes_one_senseless_word_best():
    world = TokenBandit.one_word_reply()
    assert world.vocabulary == ["fine", "good", "nice", "great", "superb", "pizza"]
    assert_close(world.rewards, torch.tensor([[0.0, 0.5, 0.5, 1.0, 1.5, 2.5]]))
    best = world.rewards.argmax().item()
    assert world.vocabulary[best] == "pizza"
    assert (world.rewards[0, :5].diff() >= 0).all()


def test_a_table_of_two_steps_is_read_by_prompt_and_both_tokens():
    table = torch.tensor([[[1.0, -2.0], [3.0, -4.0]], [[5.0, -6.0], [7.0, -8.0]]])
    world = TokenSequence.from_table(table)
    assert (world.response_length, world.end_token) == (2, None)
    assert world.prompts.tolist() == [[0], [1]]
    prompts, responses = torch.tensor([[0], [1], [1]]), torch.tensor([[0, 1], [1, 0], [1, 1]])
    assert_close(world.reward(prompts, responses), torch.tensor([-2.0, 7.0, -8.0]))


def test_a_table_with_an_end_token_reads_the_entry_that_repeats_it():
    # token 0 ends: "0 then anything" is entry [0, 0]; "1 then 0" is [1, 0]
    table = torch.tensor([[[1.0, 99.0], [3.0, -4.0]]])
    world = TokenSequence.from_table(table, end_token=0)
    responses = torch.tensor([[0, 0], [0, 1], [0, 99], [1, 0], [1, 1]])
    rewards = world.reward(PROMPT.expand(5, 1), responses)
    assert_close(rewards, torch.tensor([1.0, 1.0, 1.0, 3.0, -4.0]))
    assert world.end_token == 0


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (".99999", 0.0),
        ("().999", 1.0),
        ("()()()", 3.0),
        ("((()))", 3.0),
        ("))((..", -4 / 2),
        (")(....", -2 / 2),
        ("(()...", 1 - 1 / 2),
        ("())...", 1 - 1 / 2),
        ("((((((", -6 / 2),
        ("())(()", 2 - 2 / 2),
    ],
)
def test_a_pair_of_brackets_earns_one_and_a_bracket_alone_costs_a_half(text, reward):
    response = torch.tensor([["().".find(x) if x in "()." else 99 for x in text]])
    assert_close(TokenSequence.brackets().reward(PROMPT, response), torch.tensor([reward]))


def test_a_world_has_one_prompt_by_default():
    world = TokenSequence(["a", "b"], 2, no_reward)
    assert world.prompts.tolist() == [[0]]
    assert world.prompts.dtype == torch.long
    assert world.end_token is None


def test_the_gold_reward_is_the_mean_over_the_ten_raters():
    # "awful" has -2 three times, -3 six times and 4 once, with 0.293 further out for "very"
    world = ToyReviews()
    texts = ["good .", "very awful .", "not very awful .", "superb but bad ."]
    responses = torch.tensor([reviews.encode(text) for text in texts])
    very_awful = (-3 * 2.293 - 6 * 3.293 + 4.293) / 10
    expected = [1.9, very_awful, -0.74 * very_awful, 0.5 * 3.1 - 1.5 * 2.5]
    assert_close(world.reward(world.prompts[:4], responses), torch.tensor(expected))


def test_the_reviews_are_of_six_things_and_end_with_a_full_stop():
    world = ToyReviews()
    assert [reviews.decode(prompt) for prompt in world.prompts] == [
        f"the {noun}" for noun in ("film", "plot", "acting", "music", "ending", "cast")
    ]
    assert world.vocabulary[world.end_token] == "."
    assert (len(world.vocabulary), world.response_length) == (17, 4)


def test_reviews_take_a_reward_and_prompts_of_ones_own():
    world = ToyReviews(no_reward, prompts=reviews.PROMPTS[2:4])
    assert world.reward is no_reward
    assert world.prompts.tolist() == [[17, 20], [17, 21]]


# Properties


def test_brackets_have_127_responses_and_the_best_earn_3():
    texts = {"".join(letters).split(".")[0] for letters in itertools.product("().", repeat=6)}
    assert len(texts) == 127
    rewards = TokenSequence.brackets().reward(
        PROMPT.expand(127, 1), tokens_of(*[text.ljust(6, ".") for text in sorted(texts)])
    )
    assert rewards.max() == 3
    assert (rewards == 3).sum() == 5  # the ways to nest three pairs, Catalan's third number


def test_the_bracket_world_is_what_its_description_says():
    world = TokenSequence.brackets()
    assert world.vocabulary == ["(", ")", "."]
    assert (world.response_length, world.end_token) == (6, 2)
    assert world.prompts.shape == (1, 1)


def test_what_stands_after_the_end_does_not_change_a_reward():
    world = TokenSequence.brackets()
    for padding in (0, 1, 2, 99):
        responses = torch.tensor([[0, 1, 2, *[padding] * 3], [0, 0, 1, 2, *[padding] * 2]])
        rewards = world.reward(PROMPT.expand(2, 1), responses)
        assert_close(rewards, torch.tensor([1.0, 1 - 1 / 2]))


@pytest.mark.parametrize("seed", range(3))
def test_a_bandit_is_a_table_of_one_step(seed):
    table = random_logits(seed, 3, 4)
    prompts = torch.arange(3).repeat_interleave(4).unsqueeze(1)
    responses = torch.arange(4).repeat(3).unsqueeze(1)
    bandit, sequence = TokenBandit(table), TokenSequence.from_table(table)
    assert_close(bandit.reward(prompts, responses), table.flatten())
    assert_close(sequence.reward(prompts, responses), table.flatten())
    assert torch.equal(bandit.prompts, sequence.prompts)
    assert bandit.response_length == sequence.response_length


def test_prompts_are_uniform_unless_the_world_says_otherwise():
    weights = prompt_weights(SimpleNamespace(prompts=torch.zeros(4, 2)))
    assert weights.dtype == torch.float64
    assert_close(weights, torch.full((4,), 1 / 4))
    assert_close(prompt_weights(TokenBandit(TABLE)), torch.tensor([1 / 2, 1 / 2]))


@pytest.mark.parametrize("given", [[0.25, 0.0, 0.75], torch.tensor([0.25, 0.0, 0.75]).float()])
def test_weights_of_the_worlds_own_are_kept_in_double_precision(given):
    weights = prompt_weights(SimpleNamespace(prompts=torch.zeros(3, 1), prompt_weights=given))
    assert weights.dtype == torch.float64
    assert_close(weights, torch.tensor([0.25, 0.0, 0.75]))


def test_weights_rounded_to_single_precision_still_sum_to_one():
    given = torch.tensor([1 / 3, 2 / 3], dtype=torch.float32)
    world = SimpleNamespace(prompts=torch.zeros(2, 1), prompt_weights=given)
    assert torch.equal(prompt_weights(world), given.double())


def test_every_review_can_be_listed_and_scored():
    world = ToyReviews()
    batch = enumerate_all(reviews.grammar, world)
    assert len(batch.weights) == 6 * 69_905
    assert_close(batch.weights.sum(), torch.tensor(1.0))
    rewards = score(world, batch).view(6, -1)
    assert torch.equal(rewards[0], rewards[5])  # what is spoken of has no say in the reward
    assert batch.mask.sum(dim=1).unique().tolist() == [1, 2, 3, 4]


def test_the_best_reviews_for_a_low_beta_are_what_the_language_says_best():
    world = ToyReviews()
    best = exact.optimum(reviews.grammar, world, beta=0.02)
    reached = exact.evaluate(best.policy, reviews.grammar, world, beta=0.02)
    assert reached.objective == pytest.approx(best.objective)
    batch = sample(best.policy, world, 20, generator=torch.Generator().manual_seed(0))
    said = {reviews.decode(response) for response in batch.responses}
    assert said == {"superb but very great", "great but very superb"}  # both words rate 3.1


def test_what_pays_best_of_all_is_not_in_the_language():
    world = ToyReviews()
    batch = enumerate_all(reviews.grammar, world)
    rewards = score(world, batch)
    best = rewards.argmax()
    assert reviews.decode(batch.responses[best]) == "but superb superb superb"
    assert_close(rewards[best], torch.tensor(1.5 * 3 * 3.1))
    assert batch.weights[best] == 0


def test_worlds_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ToyReviews(no_reward).reward = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        TokenBandit(TABLE).rewards = -TABLE
    with pytest.raises(dataclasses.FrozenInstanceError):
        TokenSequence.brackets().end_token = None


# Edges and errors


@pytest.mark.parametrize("shape", [(3,), (2, 3, 3), ()])
def test_a_bandits_table_has_two_axes(shape):
    with pytest.raises(ValueError, match=r"rewards has shape \(.*; it must be \[n, V\]") as error:
        TokenBandit(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_an_error_that_says_where(value):
    table = torch.zeros(2, 3, 3)
    table[1, 0, 2] = value
    with pytest.raises(ValueError, match=rf"the reward at \[1, 0, 2\] is {value}"):
        TokenSequence.from_table(table)
    with pytest.raises(ValueError, match=rf"the reward at \[0, 2\] is {value}"):
        TokenBandit(table[1])


@pytest.mark.parametrize(
    "vocabulary",
    [["a", "b"], ["a", "b", "c", "d"], ["a", "b", "b"], ["a", "b", "c", "c"]],
    ids=["short", "long", "twice", "long and twice"],
)
def test_a_vocabulary_has_one_distinct_string_for_each_token(vocabulary):
    for build in (TokenBandit, TokenSequence.from_table):
        with pytest.raises(ValueError, match="must be 3 distinct strings") as error:
            build(TABLE, vocabulary)
        assert str(vocabulary) in str(error.value)


def test_a_world_needs_two_tokens():
    with pytest.raises(ValueError, match=r"vocabulary is \['a'\]; it must be 2 distinct"):
        TokenBandit(torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"vocabulary is \['a'\]"):
        TokenSequence(["a"], 2, no_reward)
    with pytest.raises(ValueError, match=r"vocabulary is \[\]"):
        TokenSequence([], 2, no_reward)
    with pytest.raises(ValueError, match=r"vocabulary is \['a', 'a'\]"):
        TokenSequence(["a", "a"], 2, no_reward)
    assert len(TokenSequence(["a", "b"], 1, no_reward).vocabulary) == 2


@pytest.mark.parametrize("length", [0, -2])
def test_a_response_has_at_least_one_token(length):
    with pytest.raises(ValueError, match=f"response_length is {length}"):
        TokenSequence(["a", "b"], length, no_reward)


@pytest.mark.parametrize("end_token", [-1, 3, 99])
def test_the_end_token_is_one_of_the_tokens(end_token):
    with pytest.raises(ValueError, match=f"end_token is {end_token}; the tokens are 0 to 2"):
        TokenSequence(["a", "b", "c"], 2, no_reward, end_token=end_token)
    with pytest.raises(ValueError, match=f"end_token is {end_token}"):
        TokenSequence.from_table(TABLE, end_token=end_token)


@pytest.mark.parametrize("end_token", [0, 2])
def test_the_first_and_the_last_token_may_end_a_response(end_token):
    assert TokenSequence(["a", "b", "c"], 2, no_reward, end_token=end_token).end_token == end_token


@pytest.mark.parametrize(
    ("prompts", "shown"),
    [
        (torch.zeros(3, dtype=torch.long), r"\(3,\) and type torch.int64"),
        (torch.zeros(3, 1, dtype=torch.float64), r"\(3, 1\) and type torch.float64"),
        (torch.zeros(3, 1, dtype=torch.bool), r"\(3, 1\) and type torch.bool"),
        ([0, 1], r"\(2,\) and type torch.int64"),
        ([[0.5], [1.5]], r"\(2, 1\) and type torch.float"),
    ],
    ids=["one axis", "floats", "truths", "a flat list", "a list of floats"],
)
def test_prompts_are_a_table_of_integers(prompts, shown):
    with pytest.raises(ValueError, match=f"prompts has shape {shown}"):
        TokenSequence(["a", "b"], 2, no_reward, prompts=prompts)


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4), (1, 2, 2, 3)])
def test_the_axes_of_a_table_after_the_first_are_equal(shape):
    with pytest.raises(ValueError, match=r"table has shape \(.*; it must be \[n, V") as error:
        TokenSequence.from_table(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    "weights",
    [[0.5, 0.4], [0.5, 0.6], [1.5, -0.5], [1.0], [0.5, 0.25, 0.25], [[0.5], [0.5]]],
    ids=["below 1", "above 1", "negative", "too few", "too many", "two axes"],
)
def test_weights_that_are_not_a_distribution_over_the_prompts_are_an_error(weights):
    world = SimpleNamespace(prompts=torch.zeros(2, 1), prompt_weights=weights)
    with pytest.raises(ValueError, match="prompt_weights is .*; it must be 2 that") as error:
        prompt_weights(world)
    assert str(weights) in str(error.value)


@pytest.mark.parametrize("prompt", [[17, 24], [17, 17], [3, 18]])
def test_a_review_of_something_unknown_is_refused(prompt):
    with pytest.raises(ValueError, match=rf"the prompt \[{prompt[0]}, {prompt[1]}\] is not one"):
        ToyReviews(no_reward, prompts=torch.tensor([[17, 18], prompt]))


@pytest.mark.parametrize("shape", [(2,), (0, 2), (2, 1, 2), (2, 3)])
def test_prompts_of_reviews_are_rows_of_two_tokens(shape):
    with pytest.raises(ValueError, match=r"prompts has shape \(.*it must be \[") as error:
        ToyReviews(no_reward, prompts=torch.full(shape, 17))
    assert str(shape) in str(error.value)


def test_reviews_without_their_ratings_say_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m ppo_toy.data ratings.tsv"):
        ToyReviews()
    assert ToyReviews(no_reward).reward is no_reward


class Learned:
    """A reward that knows for which words it was learned, as a reward model does."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def __call__(self, prompts, responses):
        return torch.zeros(len(responses))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "x", "y"], "token 1 is 'x' to the reward, 'b' in this world"),
        (["b", "a", "c"], "token 0 is 'b' to the reward, 'a' in this world"),
        (["a", "b"], "token 2 is None to the reward, 'c' in this world"),
        (["a", "b", "c", "d"], "token 3 is 'd' to the reward, None in this world"),
        ([], "token 0 is None to the reward, 'a' in this world"),
    ],
    ids=["two others", "in another order", "fewer", "more", "none"],
)
def test_a_reward_for_other_words_is_refused_with_the_first_that_differs(words, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        TokenSequence(["a", "b", "c"], 2, Learned(words))


def test_a_reward_for_other_words_than_those_of_reviews_is_refused():
    words = [*reviews.VOCABULARY[:16], "terrible"]
    said = "^token 16 is 'terrible' to the reward, 'awful' in this world$"
    with pytest.raises(ValueError, match=said):
        ToyReviews(Learned(words))
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(ToyReviews(no_reward), reward=Learned(words))


def test_a_reward_for_the_same_words_is_taken():
    for words in (["a", "b", "c"], ("a", "b", "c"), "abc"):
        reward = Learned(words)
        assert TokenSequence(["a", "b", "c"], 2, reward).reward is reward
    reward = Learned(tuple(reviews.VOCABULARY))
    assert ToyReviews(reward).reward is reward


# Against an independent route


def test_all_bracket_rewards_agree_with_a_stack():
    texts = ["".join(letters) for letters in itertools.product("().", repeat=6)]
    responses = tokens_of(*texts)
    ended = (responses == 2).cumsum(1) - (responses == 2).long() > 0
    rewards = TokenSequence.brackets().reward(
        PROMPT.expand(len(texts), 1), responses.masked_fill(ended, 99)
    )
    assert_close(rewards, torch.tensor([bracket_reward(text) for text in texts]))


@pytest.mark.parametrize("end_token", [None, 0, 2])
def test_a_table_is_looked_up_entry_by_entry(end_token):
    table = random_logits(0, 2, 3, 3, 3)
    world = TokenSequence.from_table(table, end_token=end_token)
    assert world.response_length == 3
    for n, *tokens in itertools.product(range(2), range(3), range(3), range(3)):
        entry = list(tokens)
        if end_token in entry:
            stop = entry.index(end_token)
            entry[stop:] = [end_token] * (3 - stop)
        reward = world.reward(torch.tensor([[n]]), torch.tensor([tokens]))
        assert_close(reward, table[n, entry[0], entry[1], entry[2]].unsqueeze(0))


def test_the_gold_reward_is_the_mean_of_what_each_rater_would_give():
    world, ratings = ToyReviews(), data.read_ratings()
    responses = torch.randint(0, 17, (50, 4), generator=torch.Generator().manual_seed(0))
    by_rater = [reviews.compose(responses, ratings[rater]) for rater in range(10)]
    expected = sum(by_rater) / 10
    assert_close(world.reward(world.prompts[:1].expand(50, 2), responses), expected)


def test_a_world_without_prompts_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        TokenBandit(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"prompts has shape \(0, 1\)"):
        TokenSequence(["a", "b"], 1, lambda p, r: None, prompts=torch.zeros(0, 1).long())
    with pytest.raises(ValueError, match=r"table has shape \(\)"):
        TokenSequence.from_table(torch.tensor(1.0))


def test_prompt_weights_that_are_not_numbers_are_refused():
    world = SimpleNamespace(prompts=torch.zeros(2, 1), prompt_weights=[math.nan, 0.5])
    with pytest.raises(ValueError, match="prompt_weights is"):
        prompt_weights(world)
