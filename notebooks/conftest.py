import os
from pathlib import Path

# Kernels inherit these: one thread beside two workers, and no progress bars.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CI", "true")

# An untouched student edition fails its own checks, as it should. Named on the command line,
# `pytest --nbval-lax notebooks/exercises/01_objective.ipynb`, it runs all the same.
collect_ignore = ["exercises"]
# Editions in other languages are proven equal to what runs here: tests/test_editions.py.
collect_ignore += [path.parent.name for path in Path(__file__).parent.glob("*/edition.toml")]
