import re

from ppo_toy import benchmarks


def test_the_loop_and_the_batch_do_the_same_work():
    world = benchmarks.TokenBandit(benchmarks.torch.tensor([[0.5, 1.0, -1.0]]))
    reference = benchmarks.TabularPolicy(world)
    one_by_one = benchmarks._evaluate_singly(reference, world)
    assert abs(one_by_one - (0.5 + 1.0 - 1.0) / 3) < 1e-12


def test_each_line_gives_a_ratio_of_two_times(monkeypatch, capsys):
    seconds = iter([0.4, 0.2, 0.9, 0.3, 1.0, 0.1])  # slow, fast, slow, fast, ...
    monkeypatch.setattr(benchmarks, "_seconds", lambda work: next(seconds))
    monkeypatch.setattr(benchmarks, "PAIRS", 3)
    benchmarks._report("a / b", lambda: None, lambda: None)
    # ratios 2, 3, 10: median 3; slow 0.9 s, fast 0.2 s
    assert re.fullmatch(r" +3\.0 x   a / b   \(900 ms / 200\.0 ms\)\n", capsys.readouterr().out)
