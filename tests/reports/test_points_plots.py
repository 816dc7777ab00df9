"""Pictures of points in the space of thoughts show what was found, and equal ones are equal files."""

from __future__ import annotations

import pytest
import torch

from pyro_ltm.errors import UserError
from pyro_ltm.inference import Generated
from pyro_ltm.reports.plots import legible, write_picture
from pyro_ltm.reports.points_plots import plot_places, plot_points, plot_way
from pyro_ltm.runs.documents import Piece
from pyro_ltm.thoughts.points import End, Point, Points

TEXTS = {"A": "A dog ran to the old mill at noon.", "B": "$x_1$"}


@pytest.fixture
def found():
    piece = Piece([0, 1], 0, None)
    ends = [
        End(name=name, text=text, thoughts=torch.zeros(2, 3), tokens=1, bound_nats=-2.0, piece=piece)
        for name, text in TEXTS.items()
    ]
    written = [Generated(prompt="", text="x", tokens=1, ended=True)]
    levels = {"0.00": (1.0, 2.0), "0.50": (1.5, 1.25), "1.00": (2.0, 1.0)}
    points = [
        Point(name=name, thoughts=torch.zeros(2, 3), nats_per_token=dict(zip("AB", nats, strict=True)), written=written)
        for name, nats in levels.items()
    ]
    return Points(ends=ends, points=points)


def test_the_way_has_a_curve_for_each_end(found):
    (axes,) = plot_way(found).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 1.5, 2.0], [2.0, 1.25, 1.0]]
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.0, 0.5, 1.0]] * 2
    assert axes.lines[0].get_label() == "A: A dog ran to the old mill a…"


def test_points_have_a_bar_for_each_end(found):
    (axes,) = plot_points(found).axes
    assert [bar.get_height() for bar in axes.patches] == [1.0, 1.5, 2.0, 2.0, 1.25, 1.0]
    assert axes.get_ylim()[0] < 1.0


def test_places_show_all_documents_and_name_the_nearest(found, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 2, 3, generator=generator)
    figure = plot_places({"the text": rows[2] + 0.01}, rows, [2, 4], ["a", ""])
    (axes,) = figure.axes
    places = [collection.get_offsets() for collection in axes.collections]
    assert [len(one) for one in places] == [6, 2, 1]
    assert abs(places[1][0] - places[2][0]).max() < 0.1, "the nearest lies by the text"
    assert [text.get_text() for text in axes.texts] == ["1 a", "2", "the text"]
    for name in ("a.svg", "b.svg"):
        write_picture(plot_places({"x": rows[0], "y": rows[1]}), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with pytest.raises(UserError, match=r"a.jpeg: expected a name that ends in .png or .svg"):
        write_picture(figure, tmp_path / "a.jpeg")


def test_a_text_that_is_too_long_is_cut_once():
    assert legible("a dog ran to the old mill at noon", 10) == "a dog ran…"
    assert legible("short", 10) == "short"
