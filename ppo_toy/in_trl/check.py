"""A trainer of TRL before the referee: its own class, with the settings of the run.

The referee asks about every batch of two responses in small random worlds. The trainer is given
each as if its model had just drawn it, and what it makes of it, rewards, penalty, baseline and
loss, is its own code. What stays outside is generation, and the arithmetic of a GPU.
"""

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppo_toy.in_trl.bridge import tokenizer
from ppo_toy.referee import Verdict, verdict
from ppo_toy.trajectories import Trajectories

MODEL_TYPE = "ppo_toy_table"
WORDS, END, PAD = ["a", "b", "c", "<pad>"], 2, 3
SIZE = 2  # responses of a batch, all to one prompt


def check(settings: Any, trainer_class: type | None = None) -> Verdict:
    """Says what is wrong with the mean gradient of a trainer; see `referee.verdict`.

    Args:
        settings: of TRL, as the run has them. Batch and group become two responses, the
            arithmetic double precision.
        trainer_class: whose settings they are; RLOOTrainer if None.
    """
    from trl import RLOOTrainer

    with tempfile.TemporaryDirectory() as folder:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            rule = _Rule(trainer_class or RLOOTrainer, settings, Path(folder))
            found = verdict(rule, grouped=True)
            if "KL never applied" in found.faults:  # or is the value all that knows it?
                rule.valued = True
                found = verdict(rule, grouped=True)
            return found
        finally:
            torch.set_default_dtype(usual)


class _Rule:
    """The trainer's loss of a batch, or of many side by side, as a rule."""

    valued = False  # whether the loss's value counts, not its gradient alone

    def __init__(self, trainer_class: type, settings: Any, folder: Path) -> None:
        from datasets import Dataset

        _model().save_pretrained(folder / "model")
        told = settings.to_dict() | {
            "output_dir": str(folder),
            "per_device_train_batch_size": SIZE,
            "num_generations": SIZE,
            "steps_per_generation": 1,
            "gradient_accumulation_steps": 1,
            "model_init_kwargs": {"dtype": torch.float64},
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
        }
        del told["generation_batch_size"]
        self.trainer = trainer_class(
            model=str(folder / "model"), reward_funcs=self._reward, args=type(settings)(**told),
            processing_class=tokenizer(WORDS, PAD),
            train_dataset=Dataset.from_dict({"prompt": WORDS}),
        )  # fmt: skip
        self.trainer.eos_token_ids = [END]
        self.trainer._generate_single_turn = self._generate
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.model.train()

    def __call__(
        self, policy: Any, reference: Any, batch: Trajectories, rewards: Tensor, beta: float
    ) -> Tensor:
        *runs, size = rewards.shape
        if size != SIZE or (runs and self.valued):
            raise ValueError(f"a group is {SIZE} responses")
        # Batches of the referee's side by side are groups of one batch to the trainer. Where it
        # mixes groups, the referee sees that they differ from one alone, and asks one by one.
        flat = (x.reshape(-1, x.shape[-1]) for x in (batch.prompts, batch.responses, batch.mask))
        self.prompts, self.responses, self.mask = flat
        self.rewards, n_groups = rewards.flatten(), rewards.numel() // SIZE
        self.trainer.beta = beta
        self.trainer.args.per_device_train_batch_size = rewards.numel()
        self.trainer.model.body.says[:] = [policy]
        self.trainer.ref_model.body.says[:] = [reference]
        rows = [{"prompt": WORDS[prompt]} for prompt in self.prompts[:, 0]]
        made = self.trainer._generate_and_score_completions(rows)
        surrogate = -self.trainer.compute_loss(self.trainer.model, made)
        if self.valued:
            return surrogate
        # The mean over groups is all that the trainer tells. Its gradient can be told apart, since
        # each group has a policy of its own; its value cannot, and is 0.
        return (n_groups * (surrogate - surrogate.detach())).expand(runs) / max(n_groups, 1)

    def _reward(self, completions: list[str], **_: Any) -> list[float]:
        return self.rewards.tolist()

    def _generate(self, prompt_ids: list, *rest: Any) -> Any:
        """What RLOO, and GRPO with one argument more, take from the model: tokens."""
        rows = zip(self.responses, self.mask, strict=True)
        ids = [row[seen].tolist() for row, seen in rows]
        return ids if len(rest) == 2 else (ids, None)


def _model() -> Any:
    """A model of transformers that says what a policy of ours says."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        GenerationMixin,
        PretrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

    class TableConfig(PretrainedConfig):
        model_type = MODEL_TYPE
        auto_map: ClassVar[dict] = {}

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.says: list[Any] = []  # a policy; in a list, so that it is no part of the model

        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            (policy,) = self.says
            rows = input_ids.where(input_ids < PAD, 0).view(*policy.runs, -1, input_ids.shape[1])
            logits = policy(rows[..., :1], rows[..., 1:])
            return BaseModelOutput(last_hidden_state=logits.flatten(end_dim=-3))

    class TableModel(PreTrainedModel, GenerationMixin):
        config_class, base_model_prefix = TableConfig, "body"

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.body, self.lm_head = Body(), nn.Linear(PAD, PAD, bias=False)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            pass

        def get_output_embeddings(self) -> nn.Module:
            return self.lm_head

        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            return CausalLMOutput(logits=self.lm_head(self.body(input_ids).last_hidden_state))

    AutoConfig.register(MODEL_TYPE, TableConfig, exist_ok=True)
    AutoModelForCausalLM.register(TableConfig, TableModel, exist_ok=True)
    model = TableModel(TableConfig())
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.eye(PAD))
    return model
