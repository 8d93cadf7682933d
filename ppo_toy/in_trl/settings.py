"""How a run is run, and what TRL calls that."""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """How a run is run.

    Args:
        beta: coefficient of the KL, reward per nat.
        steps: batches.
        batch_size: responses of a batch, over all processes together.
        learning_rate: of Adam; falls linearly to 0.
        group: responses to one prompt in a batch, compared with one another.
        epochs: updates made from one batch.
        seed: of everything that is drawn.
        device: "cpu", "cuda", or "auto": CUDA where there is one.
        dtype: "float32" or "bfloat16", of the arithmetic; weights stay in float32.
        save_every: steps from one checkpoint to the next; 0 for none.

    Raises:
        ValueError: one of them is out of its range; the message names it.
    """

    beta: float = 1.0
    steps: int = 30
    batch_size: int = 256
    learning_rate: float = 3e-3
    group: int = 8
    epochs: int = 1
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    save_every: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        least = {"steps": 1, "batch_size": 1, "group": 2, "epochs": 1, "seed": 0, "save_every": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {low} or more")
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ValueError(f"beta is {self.beta}; it must be above 0, in reward per nat")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda', and torch finds none here")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")

    @property
    def on_cpu(self) -> bool:
        """Whether it runs on the CPU."""
        return self.device == "cpu" or not torch.cuda.is_available()

    def processes(self) -> Any:
        """Returns accelerate's view of the processes that share this run."""
        from accelerate import PartialState

        return PartialState(cpu=self.on_cpu)

    def share(self, processes: int) -> int:
        """Returns how many responses of a batch one process makes.

        Raises:
            ValueError: processes or groups would not come out even; it says what would.
        """
        unit = math.lcm(processes, self.group)
        if self.batch_size % unit:
            below, above = (self.batch_size // unit + k for k in (0, 1))
            would = " or ".join(str(k * unit) for k in (below, above) if k)
            raise ValueError(
                f"batch_size is {self.batch_size}, which {processes} processes and groups of "
                f"{self.group} do not divide; {would} would do"
            )
        return self.batch_size // processes

    def for_trl(self, output: str | Path, length: int, **more: Any) -> Any:
        """Returns TRL's settings of this run.

        Args:
            output: the run's folder.
            length: the most tokens of a response.
            more: what else to tell TRL.
        """
        from trl import RLOOConfig

        told = {
            "output_dir": str(output),
            "beta": self.beta,
            "max_steps": self.steps * self.epochs,  # TRL counts updates
            "num_iterations": self.epochs,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "linear",
            "num_generations": self.group,
            "temperature": 1.0,
            "top_k": 0,
            "seed": self.seed,
            "per_device_train_batch_size": self.share(self.processes().num_processes),
            "gradient_accumulation_steps": 1,
            "steps_per_generation": 1,
            "max_completion_length": length,
            "model_init_kwargs": {"dtype": "float32"},
            "gradient_checkpointing": False,
            "use_cpu": self.on_cpu,
            "bf16": self.dtype == "bfloat16",
            "logging_strategy": "steps",
            "logging_steps": self.epochs,
            "save_strategy": "steps" if self.save_every else "no",
            "save_steps": max(self.save_every, 1) * self.epochs,
            "save_total_limit": 2,
            "report_to": "tensorboard" if importlib.util.find_spec("tensorboard") else "none",
            "disable_tqdm": True,
            "ddp_find_unused_parameters": False,
        }
        return RLOOConfig(**told | more)
