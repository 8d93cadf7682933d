import re
import sys

import pytest
import torch
from torch.testing import assert_close

from ppo_toy.benchmarks import __main__ as command
from ppo_toy.benchmarks import batching, floor, grpo, timing, work
from ppo_toy.policies import TabularPolicy
from ppo_toy.trajectories import respond
from ppo_toy.worlds import TokenBandit

# Timing


def test_a_line_gives_the_median_ratios_by_the_clock_and_by_cpu_time(capsys):
    # by the clock 2, 3, 10: median 3; by CPU time 6, 1, 4: median 4; 0.9 s and 0.2 s by the clock
    pairs = [((0.4, 0.6), (0.2, 0.1)), ((0.9, 0.1), (0.3, 0.1)), ((1.0, 0.4), (0.1, 0.1))]
    assert timing.report("a / b", pairs) == (900, 200)
    assert capsys.readouterr().out == (
        "  3.00 x,   4.00 x by CPU time   a / b   (900 ms / 200.0 ms)\n"
    )


def test_the_two_works_are_timed_in_turn(monkeypatch, capsys):
    done, ticks = [], iter(range(100))
    monkeypatch.setattr(timing, "now", lambda: (float(next(ticks)), 2.0 * len(done)))
    timing.compare("a / b", lambda: done.append("a"), lambda: done.append("b"), pairs=3)
    assert "".join(done) == "ababab"
    # one tick a turn, and one work in it
    assert capsys.readouterr().out.startswith("  1.00 x,   1.00 x")


def test_seconds_are_those_of_one_round(monkeypatch):
    clock = iter([(10.0, 1.0), (16.0, 2.5)])
    monkeypatch.setattr(timing, "now", lambda: next(clock))
    assert timing.seconds_of(lambda: None, rounds=3) == (2.0, 0.5)


# Packages


@pytest.mark.parametrize("package", ["no-such-package==1.0", "torch==0.0.1"])
def test_a_package_that_is_missing_ends_the_program_in_one_sentence(package):
    with pytest.raises(SystemExit) as end:
        timing.need((package, "another==2.0"))
    assert end.value.code == (
        f"this comparison needs {package}: pip install {package} another==2.0"
    )


def test_packages_that_are_there_are_printed(capsys):
    pinned = f"numpy=={timing.metadata.version('numpy')}"
    timing.need((pinned,))
    timing.need(())
    assert capsys.readouterr().out == f"compared with {pinned}\n"


def test_each_module_pins_its_packages_in_its_header():
    for name, comparison in command.COMPARISONS.items():
        assert name in command.benchmarks.__doc__ or name == "batching"
        assert " ".join(comparison.PACKAGES) in comparison.__doc__
        assert all("==" in package for package in comparison.PACKAGES)


@pytest.mark.parametrize("which", [None, *command.COMPARISONS])
def test_a_word_chooses_the_comparison(which, monkeypatch):
    done = []
    monkeypatch.setattr(sys, "argv", ["benchmarks", *([which] if which else [])])
    monkeypatch.setattr(command, "need", lambda packages: done.append(packages))
    for name, comparison in command.COMPARISONS.items():
        monkeypatch.setattr(comparison, "main", lambda name=name: done.append(name))
    threads = torch.get_num_threads()
    try:
        command.main()
    finally:
        torch.set_num_threads(threads)
    name = which or "batching"
    assert done == [command.COMPARISONS[name].PACKAGES, name]


def test_only_generate_is_told_a_device(monkeypatch, capsys):
    told = []
    monkeypatch.setattr(command, "need", lambda packages: None)
    monkeypatch.setattr(command.generate, "main", lambda device="cpu": told.append(device))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "generate", "--device", "cuda"])
    command.main()
    assert told == ["cuda"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "floor", "--device", "cuda"])
    with pytest.raises(SystemExit):
        command.main()
    assert "--device goes with generate" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # the library warns of what others will change
