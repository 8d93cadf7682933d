"""Arrays in, matplotlib `Axes` out; one colour and one line for each quantity in the whole course.

Every function draws on the axes it is given, labels them with quantity and unit, and returns
them. Okabe and Ito's colours stay apart for colour-blind readers; in grey print the lines do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

_STYLES = {  # colour of lines and points, the same hue for text, line
    "reward": ("#009E73", "#008561", (0, (5, 1))),  # the accelerator
    "kl": ("#D55E00", "#C05500", "-."),  # the brake
    "objective": ("#0072B2", "#0072B2", "-"),
    "beta": ("#CC79A7", "#A16084", (0, (1, 1))),
    "reference": ("#7F7F7F", "#757575", (0, (9, 3))),
    "gold": ("#E69F00", "#9A6B00", (0, (6, 1, 1, 1, 1, 1))),  # what R should have been
    "exact": ("#000000", "#000000", "--"),
}
COLOURS = {quantity: colour for quantity, (colour, _, _) in _STYLES.items()}
# For text on white: dark enough to read, 4.5 to 1 (WCAG 2.2, success criterion 1.4.3).
INK = {quantity: ink for quantity, (_, ink, _) in _STYLES.items()}
# For `ax.plot(x, y, **LINES["kl"])`; the two thin black ones are no measurements.
LINES = {
    quantity: {"color": colour, "ls": line, "lw": 1.0 if quantity == "exact" else 1.8}
    for quantity, (colour, _, line) in _STYLES.items()
} | {"target": {"color": "#000000", "ls": ":", "lw": 1.4}}
LABELS = {
    "reward": "R (reward)",
    "kl": "KL (nats per response)",
    "objective": "J (reward)",
    "beta": "β (reward per nat)",
}


def panels(columns: int = 1, *, height: float = 2.8, **options: Any) -> tuple[Any, Any]:
    """Returns a figure as wide as a notebook's column, 850 pixels, and its axes side by side.

    So no text shrinks. `height` is in inches; `options` are for `plt.subplots`, as `sharey` is.
    """
    shape = {"figsize": (8.3, height), "dpi": 100, "layout": "constrained"}
    return plt.subplots(ncols=columns, **shape, **options)


def curve(
    values: Any, *, ax: Axes, quantity: str, exact: float | None = None, label: str | None = None
) -> Axes:
    """Draws a quantity over training steps: a line for one run, median and range for several.

    Args:
        values: [steps] or [steps, runs].
        ax: where to draw.
        quantity: "reward", "kl", "objective" or "beta"; chooses colour and label.
        exact: the true value at the optimum, drawn dashed.
        label: for a legend.
    """
    values = np.asarray(values)
    steps = np.arange(len(values))
    if values.ndim == 2:
        low, high = values.min(axis=1), values.max(axis=1)
        ax.fill_between(steps, low, high, color=COLOURS[quantity], alpha=0.2, lw=0)
        values = np.median(values, axis=1)
    ax.plot(steps, values, **LINES[quantity], label=label)
    if exact is not None:
        ax.axhline(exact, **LINES["exact"], label="exact optimum")
    ax.set(xlabel="step", ylabel=LABELS[quantity])
    return ax


def training_curves(history: Any, *, axes: Sequence[Axes], optimum: Any = None) -> Sequence[Axes]:
    """Draws `objective`, `reward` and `kl` of a history on three axes, dashed those of an optimum.

    Of the history they are [steps] or [steps, runs] each, of the optimum numbers.
    """
    for ax, quantity in zip(axes, ("objective", "reward", "kl"), strict=True):
        exact = None if optimum is None else getattr(optimum, quantity)
        curve(getattr(history, quantity), ax=ax, quantity=quantity, exact=exact)
    return axes


def frontier(kl: Any, reward: Any, *, ax: Axes) -> Axes:
    """Draws the exact reward-KL frontier, [K] points, dashed: no policy lies above it."""
    kl, reward = np.asarray(kl), np.asarray(reward)
    order = np.argsort(kl)
    ax.plot(kl[order], reward[order], **LINES["exact"], label="exact frontier")
    ax.set(xlabel=LABELS["kl"], ylabel=LABELS["reward"])
    ax.margins(x=0.15)
    return ax


def points(kl: Any, reward: Any, *, ax: Axes, name: str, quantity: str = "objective") -> Axes:
    """Draws policies in the plane of KL and reward, and names their group beside its middle.

    Args:
        kl: [n], in nats per response.
        reward: [n].
        ax: where to draw.
        name: of the group.
        quantity: chooses the colour; "exact" for the best policies themselves.
    """
    kl, reward = np.atleast_1d(kl, reward)
    ax.plot(kl, reward, "o", color=COLOURS[quantity], ms=5, alpha=0.7)
    middle = (np.median(kl), np.median(reward))
    ax.annotate(name, middle, (8, -4), textcoords="offset points", va="top")
    return ax


def name_level(name: str, level: float, *, ax: Axes) -> Axes:
    """Writes a name to the right of the axes, at the height of a level, in the y axis's unit."""
    units = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate(name, (1, level), (4, 0), va="center", **units)
    return ax


