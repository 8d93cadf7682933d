"""What is written down while TRL trains: log, marks of checkpoints, a progress bar."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ppo_toy.in_trl.runs import append
from ppo_toy.in_trl.settings import Settings
from ppo_toy.kl import masked_kl

LOGITS = 2**24  # of so many at a time the exact KL is taken: 128 MB in double precision


def keep(
    trainer: Any,
    settings: Settings,
    log: Path,
    finish: Callable[[int], None] = lambda step: None,
    *,
    bar: bool = False,
) -> None:
    """Lets a trainer of TRL write down what it does.

    Args:
        trainer: which has not begun.
        settings: of its run.
        log: gets a line for each batch; see `runs`.
        finish: told the number of updates when a checkpoint is on the disk.
        bar: whether to show a progress bar.
    """
    trainer.add_callback(_diary(settings, log, finish, bar))
    _measure_exact_kl(trainer)


def _measure_exact_kl(trainer: Any) -> None:
    """Lets a trainer log the KL a second way, `kl_exact`."""
    theirs = trainer._generate_and_score_completions

    def look(rows: list[Any]) -> dict[str, Any]:
        made = theirs(rows)
        kl = trainer.accelerator.gather(_exact_kl(trainer, made))
        trainer._metrics["train"]["kl_exact"].append(kl.mean().item())
        return made

    trainer._generate_and_score_completions = look


@torch.no_grad()
def _exact_kl(trainer: Any, made: dict[str, Any]) -> Tensor:
    """KL(policy || reference) at the states of each response, summed over them, [B]."""
    mask, length = made["completion_mask"].bool(), made["completion_ids"].shape[1]
    text = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
    seen = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
    models = [trainer.accelerator.unwrap_model(x) for x in (trainer.model, trainer.ref_model)]
    n_tokens = models[0].config.get_text_config().vocab_size
    sums = []
    for part in torch.arange(len(text)).split(max(1, LOGITS // (text.shape[1] * n_tokens))):
        told = {"input_ids": text[part], "attention_mask": seen[part], "use_cache": False}
        with trainer.accelerator.autocast():
            logits = [x(**told).logits for x in models]
        log_p, log_ref = (x[:, -length - 1 : -1].double().log_softmax(dim=-1) for x in logits)
        sums.append(masked_kl(log_p, log_ref, mask[part]).sum(dim=-1))
    return torch.cat(sums)


def _diary(settings: Settings, log: Path, finish: Callable[[int], None], bar: bool) -> Any:
    from transformers import TrainerCallback

    class Diary(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            shown = bar and sys.stderr.isatty()
            total, done = settings.steps * settings.epochs, state.global_step
            self.bar = tqdm(total=total, initial=done, unit="update", disable=not shown, delay=2)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "reward" not in (logs or {}) or not state.is_world_process_zero:
                return
            # TRL's kl is a mean over tokens; the objective's is a sum over a response.
            kl = logs["kl"] * logs["completions/mean_length"]
            objective = logs["reward"] - settings.beta * kl
            step = state.global_step // settings.epochs
            exact = logs["kl_exact"]
            append(log, step=step, J=objective, R=logs["reward"], KL=kl, KL_exact=exact)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
            if state.is_world_process_zero:
                finish(state.global_step)

    return Diary()