def test_generate_counts_tokens_a_second_and_those_that_devices_share(monkeypatch, capsys):
    pytest.importorskip("transformers", reason='needs pip install -e ".[scale]"')
    monkeypatch.setattr(command.generate, "PAIRS", 1)
    command.generate.main()
    said = capsys.readouterr().out.splitlines()
    *_, milliseconds = re.findall(r"\((\d+) ms / ([\d.]+) ms\)", "\n".join(said))
    rates = [int(x.replace(",", "")) for x in said[3].partition(": ")[2].split(" / ")]
    for rate, ms in zip(rates, map(float, milliseconds), strict=True):
        assert rate == pytest.approx(64 * 12 * 1000 / ms, rel=0.1)  # printed to a digit or two
    assert said[-1] == "tokens drawn on cpu as on the CPU, in double precision: 768 of 768"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_cuda_is_refused_in_a_sentence():
    with pytest.raises(SystemExit, match="torch finds no GPU here"):
        command.generate.main("cuda")


# The works


def test_the_loop_and_the_batch_do_the_same_work():
    world = TokenBandit(torch.tensor([[0.5, 1.0, -1.0]]))
    one_by_one = batching._evaluate_singly(TabularPolicy(world), world)
    assert abs(one_by_one - (0.5 + 1.0 - 1.0) / 3) < 1e-12


def test_an_iteration_is_four_updates_on_64_responses_of_12_tokens(monkeypatch):
    updates, batches = [], []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda adam: (updates.append(1), step(adam)))

    def watched(*given):
        batches.append(respond(*given))
        return batches[-1]

    monkeypatch.setattr("ppo_toy.training.respond", watched)
    work.iterate(work.new_world(), 2)
    assert len(updates) == 2 * 4
    for batch in batches:
        assert batch.prompts.shape == (64, 4)
        assert batch.responses.shape == (64, 12)
        assert batch.mask.all()
    assert len(batches) == 2


def test_the_model_has_two_layers_of_width_64_in_single_precision():
    policy = work.new_policy()
    assert len(policy.blocks) == 2
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert policy.head.weight.shape == (50, 64)
    reward = work.new_world(learned=True).reward.trunk
    assert sum(p.numel() for p in reward.parameters()) == (
        sum(p.numel() for p in policy.parameters()) + 64 + 1  # the head that gives the reward
    )


def test_the_rule_counts_zeros_for_both():
    responses = torch.tensor([[0, 3, 0], [1, 2, 3], [0, 0, 0]])
    ours = work.zeros_written(responses[:, :1], responses)
    assert_close(ours, torch.tensor([2.0, 0.0, 3.0]))
    assert grpo._zeros_written(responses.tolist()) == ours.tolist()


# The floor


def test_a_product_of_matrices_is_two_flops_a_multiplication_and_one_operation():
    x, y = torch.ones(2, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    assert floor.counts(lambda: x @ y.t()) == (2 * 2 * 3 * 5, 1)  # the transpose is a view
    # forward once, backward once for each factor
    flops, operations = floor.counts(lambda: (x @ y.t()).sum().backward())
    assert flops == 3 * 2 * 2 * 3 * 5
    assert operations >= 5  # three products, a sum, and the ones that the gradient begins with


def test_the_flops_of_a_forward_pass_are_those_of_its_layers():
    policy, world = work.new_policy(), work.new_world()
    responses = world.prompts[:, :3]
    flops, _ = floor.counts(lambda: policy(world.prompts, responses))
    # 7 tokens through 2 layers of (3 + 1 + 4 + 4) 64 x 64 weights; the head reads 4 of them
    assert flops == 2 * 64 * (7 * 2 * 12 * 64 * 64 + 4 * 64 * 50)


def test_rate_and_cost_are_per_flop_and_per_operation(monkeypatch):
    clock = iter([(0.0, 0.0), (8.0, 4.0)] * 2)
    monkeypatch.setattr(timing, "now", lambda: next(clock))
    flops = 2 * (64 * 15) * (12 * 64 * 64)
    assert floor.per_flop(repeats=2) == (4.0 / flops, 2.0 / flops)
    assert floor.per_operation(repeats=4) == (2.0, 1.0)
