"""The run: TRL's trainer, told what to do, and what it did written down."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ppo_toy.gpt import TinyGPT
from ppo_toy.in_trl import bridge, diary, tasks
from ppo_toy.in_trl.libraries import versions
from ppo_toy.in_trl.runs import Run
from ppo_toy.in_trl.settings import Settings
from ppo_toy.in_trl.tasks import Task
from ppo_toy.policies import fingerprint


def train_in_trl(
    reference: TinyGPT, world: Any, *, log: str | Path | None = None, **settings: Any
) -> TinyGPT:
    """Returns a policy that TRL's RLOO trainer made out of the reference.

    RLOO takes the sampled log-ratio of the whole response from its reward, form (B) of lesson 03,
    and compares each response with the others of its group, which answer the same prompt.

    Args:
        reference: where training starts, and what the KL is measured to.
        world: any whose tokens are words.
        log: a file that gets a line for each batch; see `runs`.
        settings: those of `Settings`, by name.
    """
    told, task = Settings(**{"device": "cpu"} | settings), tasks.of_world(world, reference)
    with shared_folder(told) as folder:
        trainer = make_trainer(task, told, folder)
        if log:
            diary.keep(trainer, told, Path(log))
        trainer.train()
        return bridge.from_transformers(trainer.accelerator.unwrap_model(trainer.model))


@contextlib.contextmanager
def shared_folder(settings: Settings) -> Iterator[str]:
    """A folder for a run that keeps nothing, the same for all processes of a machine."""
    from accelerate.utils import broadcast_object_list

    state = settings.processes()
    with tempfile.TemporaryDirectory() as own:
        (folder,) = broadcast_object_list([own])
        yield folder
        state.wait_for_everyone()


def make_trainer(
    task: Task,
    settings: Settings,
    folder: str | Path,
    *,
    callbacks: Sequence[Any] = (),
    **more: Any,
) -> Any:
    """Returns TRL's trainer of a task; nothing is trained yet.

    Args:
        task: what is trained on what.
        settings: how.
        folder: where the trainer may write.
        callbacks: of transformers' kind.
        more: what else to tell TRL.
    """
    from datasets import Dataset
    from trl import RLOOTrainer

    def reward(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        return task.rewards(prompts, completions, completion_ids)

    told = settings.for_trl(folder, task.length, **more)
    rows = task.prompts * -(-settings.batch_size // len(task.prompts))
    trainer = RLOOTrainer(
        model=_place_of(task, settings, Path(folder)), reward_funcs=reward, args=told,
        processing_class=task.tokenizer, train_dataset=Dataset.from_dict({"prompt": rows}),
        callbacks=list(callbacks),
    )  # fmt: skip
    models = {"policy": trainer.model, "reference": trainer.ref_model}
    unwrap = trainer.accelerator.unwrap_model
    _compare({name: fingerprint(unwrap(model)) for name, model in models.items()})
    return trainer


def _place_of(task: Task, settings: Settings, folder: Path) -> str:
    """From where the trainer can read the model twice, as policy and as reference; made once."""
    if isinstance(task.model, str):
        return task.model
    place, part = folder / "reference", folder / "reference.part"
    with settings.processes().main_process_first():
        if not place.exists():
            task.model.save_pretrained(part)
            task.tokenizer.save_pretrained(part)
            part.rename(place)
    return str(place)


def run(
    task: Task,
    settings: Settings,
    folder: str | Path,
    *,
    resume: bool = False,
    log: str | Path | None = None,
    bar: bool = True,
) -> Any:
    """Trains, writes down what happens, and returns the trained model of transformers.

    Args:
        task: what is trained on what.
        settings: how.
        folder: the run's; see `runs`.
        resume: whether the folder's run goes on from its last whole checkpoint. It ends with the
            numbers of a run that was not interrupted.
        log: another file for the log than the folder's `log.jsonl`.
        bar: whether the first process shows a progress bar.

    Raises:
        ValueError: the folder holds another run, or processes differ in what they begin with.
    """
    state = settings.processes()
    task.probe()
    record = {**task.names, **asdict(settings), "processes": state.num_processes, **versions()}
    _compare(record)
    made = Run(folder, record, resume=resume, log=log)
    state.wait_for_everyone()  # all have seen the folder as it was
    if state.is_main_process:
        made.begin()
    state.wait_for_everyone()
    trainer = make_trainer(task, settings, folder)
    bar = bar and state.is_main_process
    diary.keep(trainer, settings, made.log, made.finish_checkpoint, bar=bar)
    trainer.train(resume_from_checkpoint=str(last) if (last := made.checkpoint()) else None)
    trainer.save_model(str(Path(folder) / "policy"))
    return trainer.accelerator.unwrap_model(trainer.model)


def _compare(values: dict[str, Any]) -> None:
    """Raises a ValueError unless all processes have the same values."""
    for name, value in values.items():
        if len(set(found := _of_all(str(value)))) > 1:
            short = ", ".join(text[:8] for text in found)
            raise ValueError(f"{name} is not the same in all processes: {short}")


def _of_all(text: str) -> list[str]:
    """The texts of all processes."""
    from accelerate.utils import gather_object

    return gather_object([text])
