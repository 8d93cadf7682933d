"""Trains in TRL from the terminal."""

import argparse
import contextlib
import os
import signal
import sys
from dataclasses import fields
from typing import Any

import torch

from ppo_toy import in_trl, recipes
from ppo_toy.gpt import GPTConfig, TinyGPT
from ppo_toy.in_trl import libraries, tasks, trainer
from ppo_toy.in_trl.bridge import words_of
from ppo_toy.in_trl.check import check
from ppo_toy.in_trl.runs import last_checkpoint
from ppo_toy.in_trl.settings import DTYPES, Settings
from ppo_toy.policies import freeze
from ppo_toy.referee import FAULTS, Verdict
from ppo_toy.worlds import TokenSequence, ToyReviews

EXAMPLES = """
examples:
  python -m ppo_toy.in_trl
  python -m ppo_toy.in_trl --world brackets --beta 0.5 --output runs/brackets --save-every 10
  torchrun --nproc-per-node 2 -m ppo_toy.in_trl
  accelerate launch --multi_gpu --num_processes 2 -m ppo_toy.in_trl
  torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m ppo_toy.in_trl
  python -m ppo_toy.in_trl --model path/or/name --reward my_rewards:politeness \\
      --prompts prompts.txt --length 64 --learning-rate 1e-6 --output runs/polite --save-every 50
  python -m ppo_toy.in_trl --check
"""
ONE_PROCESS = (
    "note: accelerate launch started one process; without GPUs it starts several with --multi_gpu "
    "only, whatever --num_processes says; or use torchrun"
)
WORLDS = {
    "reviews": lambda: ToyReviews(reward=recipes.reward_model()),
    "brackets": TokenSequence.brackets,
}


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    made = argparse.ArgumentParser(prog="python -m ppo_toy.in_trl", description=in_trl.__doc__,
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    what = made.add_argument_group("what is trained on what")
    what.add_argument("--world", default="reviews", help="reviews, brackets, or module:function "
        "that returns a world; its policy is a tiny GPT (default: reviews)")  # fmt: skip
    what.add_argument("--model", help="folder or name of a causal model of transformers; in place "
        "of a world, with --reward and --prompts")  # fmt: skip
    what.add_argument("--reward", help="module:function of prompts and responses, lists of texts")
    what.add_argument("--prompts", help="a file of text, a prompt on each line")
    what.add_argument("--length", type=int, default=64, help="most tokens of a response to a "
        "prompt of --prompts (default: 64)")  # fmt: skip
    how = made.add_argument_group("how")
    for field in fields(Settings):
        choices = {"device": ("auto", "cpu", "cuda"), "dtype": DTYPES}.get(field.name)
        how.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, choices=choices,
            default=field.default, help=f"(default: {field.default})")  # fmt: skip
    where = made.add_argument_group("what is kept")
    where.add_argument("--output", help="folder of the run; without it nothing is kept")
    where.add_argument("--resume", action="store_true", help="the run in --output goes on")
    where.add_argument("--log", help="another file for the log than log.jsonl in --output")
    where.add_argument("--check", action="store_true", help="first hold this trainer, with these "
        "settings, against the exact gradient in small worlds, and stop if it is off")  # fmt: skip
    return made


def task_of(arguments: argparse.Namespace) -> tasks.Task:
    """Returns what the command line asks for; a ValueError names what does not fit."""
    if arguments.model:
        if not (arguments.reward and arguments.prompts):
            raise ValueError("--model needs --reward and --prompts")
        return tasks.of_model(
            arguments.model, arguments.reward, arguments.prompts, arguments.length
        )
    if arguments.reward or arguments.prompts:
        raise ValueError("--reward and --prompts go with --model; a world has its own")
    if arguments.world not in WORLDS and ":" not in arguments.world:
        known = ", ".join(WORLDS)
        raise ValueError(f"--world {arguments.world}: it must be {known} or module:function")
    make = WORLDS.get(arguments.world) or tasks.function_of("--world", arguments.world)
    world = make()
    return tasks.of_world(world, reference_for(world))


def reference_for(world: Any) -> TinyGPT:
    """Returns the pretrained policy of the reviews, or a tiny GPT that has learned nothing."""
    if isinstance(world, ToyReviews):
        return recipes.reference_policy()
    words, _ = words_of(world)
    context = torch.as_tensor(world.prompts).shape[1] + world.response_length
    sizes = GPTConfig(len(words), len(world.vocabulary), context)
    return freeze(TinyGPT(sizes, generator=torch.Generator().manual_seed(0)))


def report(found: Verdict) -> str:
    """Returns a verdict in words."""
    if not found.faults:
        return f"check: the gradient of J, to within {found.error:.0e} of its length"
    names = [f"  {name}: {FAULTS[name]}" for name in found.faults]
    return "\n".join([f"check: not the gradient of J; off by {found.error:.2f} of it", *names])


def main(words: list[str] | None = None) -> None:
    """Trains, and says what came out."""
    arguments = parser().parse_args(words)
    if missing := libraries.missing():
        raise SystemExit(f'not installed: {" ".join(missing)}; pip install -e ".[scale]"')
    # torchrun ends the others with this signal when one process has died.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_ended(arguments.output)))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    try:
        _run(arguments)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except RuntimeError as error:
        if not torch.distributed.is_initialized():
            raise
        raise SystemExit(_ended(arguments.output)) from error


def _run(arguments: argparse.Namespace) -> None:
    libraries.refuse_other_versions()
    settings = Settings(**{f.name: getattr(arguments, f.name) for f in fields(Settings)})
    rank, n_processes = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    settings.share(n_processes)
    # What accelerate sets where it launches one process only.
    if "ACCELERATE_USE_CPU" in os.environ and "WORLD_SIZE" not in os.environ and settings.on_cpu:
        print(ONE_PROCESS, file=sys.stderr)
    if arguments.check and n_processes > 1:
        raise ValueError("--check is for one process: call it once before, without torchrun")
    with libraries.quiet():
        task = task_of(arguments)
        found = check(settings.for_trl("unused", task.length)) if arguments.check else None
    if found:
        print(report(found), flush=True)
    if found and found.faults:
        raise SystemExit(1)
    place = contextlib.nullcontext(arguments.output)
    with (
        libraries.quiet(),
        place if arguments.output else trainer.shared_folder(settings) as folder,
    ):
        model = trainer.run(task, settings, folder, resume=arguments.resume, log=arguments.log)
    # In one piece, so that the lines of two processes do not mix.
    print(f"process {rank + 1} of {n_processes} is done\n", end="", flush=True)
    if rank == 0 and task.judge:
        reached = task.judge(model, settings.beta)
        print(f"J {reached.objective:.3f}   R {reached.reward:.3f}   KL {reached.kl:.3f}   (exact)")


def _ended(output: str | None) -> str:
    last = last_checkpoint(output) if output else None
    kept = f"{last} is whole: --resume goes on from there" if last else "there is no checkpoint"
    return f"another process ended, and with it the run; {kept}"


if __name__ == "__main__":
    main()
