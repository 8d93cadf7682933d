"""The whole story in the terminal: `python -m ppo_toy --help`."""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from ppo_toy import exact
from ppo_toy.policies import TabularPolicy
from ppo_toy.training import History, train
from ppo_toy.worlds import TokenBandit, TokenSequence

TINY = 1e-12  # keeps a constant reward, where there is nothing to gain, from dividing by 0

EPILOG = """\
The table shows, for each beta, the expected reward R, the KL to the reference (nats per response)
and J = R - beta * KL: of the reference, where training starts; of the trained policy (median over
the seeds); and of the best policy there is, by enumeration. "gap" is the part of J* - J_ref that
training left unearned. Everything in the table is exact, not sampled.

examples:
  python -m ppo_toy
  python -m ppo_toy --world brackets --betas 0.25 0.5 --steps 400
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        _tell(options)
    except (ValueError, OSError) as error:
        print(f"ppo_toy: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ppo_toy",
        description="Trains small policies by PPO-Penalty and compares them with the exact best.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--world", choices=["word", "brackets"], default="word", help="one-word reply (default), "
        "or sequences of brackets")  # fmt: skip
    add("--betas", type=float, nargs="+", default=[0.25, 0.5, 1.0], metavar="BETA",
        help="coefficients of the KL, reward per nat (default: 0.25 0.5 1)")  # fmt: skip
    add("--steps", type=int, default=200, help="training steps (default: 200)")
    add("--batch-size", type=int, default=256, help="responses in a step (default: 256)")
    add("--seeds", type=int, default=5, help="runs of each beta (default: 5)")
    add("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    add("--picture", type=Path, default=Path("ppo_toy.png"), help="where to save the picture "
        "(default: ppo_toy.png)")  # fmt: skip
    return parser


def _world_and_reference(name: str) -> tuple[TokenBandit | TokenSequence, TabularPolicy]:
    if name == "brackets":
        world = TokenSequence.brackets()
        return world, TabularPolicy(world)
    world = TokenBandit.one_word_reply()
    likely = torch.tensor([[0.30, 0.25, 0.20, 0.15, 0.07, 0.03]], dtype=torch.float64)
    return world, TabularPolicy(world, likely.log())


def _tell(options: argparse.Namespace) -> None:
    if options.seeds < 1:
        raise ValueError(f"--seeds is {options.seeds}; it must be 1 or more")
    if not options.picture.parent.is_dir():
        raise ValueError(f"--picture: there is no folder {options.picture.parent}")
    world, reference = _world_and_reference(options.world)
    optima = [exact.optimum(reference, world, beta) for beta in options.betas]
    betas = torch.tensor(options.betas, dtype=torch.float64).repeat_interleave(options.seeds)
    policy = reference.repeat(len(betas))
    history = train(
        policy,
        reference,
        world,
        beta=betas,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=0.05,
        generator=torch.Generator().manual_seed(options.seed),
    )
    start = exact.evaluate(reference, reference, world, 0.0)
    trained = exact.evaluate(policy, reference, world, betas)
    # One row for each beta, one column for each seed.
    trained = [numbers.view(-1, options.seeds) for numbers in trained]
    _print_table(options.betas, start, trained, optima)
    frontier = exact.frontier(reference, world, torch.logspace(-1.5, 1.5, 60))
    _draw(history, options, trained, optima, frontier)
    print(f"picture: {options.picture}")


def _print_table(
    betas: list[float],
    start: exact.Evaluation,
    trained: list[Tensor],
    optima: list[exact.Optimum],
) -> None:
    print(f"{'beta':>6} {'':10} {'R':>8} {'KL':>8} {'J':>8} {'gap':>8}")
    medians = zip(*(numbers.median(dim=1).values.tolist() for numbers in trained), strict=True)
    for beta, (j, reward, kl), best in zip(betas, medians, optima, strict=True):
        gap = (best.objective - j) / max(best.objective - start.objective, TINY)
        for beta_or_blank, name, *numbers in (
            (f"{beta:g}", "reference", start.reward, 0.0, start.objective),
            ("", "trained", reward, kl, j),
            ("", "exact best", best.reward, best.kl, best.objective),
        ):
            row = "".join(f" {number:8.3f}" for number in numbers)
            print(
                f"{beta_or_blank:>6} {name:10}{row}" + (f" {gap:8.2%}" if name == "trained" else "")
            )


def _draw(
    history: History,
    options: argparse.Namespace,
    trained: list[Tensor],
    optima: list[exact.Optimum],
    frontier: exact.Frontier,
) -> None:
    from matplotlib.figure import Figure

    from ppo_toy import plots

    fig = Figure(figsize=(8.4, 6.2), layout="constrained")
    axes = fig.subplots(2, 2)
    ax = plots.frontier(frontier.kl, frontier.reward, ax=axes[1, 1])
    ax.set_xlim(right=1.35 * frontier.kl.max())  # room for names
    _, reward, kl = trained
    for k, (beta, best) in enumerate(zip(options.betas, optima, strict=True)):
        of_beta = slice(k * options.seeds, (k + 1) * options.seeds)
        runs = History(**{name: x[:, of_beta] for name, x in vars(history).items()})
        plots.training_curves(runs, axes=axes.flat[:3], optimum=best)
        for ax, quantity in zip(axes.flat, ("objective", "reward", "kl"), strict=False):
            plots.name_level(f"β = {beta:g}", getattr(best, quantity), ax=ax)
        plots.points(kl[k], reward[k], ax=axes[1, 1], name=f"β = {beta:g}")
    titles = ("J rises to its exact maximum", "R, the accelerator", "KL, the brake, from 0",
              "trained runs on the exact frontier")  # fmt: skip
    for ax, title in zip(axes.flat, titles, strict=True):
        ax.set_title(title)
    fig.savefig(options.picture, dpi=100)


if __name__ == "__main__":
    raise SystemExit(main())
