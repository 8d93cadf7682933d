import torch

from ppo_toy.faults import FAULTS, PENALTIES, REWARDS


def test_every_name_in_a_pattern_is_explained():
    for table in (REWARDS, PENALTIES):
        assert {name for names in table.values() for name in names} <= set(FAULTS)


def test_no_two_patterns_are_multiples_of_each_other():
    # Otherwise the second could never be told from the first.
    for table in (REWARDS, PENALTIES):
        directions = torch.nn.functional.normalize(torch.tensor(list(table)).double())
        cosines = (directions @ directions.T).abs()
        assert (cosines - torch.eye(len(table))).max() < 1 - 1e-6


def test_the_right_pattern_stands_first_and_is_the_only_one_without_a_name():
    for table in (REWARDS, PENALTIES):
        first, *others = table.values()
        assert first == []
        assert all(others)