def name_line(name: str, *, ax: Axes) -> Axes:
    """Writes a name at the right end of the line drawn last, in the ink of its colour."""
    line = ax.lines[-1]
    end = (line.get_xdata()[-1], line.get_ydata()[-1])
    colour = line.get_color()
    ink = next((INK[quantity] for quantity, c in COLOURS.items() if c == colour), colour)
    ax.annotate(name, end, (4, 0), textcoords="offset points", va="center", color=ink)
    return ax


def target(level: float, *, ax: Axes, name: str | None = None) -> Axes:
    """Draws a level to aim at or to pass, dotted, as it is no exact value; see `name_level`."""
    ax.axhline(level, **LINES["target"])
    return ax if name is None else name_level(name, level, ax=ax)


def distributions(
    probabilities: Mapping[str, Any], tokens: Sequence[str], *, ax: Axes, colours: Mapping[str, str]
) -> Axes:
    """Draws distributions over the same tokens as grouped bars.

    Args:
        probabilities: [V] for each name; the names go into the legend.
        tokens: V strings.
        ax: where to draw.
        colours: one for each name.
    """
    width = 0.8 / len(probabilities)
    for k, (name, p) in enumerate(probabilities.items()):
        x = np.arange(len(tokens)) + (k - (len(probabilities) - 1) / 2) * width
        ax.bar(x, np.asarray(p), width, color=colours[name], label=name)
    ax.set(xticks=np.arange(len(tokens)), ylabel="probability", ylim=(0, None))
    ax.set_xticklabels(tokens)
    ax.legend(frameon=False)
    return ax


def histogram(
    values: Any, *, ax: Axes, exact: float, title: str, quantity: str = "kl", bins: Any = 40
) -> Axes:
    """Draws a histogram of estimates with their true value dashed.

    Args:
        values: the estimates, [n].
        ax: where to draw.
        exact: the true value.
        title: over the axes.
        quantity: chooses colour and label, as in `curve`.
        bins: how many, or their edges. Values on a lattice need bins as wide as whole steps of it.
    """
    ax.hist(np.asarray(values), bins=bins, color=COLOURS[quantity], alpha=0.7)
    ax.axvline(exact, **LINES["exact"])
    ax.set(title=title, xlabel=LABELS[quantity], ylabel="count")
    return ax


def simplex(
    values: Any, *, ax: Axes, corners: Sequence[str], levels: Any = 12, label: str = "J (reward)"
) -> Axes:
    """Draws a function of three probabilities as contours over their triangle.

    Args:
        values: callable from probabilities [n, 3] to numbers [n].
        ax: where to draw.
        corners: names of the three tokens.
        levels: how many contour levels, or the levels themselves.
        label: of the colour bar.
    """
    n = 60
    grid = np.array([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]) / n
    # Just inside the edges, where logarithms are finite.
    grid = (grid + 1e-6) / (1 + 3e-6)
    x, y = triangle_xy(grid)
    drawn = ax.tricontourf(x, y, np.asarray(values(grid)), levels=levels, cmap="Blues")
    plt.colorbar(drawn, ax=ax, label=label, shrink=0.8)
    sides = ((-6, "top"), (-6, "top"), (6, "bottom"))
    for name, corner, (up, va) in zip(corners, _CORNERS, sides, strict=True):
        ax.annotate(name, corner, (0, up), textcoords="offset points", ha="center", va=va)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])


def triangle_xy(probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns where distributions over three tokens, [..., 3], lie in the drawn triangle."""
    xy = np.asarray(probabilities) @ _CORNERS
    return xy[..., 0], xy[..., 1]
