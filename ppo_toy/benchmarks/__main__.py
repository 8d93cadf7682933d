"""Runs one comparison; `ppo_toy.benchmarks` lists them."""

import argparse

import torch

from ppo_toy import benchmarks
from ppo_toy.benchmarks import batching, cartpole, floor, generate, grpo, ppo
from ppo_toy.benchmarks.timing import need

COMPARISONS = {
    "batching": batching,
    "cartpole": cartpole,
    "generate": generate,
    "ppo": ppo,
    "grpo": grpo,
    "floor": floor,
}


def main() -> None:
    """Prints one of the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m ppo_toy.benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("which", nargs="?", choices=COMPARISONS, default="batching")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where generate computes")
    asked = parser.parse_args()
    comparison, where = COMPARISONS[asked.which], {"device": asked.device} if asked.device else {}
    if where and comparison is not generate:
        parser.error("--device goes with generate")
    need(comparison.PACKAGES)
    torch.set_num_threads(1)
    comparison.main(**where)


if __name__ == "__main__":
    main()
