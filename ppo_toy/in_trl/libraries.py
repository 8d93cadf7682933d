"""What has to be installed, and how to keep it quiet."""

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import warnings
from collections.abc import Iterator

PACKAGES = ("trl", "transformers", "accelerate", "datasets")


def missing() -> list[str]:
    """Returns which of the packages that this one needs are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def refuse_other_versions() -> None:
    """Raises a ValueError where a version is not the one that `pyproject.toml` pins for `scale`."""
    lines = importlib.metadata.requires("ppo_toy") or []
    pins = dict(line.split(";")[0].strip().split("==") for line in lines if '"scale"' in line)
    for name, pinned in pins.items():
        if (found := importlib.metadata.version(name)) != pinned:
            raise ValueError(f"{name} is {found}, and was checked as {pinned} only; "
                'pip install -e ".[scale]" brings that')  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what the libraries print and warn of from the screen, and the libraries off the net."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from transformers import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


def versions() -> dict[str, str]:
    """Returns the version of each package on which the numbers of a run depend."""
    return {name: importlib.metadata.version(name) for name in ("torch", *PACKAGES)}
