import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from problems import generator
from torch.testing import assert_close

from ppo_toy.in_trl import __main__ as terminal
from ppo_toy.in_trl import bridge, diary, libraries, tasks, trainer
from ppo_toy.in_trl.settings import Settings
from ppo_toy.trajectories import per_step_kl, sample
from ppo_toy.worlds import TokenSequence

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the libraries warn of what others will change
    pytest.mark.skipif(bool(libraries.missing()), reason='needs pip install -e ".[scale]"'),
]
SMALL = ["--world", "brackets", "--beta", "0.5", "--device", "cpu"]


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("logits", [diary.LOGITS, 100])
def test_the_exact_kl_of_a_batch_is_that_of_our_own_policies(logits, monkeypatch, tmp_path):
    world = TokenSequence.brackets()
    reference = terminal.reference_for(world)
    with libraries.quiet():
        task, settings = tasks.of_world(world, reference), Settings(batch_size=8, device="cpu")
        made = trainer.make_trainer(task, settings, tmp_path)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(0))
    policy = bridge.from_transformers(made.model).double()
    batch = sample(policy, world, 40, generator=generator(1))
    assert 6 < batch.mask.sum() < batch.mask.numel()  # of unequal lengths
    of_trl = {
        "prompt_ids": batch.prompts, "prompt_mask": torch.ones_like(batch.prompts),
        "completion_ids": batch.responses, "completion_mask": batch.mask.long(),
    }  # fmt: skip
    monkeypatch.setattr(diary, "LOGITS", logits)  # all at once, or a few rows at a time
    own = per_step_kl(policy, reference.double(), batch).sum(dim=-1)
    # single precision, in another order of operations
    assert_close(diary._exact_kl(made, of_trl), own.detach(), atol=1e-4, rtol=1e-3)


def test_the_log_lies_where_it_is_told_and_its_two_kls_agree_within_their_noise(tmp_path):
    log = tmp_path / "elsewhere.jsonl"
    how = ["--steps", "24", "--batch-size", "64", "--learning-rate", "0.02", "--log", str(log)]
    terminal.main([*SMALL, *how])
    assert [*tmp_path.iterdir()] == [log]  # without --output nothing else is kept
    rows = lines(log)
    assert [row["step"] for row in rows] == [*range(1, 25)]
    assert rows[0]["KL"] == rows[0]["KL_exact"] == 0  # exactly: the policy is the reference
    assert min(row["KL_exact"] for row in rows[1:]) > 0
    off = torch.tensor([row["KL"] - row["KL_exact"] for row in rows[1:]])
    noise = off.std() / math.sqrt(len(off))
    # four standard errors: right estimates fail for about one seed in 10,000
    assert off.mean().abs() < 4 * noise
    assert noise < 0.1 * torch.tensor([row["KL_exact"] for row in rows[1:]]).mean()


def test_in_bfloat16_it_runs_and_saves_weights_in_single_precision(tmp_path, monkeypatch):
    from accelerate import Accelerator

    dtypes, autocast = set(), Accelerator.autocast

    def watched(self, *given):
        dtypes.add(self.mixed_precision)
        return autocast(self, *given)

    monkeypatch.setattr(Accelerator, "autocast", watched)
    how = ["--steps", "3", "--batch-size", "16", "--dtype", "bfloat16", "--save-every", "1"]
    terminal.main([*SMALL, *how, "--output", str(tmp_path / "out")])
    assert dtypes == {"bf16"}
    rows = lines(tmp_path / "out" / "log.jsonl")
    assert rows[0]["KL"] == rows[0]["KL_exact"] == 0
    assert all(math.isfinite(row["J"]) for row in rows)
    for place in ("policy", "checkpoint-3"):
        bridge.read_policy(tmp_path / "out" / place)  # it is one of ours
        with libraries.quiet():
            from transformers import AutoModelForCausalLM

            kept = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / place, dtype="auto")
        assert {parameter.dtype for parameter in kept.parameters()} == {torch.float32}


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs pip install tensorboard"
)
def test_where_tensorboard_is_installed_it_is_told_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    terminal.main([*SMALL, "--steps", "2", "--batch-size", "16", "--output", str(out)])
    (folder,) = (out / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    for name, ours in (("train/reward", "R"), ("train/kl_exact", "KL_exact")):
        told = [event.value for event in events.Scalars(name)]
        assert told == pytest.approx([row[ours] for row in lines(out / "log.jsonl")])


def launched(*words):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", *words]
    how = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    what = ["-m", "ppo_toy.in_trl", *SMALL, "--steps", "1", "--batch-size", "16"]
    return subprocess.run([*command, *how, *what], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def test_accelerate_launches_two_processes_on_cpus_too():
    done = launched("--multi_gpu")
    assert done.returncode == 0, done.stderr
    for process in (1, 2):
        assert f"process {process} of 2 is done" in done.stdout
    assert "accelerate launch started one process" not in done.stderr


def test_where_accelerate_launches_one_process_for_two_it_is_said():
    done = launched("--cpu")
    assert done.returncode == 0, done.stderr
    assert "process 1 of 1 is done" in done.stdout
    assert "accelerate launch started one process" in done.stderr
