import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from ppo_toy.in_trl import __main__ as terminal
from ppo_toy.in_trl import bridge, libraries, tasks, trainer
from ppo_toy.in_trl.check import check
from ppo_toy.in_trl.runs import Run, append, last_checkpoint
from ppo_toy.in_trl.settings import Settings
from ppo_toy.referee import Verdict
from ppo_toy.worlds import TokenSequence

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the libraries warn of what others will change
    pytest.mark.skipif(bool(libraries.missing()), reason='needs pip install -e ".[scale]"'),
]
HERE = Path(__file__).parent
SMALL = ["--world", "brackets", "--beta", "0.5", "--steps", "4", "--batch-size", "16", "--device"]
SMALL += ["cpu", "--save-every", "1"]


def run(*words, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment,
        check=False, **options,
    )  # fmt: skip


# It is killed while it writes the optimiser's part of the third checkpoint.
DIES = """
import os, signal, sys, torch
save = torch.save
def dying(what, file, *rest, **options):
    save(what, file, *rest, **options)
    if "checkpoint-3" in str(file) and "optimizer" in str(file):
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = dying
from ppo_toy.in_trl.__main__ import main
main(sys.argv[1:])
"""


def test_a_run_that_was_killed_while_it_saved_ends_with_the_numbers_of_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = run("-m", "ppo_toy.in_trl", *SMALL, "--output", whole)
    assert first.returncode == 0, first.stderr
    dead = run("-c", DIES, *SMALL, "--output", killed)
    assert dead.returncode == -signal.SIGKILL
    assert (killed / "checkpoint-3").exists()
    assert last_checkpoint(killed).name == "checkpoint-2"
    again = run("-m", "ppo_toy.in_trl", *SMALL, "--output", killed, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert "(exact)" in first.stdout
    assert (killed / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    policies = [bridge.read_policy(folder / "policy") for folder in (whole, killed)]
    for one, other in zip(*(policy.parameters() for policy in policies), strict=True):
        assert torch.equal(one, other)
    steps = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert steps[0]["KL"] == 0  # exactly: the policy is the reference
    for row in steps:
        assert row["J"] == pytest.approx(row["R"] - 0.5 * row["KL"])


def test_two_processes_draw_different_responses_and_step_by_their_mean_gradient(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = run(*torchrun, HERE / "two_processes.py", tmp_path, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(one["said"]) == len(other["said"]) == 16
    assert one["said"] != other["said"]
    mean = (torch.tensor(one["own"]) + torch.tensor(other["own"])) / 2
    assert one["shared"] == other["shared"]
    # single precision, summed in another order
    assert_close(torch.tensor(one["shared"]), mean, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(torch.tensor(one["own"]), mean, atol=1e-3)
    assert one["after"] == other["after"]


@pytest.mark.parametrize("differs", ["reward", "policy"])
def test_processes_that_begin_with_something_else_are_named(differs, monkeypatch, tmp_path):
    world = TokenSequence.brackets()
    task = tasks.of_world(world, terminal.reference_for(world))
    of_reward = task.names["reward"]

    def of_all(mine):  # another process, which has something else in one place
        is_model = len(mine) == 64 and mine != of_reward
        odd = is_model if differs == "policy" else mine == of_reward
        return [mine, "another" if odd else mine]

    monkeypatch.setattr(trainer, "_of_all", of_all)
    settings = Settings(steps=1, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match=f"^{differs} is not the same in all processes"):
        trainer.run(task, settings, tmp_path / "run")


def test_a_batch_that_does_not_come_out_even_is_refused_with_numbers_that_would_do():
    assert Settings(batch_size=48).share(processes=2) == 24
    with pytest.raises(ValueError, match="33, which 2 processes and groups .*; 32 or 40 would"):
        Settings(batch_size=33).share(processes=2)
    with pytest.raises(ValueError, match="is 3, .*; 8 would do"):
        Settings(batch_size=3).share(processes=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", 0.0), ("beta", float("nan")), ("steps", 0), ("group", 1), ("learning_rate", -1.0),
     ("dtype", "float16"), ("device", "tpu"), ("save_every", -1)],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} is"):
        Settings(**{name: value})


def test_a_folder_holds_one_run(tmp_path):
    record = {"beta": 0.5, "epochs": 1}
    with pytest.raises(ValueError, match="holds no run that could be resumed"):
        Run(tmp_path, record, resume=True)
    made = Run(tmp_path, record)
    made.begin()
    Run(tmp_path, record)  # it has not done anything yet
    for step in range(1, 4):
        append(made.log, step=step, J=0.1 * step)
    with pytest.raises(ValueError, match="holds this run already"):
        Run(tmp_path, record)
    with pytest.raises(ValueError, match=r"beta is 0\.5 there, 1\.0 here"):
        Run(tmp_path, record | {"beta": 1.0}, resume=True)
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    made.finish_checkpoint(2)
    with made.log.open("a") as log:
        log.write('{"step": 4, "J"')  # cut off
    Run(tmp_path, record, resume=True).begin()
    assert [json.loads(line)["step"] for line in made.log.read_text().splitlines()] == [1, 2]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        Run(tmp_path, {})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        Run(tmp_path, {})


def told(**settings):
    """Settings of one of TRL's trainers, as a run has them."""
    return {"output_dir": "nowhere", "beta": 0.04, "use_cpu": True, "bf16": False,
        "num_generations": 2, "per_device_train_batch_size": 8, **settings}  # fmt: skip


def test_the_trainer_itself_has_the_gradient_of_the_objective():
    with libraries.quiet():
        found = check(Settings(beta=0.5, device="cpu").for_trl("nowhere", 4))
    assert found.faults == ()
    assert found.error < 1e-6  # TRL keeps rewards in single precision


def test_the_check_names_what_another_trainer_of_trl_does():
    with libraries.quiet():
        from trl import GRPOConfig, GRPOTrainer

        found = check(GRPOConfig(**told()), GRPOTrainer)
    assert {"reward divided by spread", "future KL dropped"} <= set(found.faults)


def test_the_check_sees_the_settings_of_the_run():
    with libraries.quiet():
        from trl import RLOOConfig

        assert check(RLOOConfig(**told(temperature=0.7))).faults == ("temperature missing",)


def test_a_run_whose_gradient_is_another_ends_before_it_begins(tmp_path, monkeypatch, capsys):
    wrong = Verdict(("future KL dropped",), 0.31, 0.9)
    monkeypatch.setattr(terminal, "check", lambda _: wrong)
    with pytest.raises(SystemExit):
        terminal.main([*SMALL, "--check", "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "not the gradient of J; off by 0.31" in said
    assert "future KL dropped: No token pays" in said
    assert not (tmp_path / "out").exists()
