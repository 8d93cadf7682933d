from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb

from ppo_toy import plots


@pytest.fixture
def ax():
    plt.switch_backend("Agg")
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def test_a_curve_of_one_run_is_the_values_themselves_in_the_colour_of_the_quantity(ax):
    plots.curve([3.0, 1.0, 2.0], ax=ax, quantity="kl")
    (line,) = ax.lines
    assert line.get_ydata().tolist() == [3.0, 1.0, 2.0]
    assert to_hex(line.get_color()).upper() == plots.COLOURS["kl"]
    assert ax.get_ylabel() == "KL (nats per response)"


def test_a_curve_of_several_runs_is_their_median_in_a_band_from_least_to_most(ax):
    plots.curve(torch.tensor([[1.0, 5.0, 2.0], [0.0, 7.0, 9.0]]), ax=ax, quantity="reward")
    assert ax.lines[0].get_ydata().tolist() == [2.0, 7.0]
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.0, 9.0)


def test_quantities_stay_apart_without_their_colours_and_a_target_is_no_exact_value():
    styles = [str(line["ls"]) for line in plots.LINES.values()]
    assert len(set(styles)) == len(styles)
    assert set(plots.LINES) == {*plots.COLOURS, "target"}


def test_panels_are_as_wide_as_the_column_they_are_read_in():
    fig, axes = plots.panels(3, sharey=True)
    assert len(axes) == 3
    assert 800 < fig.get_figwidth() * fig.dpi <= 850
    plt.close(fig)


def test_a_line_is_named_at_its_end_in_the_ink_of_its_colour(ax):
    for colour, ink in (("red", "red"), (plots.COLOURS["gold"], plots.INK["gold"])):
        ax.plot([0, 1, 2], [5, 6, 8], color=colour)
        plots.name_line("KL", ax=ax)
        name = ax.texts[-1]
        assert (name.get_text(), tuple(name.xy), name.get_color()) == ("KL", (2, 8), ink)


@pytest.mark.parametrize("quantity", plots.INK)
def test_ink_can_be_read_on_white_and_has_the_hue_of_its_line(quantity):
    # WCAG 2.2: relative luminance, and the contrast of the two, which text needs at 4.5
    ink = np.array(to_rgb(plots.INK[quantity]))
    linear = np.where(ink <= 0.04045, ink / 12.92, ((ink + 0.055) / 1.055) ** 2.4)
    assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) > 4.6
    line = np.array(to_rgb(plots.COLOURS[quantity]))
    # darker by one factor, up to rounding
    assert np.allclose(ink, line * ink.sum() / max(line.sum(), 1e-9), atol=0.02)


def test_each_quantity_has_an_ink():
    assert set(plots.INK) == set(plots.COLOURS)


def test_a_target_is_dotted_and_named_at_its_height(ax):
    plots.target(0.5, ax=ax, name="target")
    assert (ax.lines[0].get_linestyle(), ax.texts[0].xy) == (":", (1, 0.5))


def test_the_exact_value_is_a_dashed_black_line(ax):
    plots.curve([0.0, 1.0], ax=ax, quantity="objective", exact=1.5)
    dashed = ax.lines[1]
    assert (dashed.get_linestyle(), dashed.get_color()) == ("--", plots.COLOURS["exact"])
    assert list(dashed.get_ydata()) == [1.5, 1.5]


def test_training_curves_put_objective_reward_and_kl_on_three_axes_each_with_its_optimum():
    history = SimpleNamespace(objective=[1.0, 2.0], reward=[3.0, 4.0], kl=[0.0, 0.5])
    optimum = SimpleNamespace(objective=2.5, reward=4.5, kl=0.75)
    fig, axes = plt.subplots(1, 3)
    plots.training_curves(history, axes=axes, optimum=optimum)
    assert [ax.lines[0].get_ydata()[-1] for ax in axes] == [2.0, 4.0, 0.5]
    assert [ax.lines[1].get_ydata()[0] for ax in axes] == [2.5, 4.5, 0.75]
    plt.close(fig)


def test_the_frontier_is_drawn_from_left_to_right(ax):
    plots.frontier([2.0, 0.0, 1.0], [5.0, 1.0, 4.0], ax=ax)
    assert ax.lines[0].get_xdata().tolist() == [0.0, 1.0, 2.0]
    assert ax.lines[0].get_ydata().tolist() == [1.0, 4.0, 5.0]


def test_points_are_named_beside_their_median(ax):
    plots.points([0.0, 1.0, 5.0], [2.0, 4.0, 3.0], ax=ax, name="β = 1")
    (name,) = ax.texts
    assert (name.get_text(), tuple(name.xy)) == ("β = 1", (1.0, 3.0))


def test_a_level_is_named_at_its_height(ax):
    plots.name_level("β = 1", 0.25, ax=ax)
    assert ax.texts[0].xy == (1, 0.25)


def test_distributions_stand_as_bars_of_their_own_heights_side_by_side(ax):
    p, q = [0.25, 0.75], [0.5, 0.5]
    plots.distributions({"p": p, "q": q}, ["a", "b"], ax=ax, colours={"p": "red", "q": "blue"})
    assert [bar.get_height() for bar in ax.patches] == p + q
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert np.allclose(centres, [-0.2, 0.8, 0.2, 1.2])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]


def test_a_histogram_counts_every_value_and_marks_the_true_one(ax):
    plots.histogram([0.0, 0.5, 0.5, 1.0], ax=ax, exact=0.25, title="four")
    assert sum(bar.get_height() for bar in ax.patches) == 4
    assert list(ax.lines[0].get_xdata()) == [0.25, 0.25]


def test_a_histogram_takes_the_edges_of_its_bins_and_has_a_scale_to_read(ax):
    plots.histogram([0.0, 0.5, 0.5, 1.0], ax=ax, exact=0.25, title="four", bins=[0, 0.4, 1])
    assert [bar.get_height() for bar in ax.patches] == [1, 3]
    assert ax.get_ylabel() == "count"
    assert len(ax.get_yticks()) > 1


def test_the_corners_and_the_centre_of_the_triangle_lie_where_they_should():
    x, y = plots.triangle_xy(np.eye(3))
    assert np.allclose(x, [0, 1, 0.5])
    assert np.allclose(y, [0, 0, np.sqrt(3) / 2])
    # equal shares of the corners: a third of the triangle's height
    assert np.allclose(plots.triangle_xy([1 / 3, 1 / 3, 1 / 3]), (0.5, np.sqrt(3) / 6))


def test_the_simplex_hands_distributions_inside_the_triangle_to_the_function(ax):
    seen = []

    def first_probability(p):
        seen.append(p)
        return p[:, 0]

    plots.simplex(first_probability, ax=ax, corners=["a", "b", "c"])
    assert np.allclose(seen[0].sum(axis=1), 1)
    assert (seen[0] > 0).all()
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    plt.gcf().canvas.draw()


def test_every_quantity_has_a_colour_of_its_own():
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert set(plots.LABELS) <= set(plots.COLOURS)
