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
    comparison = COMPARISONS[parser.parse_args().which]
    need(comparison.PACKAGES)
    torch.set_num_threads(1)
    comparison.main()


if __name__ == "__main__":
    main()
