"""The folder of a run: its record, its log and its checkpoints.

run.json         what the run is: task, settings, versions
reference/       the model it began with, where that is one of ours
log.jsonl        a line for each batch: step, J, R, KL, KL_exact (of the batch, per response)
checkpoint-n/    after n updates; without the file `whole` it was not finished
policy/          what came out
runs/            TensorBoard's, where that is installed

KL is the mean log-ratio of the responses drawn; KL_exact sums, at each state that they pass
through, over all tokens. The means of both over many batches are the same, up to their noise.
"""

import json
from pathlib import Path
from typing import Any

from ppo_toy.tables import write_whole

RECORD, LOG, WHOLE = "run.json", "log.jsonl", "whole"


def last_checkpoint(folder: str | Path) -> Path | None:
    """Returns the last checkpoint in a run's folder that is whole; None where there is none."""
    whole = (mark.parent for mark in Path(folder).glob(f"checkpoint-*/{WHOLE}"))
    return max(whole, key=lambda place: int(place.name.rpartition("-")[2]), default=None)


class Run:
    """A folder that holds one run.

    Args:
        folder: made if it is not there.
        record: what the run is; two runs of one record are the same run.
        resume: whether the folder's run goes on.
        log: another file for the log than the folder's.

    Raises:
        ValueError: the folder holds another run, or something else; or there is none to resume.
    """

    def __init__(
        self,
        folder: str | Path,
        record: dict[str, Any],
        *,
        resume: bool = False,
        log: str | Path | None = None,
    ) -> None:
        """Looks at the folder; writes nothing."""
        self.folder = Path(folder)
        self.log = Path(log or self.folder / LOG)
        there, record = self._there(), json.loads(json.dumps(record))
        if there is None:
            if resume:
                raise ValueError(f"{folder} holds no run that could be resumed")
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(f"{folder} is not empty and holds no run; name another folder")
        elif there != record:
            other = [k for k in {**record, **there} if record.get(k) != there.get(k)]
            told = ", ".join(f"{k} is {there.get(k)} there, {record.get(k)} here" for k in other)
            raise ValueError(f"{folder} holds another run: {told}")
        elif not resume and (self.checkpoint() or self._lines()):
            raise ValueError(f"{folder} holds this run already; resume it, or name another folder")
        self._record = record

    def begin(self) -> None:
        """Writes the record, and cuts the log off behind the checkpoint from which it goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / RECORD, json.dumps(self._record, indent=1) + "\n")
        last = self.checkpoint()
        step = int(last.name.rpartition("-")[2]) if last else 0
        kept = [line for line in self._lines() if _step(line) * self._record["epochs"] <= step]
        write_whole(self.log, "".join(f"{line}\n" for line in kept))

    def checkpoint(self) -> Path | None:
        """Returns the last checkpoint that is whole; None where there is none."""
        return last_checkpoint(self.folder)

    def finish_checkpoint(self, step: int) -> None:
        """Marks a checkpoint as whole: all of it is on the disk."""
        write_whole(self.folder / f"checkpoint-{step}" / WHOLE, "")

    def _lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []

    def _there(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{self.folder / RECORD} is damaged: {error}") from None


def append(log: Path, **numbers: float) -> None:
    """Adds a line to a log."""
    with log.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(numbers) + "\n")


def _step(line: str) -> float:
    """The step of a line of the log; a line that was cut off belongs to none."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
