"""Pictures of thoughts say how they were measured, and stand any label."""

from __future__ import annotations

import pytest

from pyro_ltm.reports.plots import to_png
from pyro_ltm.reports.thoughts_plots import plot_map, plot_probes, plot_rates, sign


def test_a_legend_names_the_commonest_values_and_calls_the_rest_others():
    values = [f"value {n}" for n in range(14) for _ in range(20 - n)]
    figure = plot_map([[float(n), 0.0] for n in range(len(values))], values, "kind", [0.6, 0.2])
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert [entry.get_text() for entry in legend.get_texts()] == [*(f"value {n}" for n in range(10)), "others"]
    assert legend.get_title().get_text() == "kind"
    assert sum(len(points.get_offsets()) for points in axes.collections) == len(values)
    assert axes.get_xlabel() == "first principal axis (60% of the variance)"


def test_labels_that_are_hard_on_a_legend():
    """A warning of the library that draws would fail this test."""
    values = ["_hidden", "$x_1$", "", "long " * 30, "two\nlines", "$", "\u6587\U0001f600", "\x1b[2J", "\ud800", "\0"]
    figure = plot_map([[float(n), 1.0] for n in range(10)], values, "_na$me", [0.5, 0.5])
    texts = [entry.get_text() for entry in figure.axes[0].get_legend().get_texts()]
    assert len(texts) == 10
    assert all(len(text) <= 30 and "\n" not in text for text in texts)
    assert to_png(figure).startswith(b"\x89PNG")
    probe = {"label": "$a_", "accuracy": 0.5, "stderr": 0.1, "majority": 0.4, "control": 0.4}
    assert to_png(plot_probes([probe])).startswith(b"\x89PNG")


def test_without_labels_there_is_no_legend():
    assert plot_map([[0.0, 1.0], [1.0, 0.0]], None, "", [0.5, 0.5]).axes[0].get_legend() is None


def test_rates_stand_by_layer_or_not_at_all():
    rates = [{"mean": 1.0 + n, "stderr": 0.1} for n in range(4)]
    figure = plot_rates({"rate_by_thought": rates, "rate_by_layer": rates[:2]})
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [1.0, 2.0, 3.0, 4.0]
    assert bars[0].get_facecolor() == bars[1].get_facecolor() != bars[2].get_facecolor()
    assert plot_rates({"rate_by_thought": None, "rate_by_layer": None}) is None


@pytest.mark.parametrize("thoughts", [2, 40])
def test_how_it_was_measured_stands_inside_the_picture(thoughts):
    rates = [{"mean": 1.0, "stderr": None}] * thoughts
    line = (
        "100,000 sequences, 12,800,000 tokens; 128 fast steps of SemiAmortized; particles 64, seed 12345, fresh noise"
    )
    figure = sign(plot_rates({"rate_by_thought": rates, "rate_by_layer": rates[:2]}), line)
    label = figure._supxlabel
    assert label.get_text().replace("\n", " ") == line
    to_png(figure)  # lays it out
    box = label.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
