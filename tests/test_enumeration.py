import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from ppo_toy import enumeration
from ppo_toy.enumeration import MAX_RESPONSES, list_responses
from ppo_toy.worlds import TokenBandit, TokenSequence


def world_of(
    tokens: int, length: int, end_token: int | None = None, prompts: int = 1
) -> SimpleNamespace:
    """Has no reward and no more than a listing needs; a range is a vocabulary without memory."""
    return SimpleNamespace(
        prompts=torch.zeros(prompts, 1, dtype=torch.long),
        vocabulary=range(tokens),
        response_length=length,
        end_token=end_token,
    )


def listed_by_itertools(tokens: int, length: int, end_token: int | None) -> list[tuple[int, ...]]:
    """Every product of tokens, what follows an end replaced by the end, each once, in order."""
    responses = {}
    for response in itertools.product(range(tokens), repeat=length):
        if end_token in response:
            stop = response.index(end_token)
            response = response[:stop] + (end_token,) * (length - stop)
        responses[response] = None
    return list(responses)


SIZES = [(2, 1), (2, 4), (3, 3), (4, 2), (5, 1)]


# By hand


def test_two_tokens_and_two_steps_without_an_end():
    responses, mask = list_responses(world_of(2, 2))
    assert responses.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert mask.tolist() == [[True, True]] * 4


def test_a_response_that_ends_is_listed_once_and_padded_with_the_end():
    responses, mask = list_responses(world_of(3, 2, end_token=1))
    assert responses.tolist() == [[0, 0], [0, 1], [0, 2], [1, 1], [2, 0], [2, 1], [2, 2]]
    assert mask.tolist() == [[True, True]] * 3 + [[True, False]] + [[True, True]] * 3


def test_a_bandit_lists_its_tokens():
    responses, mask = list_responses(TokenBandit(torch.zeros(2, 4)))
    assert responses.tolist() == [[0], [1], [2], [3]]
    assert mask.tolist() == [[True]] * 4


def test_the_bracket_world_lists_127_responses():
    # 1 + 2 + 4 + 8 + 16 + 32 end after 0 to 5 brackets, and 64 have all six
    responses, mask = list_responses(TokenSequence.brackets())
    assert responses.shape == mask.shape == (127, 6)


# Properties


@pytest.mark.parametrize(("tokens", "length"), SIZES)
@pytest.mark.parametrize("ends", [False, True])
def test_there_are_as_many_responses_as_the_count_says(tokens, length, ends):
    listed, _ = list_responses(world_of(tokens, length, 0 if ends else None))
    n = tokens - 1
    shorter = sum(n**t for t in range(length))  # t tokens, then the end
    assert len(listed) == (shorter + n**length if ends else tokens**length)


@pytest.mark.parametrize(("tokens", "length"), SIZES)
def test_the_number_of_prompts_does_not_change_the_list_for_one(tokens, length):
    one = list_responses(world_of(tokens, length, 0))
    many = list_responses(world_of(tokens, length, 0, prompts=5))
    assert torch.equal(one[0], many[0])
    assert torch.equal(one[1], many[1])


def test_tokens_are_long_integers_and_the_mask_is_boolean():
    responses, mask = list_responses(world_of(2, 3, 1))
    assert responses.dtype == torch.long
    assert mask.dtype == torch.bool


# Edges and errors


def test_as_many_responses_as_the_limit_are_listed_and_one_more_is_not():
    responses, _ = list_responses(world_of(4, 10))
    numbers = (responses * 4 ** torch.arange(9, -1, -1)).sum(dim=1)
    assert torch.equal(numbers, torch.arange(MAX_RESPONSES))
    with pytest.raises(ValueError, match="has 1,048,577 responses"):
        list_responses(world_of(MAX_RESPONSES + 1, 1))


def test_few_responses_that_need_many_logits_are_refused_too():
    # 100,001 responses of up to 100,000 tokens: 2e10 logits
    with pytest.raises(ValueError, match="has 100,001 responses.*134,217,728 logits"):
        list_responses(world_of(2, 10**5, 1))


def test_a_count_with_thousands_of_digits_is_refused_at_once():
    # 2^(10^5 + 1) = 10^30103
    with pytest.raises(ValueError, match=r"about 10\^30103 responses"):
        list_responses(world_of(3, 10**5, 1))


def test_the_limit_is_about_a_million():
    assert MAX_RESPONSES == 2**20


@pytest.mark.parametrize(
    ("tokens", "length", "end_token", "prompts", "count"),
    [
        (3, 2, None, 1, 9),
        (3, 2, None, 4, 36),
        (3, 6, 2, 1, 127),
        (3, 6, 2, 2, 254),
        (2, 5, 0, 1, 6),
        (5, 1, 0, 1, 5),
    ],
)
def test_the_limit_counts_every_response_to_every_prompt(
    tokens, length, end_token, prompts, count, monkeypatch
):
    world = world_of(tokens, length, end_token, prompts)
    monkeypatch.setattr(enumeration, "MAX_RESPONSES", count)
    assert len(list_responses(world)[0]) == count / prompts
    monkeypatch.setattr(enumeration, "MAX_RESPONSES", count - 1)
    with pytest.raises(ValueError, match=f"has {count} responses"):
        list_responses(world)


@pytest.mark.parametrize(
    ("tokens", "length", "end_token", "size"),
    [
        (2, 21, None, "2,097,152"),
        (17, 6, None, "24,137,569"),
        (17, 6, 0, "17,895,697"),  # (16^7 - 1) / 15, for 1 + 16 + ... + 16^6
        (10, 14, None, "100,000,000,000,000"),
        (10, 15, None, "about 10^15"),
        (10, 10**5, None, "about 10^100000"),
        (11, 400, 0, "about 10^400"),
    ],
)
def test_a_world_too_large_is_refused_with_its_size_before_anything_is_made(
    tokens, length, end_token, size, monkeypatch
):
    world = world_of(tokens, length, end_token)
    monkeypatch.setattr(enumeration, "torch", None)  # no tensor can come to be
    with pytest.raises(ValueError, match="Sample instead") as error:
        list_responses(world)
    assert f"has {size} responses" in str(error.value)
    assert f"(1 prompts, {tokens} tokens, length {length})" in str(error.value)


def test_the_message_names_the_limit_and_the_prompts():
    with pytest.raises(ValueError, match=r"\(3 prompts, 2 tokens, length 20\); at most 1,048,576"):
        list_responses(world_of(2, 20, prompts=3))


# Against an independent route


@pytest.mark.parametrize(("tokens", "length"), SIZES)
@pytest.mark.parametrize("end", [None, 0, -1])
def test_the_list_is_the_product_of_the_tokens_with_each_ended_response_once(tokens, length, end):
    end_token = tokens - 1 if end == -1 else end
    responses, mask = list_responses(world_of(tokens, length, end_token))
    expected = listed_by_itertools(tokens, length, end_token)
    assert [tuple(response) for response in responses.tolist()] == expected
    for response, row in zip(expected, mask.tolist(), strict=True):
        n = response.index(end_token) + 1 if end_token in response else length
        assert row == [True] * n + [False] * (length - n)


@pytest.mark.parametrize("end_token", [None, 0])
def test_uniform_choices_give_probabilities_that_sum_to_one(end_token):
    # a response of k tokens has probability 3^-k; nothing is missing and nothing is twice there
    _, mask = list_responses(world_of(3, 4, end_token))
    assert math.isclose(sum(3.0 ** -sum(row) for row in mask.tolist()), 1.0)
