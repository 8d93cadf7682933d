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
from ppo_toy.in_trl import bridge, libraries, tasks
from ppo_toy.in_trl.check import check
from ppo_toy.in_trl.runs import Run, last_checkpoint
from ppo_toy.in_trl.settings import Settings
from ppo_toy.referee import Verdict
from ppo_toy.worlds import TokenBandit, TokenSequence

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


def test_a_batch_that_does_not_come_out_even_is_refused_with_numbers_that_would_do():
    assert Settings(batch_size=48).share(processes=2) == 24
    with pytest.raises(
        ValueError, match="33, which 2 processes and groups of 8 .*; 32 or 40 would"
    ):
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
        made.append(step=step, J=0.1 * step)
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
    assert [row["step"] for row in made.read_log()] == [1, 2]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        Run(tmp_path, {})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        Run(tmp_path, {})


@pytest.fixture
def model(tmp_path):
    """A tiny model of another kind than ours, with four words, in a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None}
    ends = {"eos_token_id": 3, "pad_token_id": 3}
    torch.manual_seed(0)
    tiny = LlamaForCausalLM(LlamaConfig(vocab_size=4, **sizes, **heads, **ends))
    with libraries.quiet():
        tiny.save_pretrained(tmp_path / "tiny")
        bridge.tokenizer(["a", "b", "c", "."], 3).save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a b\n\nb a a\n")
    (tmp_path / "my_rewards.py").write_text(
        "def bs(prompts, responses):\n    return [text.count('b') for text in responses]\n"
        "def few(prompts, responses):\n    return [1.0]\n"
        "def nan(prompts, responses):\n    return [float('nan')] * len(responses)\n"
    )
    return tmp_path


def own(folder, reward="bs", **other):
    words = {"model": "tiny", "reward": f"my_rewards:{reward}", "prompts": "prompts.txt"} | other
    return [word for name, value in words.items() for word in (f"--{name}", value)]


def test_any_model_learns_from_any_reward(model, monkeypatch, capsys):
    monkeypatch.chdir(model)
    how = ["--beta", "0.1", "--steps", "6", "--batch-size", "32", "--learning-rate", "0.02"]
    terminal.main([*own(model), *how, "--length", "4", "--device", "cpu", "--output", "out"])
    rows = [json.loads(line) for line in Path("out/log.jsonl").read_text().splitlines()]
    assert rows[0]["KL"] == 0
    # from 1 in 4 words at random; 32 responses of up to four words: an error below 0.2
    assert rows[-1]["R"] > rows[0]["R"] + 0.5
    assert Path("out/policy/model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (own("", model="nowhere"), "--model nowhere: no model or no tokenizer there"),
        (own("", reward="few"), "the reward gave 1 numbers for 2 responses"),
        (own("", reward="nan"), "the reward of '', said to 'a b', is nan"),
        (own("", reward="no"), "--reward my_rewards:no: .* it must be module:function"),
        (own("", prompts="none.txt"), "--prompts none.txt"),
        (["--model", "tiny"], "--model needs --reward and --prompts"),
        (["--reward", "a:b"], "--reward and --prompts go with --model"),
        (["--world", "moon"], "--world moon: it must be reviews, brackets or module:function"),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_anything_is_trained(
    words, message, model, monkeypatch
):
    monkeypatch.chdir(model)
    with pytest.raises(SystemExit, match=message):
        terminal.main([*words, "--device", "cpu", "--output", "out"])
    assert not Path("out").exists()


def test_a_tokenizer_without_an_end_token_is_refused(model, monkeypatch):
    file = model / "tiny" / "tokenizer_config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in told.items() if k != "eos_token"}))
    monkeypatch.chdir(model)
    with pytest.raises(ValueError, match="its tokenizer has no end token"):
        tasks.of_model("tiny", "my_rewards:bs", "prompts.txt", 4)


def test_other_versions_than_those_pinned_are_refused(monkeypatch):
    libraries.refuse_other_versions()
    true = libraries.importlib.metadata.version
    monkeypatch.setattr(
        libraries.importlib.metadata, "version", lambda name: "0.1" if name == "trl" else true(name)
    )
    with pytest.raises(SystemExit, match=r"error: trl is 0\.1, and was checked as \d"):
        terminal.main([])


def test_words_are_distinct_and_have_no_spaces():
    words, end = bridge.words_of(TokenSequence.brackets())
    assert (words, end) == (["(", ")", "."], 2)
    words, end = bridge.words_of(TokenBandit(torch.zeros(3, 2)))
    assert (words, end) == (["a", "b", "<2>", "<end>"], 3)
    with pytest.raises(ValueError, match="token 1 is 'two words'"):
        bridge.words_of(TokenBandit(torch.zeros(1, 2), ["one", "two words"]))


def test_a_world_whose_prompts_weigh_differently_is_refused():
    world = TokenBandit(torch.zeros(2, 2))
    object.__setattr__(world, "prompt_weights", torch.tensor([0.25, 0.75]))
    with pytest.raises(ValueError, match="prompt_weights .* TRL draws all prompts alike"):
        tasks.of_world(world, terminal.reference_for(world))


def test_without_the_packages_the_script_says_which_to_install(monkeypatch):
    monkeypatch.setattr(libraries, "missing", lambda: ["trl"])
    with pytest.raises(SystemExit, match=r'not installed: trl; pip install -e "\.\[scale\]"'):
        terminal.main([])


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
