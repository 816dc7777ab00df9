"""The page: all in one file, nothing fetched, every pair and every picture in it."""

from __future__ import annotations

import base64
import math
import random
import re
from html.parser import HTMLParser

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pyro_ltm.comparison.pair_score import curve_steps
from pyro_ltm.comparison.result import Checkpoint, Comparison, DecoderTraining, Estimate, PairScore, Validation
from pyro_ltm.reports.comparison_page import draw, render, write_comparison
from pyro_ltm.reports.comparison_plots import plot_curves, plot_map, plot_rate_distortion
from pyro_ltm.reports.comparison_table import findings, full_table, notes, short_table
from pyro_ltm.reports.plots import to_png

SEQUENCES, TOKENS = 8, 16
VOID = {"meta", "img", "br", "hr", "link"}


def pair(guide, objective, level, *, steps=16, training=None, note=""):
    """A pair with made-up figures; without a bound where `level` is None."""
    draws = random.Random(repr((guide, objective, steps)))
    if level is None:
        return PairScore(guide=guide, objective=objective, fast_steps=steps, note=note, training=training)
    nats = [TOKENS * (level + 0.1 * draws.gauss(0, 1)) for _ in range(SEQUENCES)]
    level, rate = sum(nats) / SEQUENCES / TOKENS, draws.uniform(0.1, 9)
    curve = [Checkpoint(s, 0.2 + draws.uniform(1, 2) * s, level + math.exp(-s / 3)) for s in curve_steps(steps)]
    return PairScore(
        guide=guide,
        objective=objective,
        fast_steps=steps,
        steps_taken=steps,
        elbo=Estimate(level, 0.02),
        iwae=Estimate(level - 0.01, 0.02),
        ess=3.5,
        ess_stderr=0.1,
        rate=rate,
        distortion=level - rate / TOKENS,
        steps_to_1pct=8,
        ms_per_sequence_to_1pct=12.5,
        ms_per_fast_step=3.25,
        ms_per_sequence=30.0,
        peak_memory_bytes=12_345_678,
        curve=curve,
        nats_by_sequence=nats,
        note=note,
        training=training,
    )


def trained(seconds, levels):
    rows = [Validation(10 * i, 160 * i, seconds * i, level, 0.1) for i, level in enumerate(levels)]
    last = rows[-1]
    totals = {"steps": last.step, "tokens": last.tokens, "seconds": last.seconds, "skipped": 0}
    return DecoderTraining(**totals, arrival=last, validation=rows)


def made_up(guides, objectives, *, steps=(16,), kind="posteriors"):
    found = Comparison(
        kind, {"seed": 0, "particles": 7}, {"command": "pyro-ltm compare a <b>"}, [{"torch": "2", "gpu": None}]
    )
    found.token_counts = [TOKENS] * SEQUENCES
    for row, guide in enumerate(guides):
        for column, objective in enumerate(objectives):
            if (row + column) % 7 == 6:
                found.refuse(guide, objective, f"{guide} has no density, which {objective} needs")
                continue
            for count in steps:
                level = None if guide == "delta" else 3.8 + 0.01 * row + 0.02 * column + (5 if column == 8 else 0)
                training = trained(1 + row, [6.0, 4.0, 3.9]) if kind == "training" else None
                note = "has no density" if level is None else ""
                found.pairs.append(pair(guide, objective, level, steps=count, training=training, note=note))
    return found


GUIDES = ["mean-field", "delta", "low-rank:8", "full-rank", "mixture:4", "flow", "laplace", "hmc", "svgd", "amortized"]
OBJECTIVES = ["elbo", "analytic-elbo", "iwae:16", "renyi:0.5:16", "chi", "map", "free-bits", "stl", "mmd", "beta:0.5"]


