import pytest
import torch
from torch.testing import assert_close

from ppo_toy.in_trl import libraries, loops
from ppo_toy.tables import table_text


def test_five_runs_of_each_loop_are_stored_and_their_numbers_fit_together():
    runs = loops.read_runs()
    assert set(runs) == {"ppo_toy", "TRL"}
    seed, objective, reward, kl, share = torch.cat(list(runs.values())).T
    assert seed.tolist() == [*range(5), *range(5)]
    beta = loops.SETTINGS["beta"]
    assert_close(objective, reward - beta * kl, atol=1.5e-4, rtol=0)  # four decimals of each
    # J* and J of the reference are the same for all: one straight line from J to share
    slope = (share.max() - share.min()) / (objective.max() - objective.min())
    line = share.min() + slope * (objective - objective.min())
    assert_close(share, line, atol=1.5e-4, rtol=0)
    assert (share > 0.8).all()
    assert (share < 1).all()


@pytest.mark.filterwarnings("ignore")  # the libraries warn of what others will change
@pytest.mark.parametrize("loop", loops.LOOPS)
def test_a_seed_run_again_ends_where_it_is_stored(loop):
    if loop == "TRL" and libraries.missing():
        pytest.skip('needs pip install -e ".[scale]"')
    (row,) = loops.made(loop, range(1))
    stored = loops.read_runs()[loop][0]
    # Single precision: a processor that rounds otherwise acts like another seed, and those of one
    # loop end within 0.015 of one another.
    assert row[:2] == [loop, 0]
    again = torch.tensor([float(x) for x in row[2:]])
    assert_close(again[-1], stored[-1], atol=0.03, rtol=0)
    assert_close(again[0], again[1] - again[2], atol=1.5e-4, rtol=0)


def test_the_row_of_another_loop_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(loops, "folder", lambda: tmp_path)
    (tmp_path / loops.FILE).write_text(table_text(loops.COLUMNS, [["verl", 0, 1, 1, 0, 1]]))
    with pytest.raises(
        ValueError, match="line 2: 'verl' is not one of the loops: ppo_toy, TRL; to"
    ):
        loops.read_runs()
