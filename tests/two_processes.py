"""Run by torchrun: one step of TRL's trainer in each process; each writes down what it saw."""

import json
import sys
from pathlib import Path

import torch

from ppo_toy.gpt import GPTConfig, TinyGPT
from ppo_toy.in_trl import libraries, tasks
from ppo_toy.in_trl.settings import Settings
from ppo_toy.in_trl.trainer import make_trainer
from ppo_toy.worlds import TokenSequence


def main(folder: str) -> None:
    world = TokenSequence.brackets()
    reference = TinyGPT(GPTConfig(3, 3, 7), generator=torch.Generator().manual_seed(0))
    task, said, grads = tasks.of_world(world, reference), [], {}
    settings = Settings(beta=0.5, steps=1, batch_size=32, device="cpu")
    with libraries.quiet():
        from transformers import TrainerCallback

        class Look(TrainerCallback):
            def on_pre_optimizer_step(self, *_, model, **others):
                grads["shared"] = flat(p.grad for p in model.parameters())

        trainer = make_trainer(task, settings, folder, callbacks=[Look()], max_grad_norm=0.0)
        theirs = trainer.compute_loss

        def look(model, inputs, *rest, **options):
            said.extend(inputs["completion_ids"].tolist())
            own = trainer.accelerator.unwrap_model(model)
            loss = theirs(own, inputs, *rest, **options)
            grads["own"] = flat(torch.autograd.grad(loss, list(own.parameters())))
            return theirs(model, inputs, *rest, **options)

        trainer.compute_loss = look
        trainer.train()
    after = trainer.accelerator.unwrap_model(trainer.model).parameters()
    seen = {"said": said, "after": flat(after), **grads}
    rank = trainer.accelerator.process_index
    Path(folder, f"{rank}.json").write_text(
        json.dumps({k: v if k == "said" else v.tolist() for k, v in seen.items()})
    )


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


if __name__ == "__main__":
    main(sys.argv[1])