class Reader(HTMLParser):
    """Reads a page: its text, what it refers to, its images; and fails where a tag is not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.words, self.links, self.images, self.tags = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset"):
                (self.images if tag == "img" else self.links).append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


@pytest.mark.parametrize("kind", ["posteriors", "training"])
def test_the_page_holds_everything_and_refers_to_nothing(kind, tmp_path):
    found = made_up(GUIDES[:4], OBJECTIVES[:4], steps=(4, 16) if kind == "posteriors" else (16,), kind=kind)
    if kind == "training":
        found.twin = pair("twin", "exact", 3.7, steps=0, training=trained(0.5, [6.0, 3.7]))
    path = write_comparison(found, tmp_path / "c")
    page = path.read_text(encoding="utf-8")
    read = Reader(page)
    assert read.links == []
    assert [word for word in ("://", "url(", "@import", "<script", "<link") if word in page] == []
    assert "default-src 'none'" in page
    names = {"bound-by-steps", "bound-by-seconds", "rate-distortion", "map"}
    names |= {"map-equal-seconds"} if kind == "training" else set()
    assert {picture.stem for picture in (tmp_path / "c" / "plots").iterdir()} == names
    assert len(read.images) == len(names)
    for name, image in zip(re.findall(r'<figure id="([^"]+)"', page), read.images, strict=True):
        head, _, content = image.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(content, validate=True) == (tmp_path / "c" / "plots" / f"{name}.png").read_bytes()
    columns, rows = full_table(found)
    assert read.tags.count("td") == len(columns) * len(rows)
    assert len(rows) == len(found.pairs) + (kind == "training")
    for row in rows:
        assert "".join(f">{cell}</td>" for cell in row[:1]) in page
    for one in found.refused:
        assert f"{one.guide} with {one.objective}" in read.text
    for line in [*findings(found), "pyro-ltm compare a <b>", "torch 2", "Effective sample size", "fresh noise"]:
        assert " ".join(line.split()) in read.text


def test_markup_in_names_is_shown_as_it_is(tmp_path):
    found = made_up(["<script>alert(1)</script>", 'a"b'], ["x & y", "'z'"])
    page = render(found, {name: (b"png", caption) for name, (_, caption) in draw(found).items()})
    read = Reader(page)
    assert "script" not in read.tags
    assert "<script>alert(1)</script>" in read.text
    assert "x & y" in read.text


def test_a_comparison_without_any_bound_has_a_page(tmp_path):
    found = made_up(["delta"], ["map"])
    page = write_comparison(found, tmp_path / "c").read_text(encoding="utf-8")
    assert "No pair has a bound." in Reader(page).text
    assert list((tmp_path / "c" / "plots").iterdir()) == []


def overlaps(texts, renderer):
    """Pairs of texts whose boxes overlap."""
    boxes = [(text.get_text(), text.get_window_extent(renderer).shrunk(0.98, 0.98)) for text in texts]
    return [
        (one, other)
        for index, (one, box) in enumerate(boxes)
        for other, second in boxes[index + 1 :]
        if box.overlaps(second)
    ]


@pytest.mark.parametrize(("rows", "columns", "steps"), [(1, 1, (4,)), (2, 3, (4, 16)), (10, 10, (16,))])
def test_nothing_that_is_written_on_a_picture_covers_anything_else(rows, columns, steps):
    found = made_up(GUIDES[:rows], OBJECTIVES[:columns], steps=steps)
    for figure in (
        plot_curves(found, "steps"),
        plot_curves(found, "seconds"),
        plot_rate_distortion(found),
        plot_map(found),
    ):
        canvas = FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        renderer = canvas.get_renderer()
        written = [figure._supxlabel, figure._supylabel] if figure._supxlabel is not None else []
        for axes in figure.axes:
            if axes.get_visible():
                axis = [axes.title, axes.xaxis.label, axes.yaxis.label]
                written += [text for text in [*axis, *axes.texts] if text.get_text()]
                low, high = sorted(axes.get_ylim())
                ticks = [tick for tick in axes.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
                written += [tick.label1 for tick in ticks if tick.label1.get_visible()]
        written += [text for legend in figure.legends for text in legend.get_texts()]
        written = [text for text in written if text is not None and text.get_text()]
        levels = [text for text in written if re.fullmatch(r"-?\d+\.\d\d", text.get_text())]  # beside the dashed lines
        assert overlaps([text for text in written if text not in levels], renderer) == []
        assert figure.get_figwidth() * 120 < 2200


def test_the_map_has_a_number_for_every_bound_and_grey_for_every_refusal():
    found = made_up(GUIDES[:7], OBJECTIVES[:7])
    figure = plot_map(found)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 49
    assert texts.count("") == len(found.refused) == 7
    bounds = [one for one in found.pairs if one.elbo]
    assert sorted(text for text in texts if text not in ("", "–")) == sorted(f"{one.level:.3f}" for one in bounds)
    assert texts.count("–") == len(found.pairs) - len(bounds)


def test_a_bound_that_is_far_off_does_not_squash_the_others():
    found = made_up(GUIDES[:3], OBJECTIVES)  # the ninth objective is five nats above the others
    figure = plot_curves(found, "steps")
    low, high = figure.axes[0].get_ylim()
    assert 3.6 < low < 3.9
    assert high < 6.5
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any("off the scale: mmd" in text.replace("\n", " ") for text in written)


def test_the_terminals_table_fits():
    found = made_up(["semi-amortized", "low-rank:8"], ["renyi:0.5:16", "elbo"], steps=(4, 16))
    columns, rows = short_table(found)
    shown = ["guide", "objective", "steps", "at most", "IWAE", "ESS", "rate", "saved", "distort.", "to 1%", "memory"]
    assert columns == shown
    assert "saved" in short_table(found, wide=False)[0]
    assert [float(row[3].split()[0]) for row in rows] == sorted(float(row[3].split()[0]) for row in rows)
    for wide, most in ((True, 100), (False, 80)):
        columns, rows = short_table(found, wide=wide)
        widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
        assert sum(widths[2:]) + 2 * len(widths) + 2 * 10 <= most


def test_findings_name_the_best_and_those_that_tie_with_it():
    found = made_up(["a"], ["x"])
    nats = found.pairs[0].nats_by_sequence
    blurred = [value + (1 if index % 2 else -0.8) for index, value in enumerate(nats)]
    for name, values in (("b", blurred), ("c", [value + 1 for value in nats])):
        figures = {"elbo": Estimate(sum(values) / 128, 0.1), "nats_by_sequence": values}
        found.pairs.append(PairScore(guide=name, objective="x", fast_steps=16, **figures))
    lines = findings(found)
    assert lines[0].startswith(f"Lowest bound: a with x, at most {found.best.level:.4f} ± 0.0200")
    assert lines[1] == "Less than two standard errors of the difference behind it: b with x."
    assert len(lines) == 2


def test_notes_put_alike_reasons_together():
    found = made_up(["delta", "mean-field"], ["x"])
    found.refuse("p", "x", "no density")
    found.refuse("q", "x", "no density")
    assert notes(found) == ["delta with x: has no density", "p with x; q with x: does not fit: no density"]


ODD = ["$x^{$", "_", "", "\x1b[2J", "\ud800", "\u6587\u5b57", "two\nlines"]


@pytest.mark.parametrize("names", [["x" * 100_000], ODD], ids=["long", "odd"])
def test_pictures_stand_any_name(names):
    """The library that draws would lay out a name of 100,000 characters for minutes, and warn of all the others."""
    comparison = Comparison("posteriors", {}, token_counts=[TOKENS] * SEQUENCES)
    comparison.pairs = [made for name in names for made in (pair(name, "elbo", 2.0), pair("mf", name, 2.5))]
    for figure in (plot_map(comparison), plot_curves(comparison, "steps"), plot_rate_distortion(comparison)):
        assert to_png(figure).startswith(b"\x89PNG")
