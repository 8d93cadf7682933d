import json
from pathlib import Path

import pytest
import torch

from ppo_toy.in_trl import __main__ as terminal
from ppo_toy.in_trl import bridge, libraries, tasks
from ppo_toy.worlds import TokenBandit, TokenSequence

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the libraries warn of what others will change
    pytest.mark.skipif(bool(libraries.missing()), reason='needs pip install -e ".[scale]"'),
]


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
