"""Parts of pages, and pictures as files."""

from __future__ import annotations

import pytest

from pyro_ltm.errors import UserError
from pyro_ltm.reports.figures import number, plus_minus
from pyro_ltm.reports.html import bullets, heading, pictures, quote, section, table
from pyro_ltm.reports.plots import panels, write_pictures
from pyro_ltm.reports.training_plots import draw_training, plot_run


def test_texts_are_escaped_wherever_they_stand():
    hostile = "<b>&\"'"
    for part in (
        *(heading(hostile, [hostile]), section(hostile, "x"), bullets([hostile]), quote(hostile)),
        *(table([hostile], [[hostile]]), pictures({hostile: (b"png", hostile)})),
    ):
        assert "<b>" not in part
        assert "&lt;b&gt;&amp;&quot;&#x27;" in part


def test_a_section_without_anything_in_it_is_left_out():
    assert section("Remarks", bullets([]), "") == ""
    assert section("Remarks", "", "<p>x</p>") == "<h2>Remarks</h2>\n<p>x</p>"


def test_figures_as_text():
    assert [number(value) for value in (None, float("nan"), 1 / 3)] == ["-", "-", "0.333"]
    assert number(2.5, 1, " s") == "2.5 s"
    assert [plus_minus(1, error, 1) for error in (None, 0.25)] == ["1.0", "1.0 ± 0.2"]


def test_pictures_are_written_as_they_are_shown(tmp_path):
    figure, axes = panels(2, 1, columns=2)
    assert len(axes) == 2
    drawn = write_pictures({"one": (figure, "A caption.")}, tmp_path / "new")
    assert drawn == {"one": ((tmp_path / "new" / "one.png").read_bytes(), "A caption.")}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        write_pictures({}, tmp_path / "file")


def test_a_training_is_drawn_as_soon_as_something_was_measured(tmp_path):
    start = {"kind": "start", "step": 0, "unigram_nats_per_token": 3.0}
    row = {"kind": "train", "step": 1, "bound_nats_per_token": 2.0, "distortion_nats_per_token": None}
    with pytest.raises(UserError, match="no metrics yet"):
        draw_training([start])
    bound, distortion, _ = draw_training([start, row]).axes
    assert len(bound.lines) == 2, "the bound, and the level of unigrams"
    assert len(distortion.lines) == 0
    with pytest.raises(UserError):
        plot_run(tmp_path)
