"""Two works timed in turn, and the packages that a comparison needs."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

PAIRS = 5

Seconds = tuple[float, float]  # of the clock on the wall, and of the processor


def need(packages: Sequence[str]) -> None:
    """Prints the packages, each "name==version"; ends the program where one is not installed."""
    for package in packages:
        name, version = package.split("==")
        if version not in [found.version for found in metadata.distributions(name=name)]:
            sys.exit(f"this comparison needs {package}: pip install {' '.join(packages)}")
    if packages:
        print(f"compared with {', '.join(packages)}")


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """Returns what the work returned, its seconds by the clock and its seconds of CPU time."""
    wall, cpu = now()
    result = work(*arguments)
    wall_after, cpu_after = now()
    return result, wall_after - wall, cpu_after - cpu


def now() -> Seconds:
    """Returns what the two clocks show."""
    return time.perf_counter(), time.process_time()


def seconds_of(work: Callable[[], Any], rounds: int = 1) -> Seconds:
    """Returns the seconds that a work takes, on average over so many in a row."""

    def repeat() -> None:
        for _ in range(rounds):
            work()

    _, wall, cpu = timed(repeat)
    return wall / rounds, cpu / rounds


def compare(
    name: str, slow: Callable[[], Any], fast: Callable[[], Any], pairs: int = PAIRS
) -> tuple[float, float]:
    """Times the two in turn and prints how many times as fast the second is.

    Returns the median milliseconds of each, by the clock.

    Args:
        name: of the two.
        slow: one work.
        fast: the other.
        pairs: times that each is done; works of milliseconds need many.
    """
    return report(name, [(seconds_of(slow), seconds_of(fast)) for _ in range(pairs)])


def report(name: str, pairs: Sequence[tuple[Seconds, Seconds]]) -> tuple[float, float]:
    """Prints the median ratio of the pairs, by the clock and by CPU time.

    Returns the median milliseconds of each, by the clock.

    Args:
        name: of the two works.
        pairs: seconds of the one and of the other, measured in turn.
    """
    wall, cpu = (statistics.median(slow[k] / fast[k] for slow, fast in pairs) for k in (0, 1))
    slow_ms, fast_ms = (
        1000 * statistics.median(seconds[0] for seconds in side)
        for side in zip(*pairs, strict=True)
    )
    print(
        f"{wall:6.2f} x, {cpu:6.2f} x by CPU time   {name}   ({slow_ms:.0f} ms / {fast_ms:.1f} ms)"
    )
    return slow_ms, fast_ms
