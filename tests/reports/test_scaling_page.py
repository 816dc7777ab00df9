"""The page of a scaling study: every picture that its cells are enough for, and sentences that are so."""

from __future__ import annotations

import dataclasses
import re

import pytest
from helpers.scaling_rows import row, rows

from pyro_ltm.comparison.scaling.analysis import gaps, laws
from pyro_ltm.comparison.scaling.result import Level, Study, read_rows, write_row
from pyro_ltm.reports.plots import to_png
from pyro_ltm.reports.scaling_page import (
    EQUAL,
    cell_table,
    findings,
    gap_table,
    law_lines,
    remarks,
    render,
    write_study,
)
from pyro_ltm.reports.scaling_plots import draw, plot_frontiers, plot_protocol


def twin(size: int, steps: int, seed: int):
    one = row(size, 0, family="twin", seed=seed, steps=steps, thoughts=0, rate=0.0, active=None, latent=0)
    name = f"twin--{size}--slow.steps={steps}"
    return dataclasses.replace(one, settings=name, name=f"{name}--seed={seed}", training_operations=size * steps / 10)


@pytest.fixture(scope="module")
def study():
    places = [(size, steps, n) for size in (10_000, 40_000, 160_000) for steps in (1, 4, 16) for n in (4, 8)]
    ltms = [
        row(
            size,
            steps,
            seed=seed,
            thoughts=n,
            settings=f"ltm-{size}-{steps}-{n}",
            name=f"ltm-{size}-{steps}-{n}-{seed}",
        )
        for size, steps, n in places
        for seed in (0, 1)
    ]
    levels = {
        "predictive": Level(3.0, 0.1),
        "sequence_predictive": [30.0] * 3,
        "reference": Level(1.0, None),
        "floor": Level(1.5, 0.0),
    }
    ltms[0] = dataclasses.replace(ltms[0], **levels)
    twins = [twin(size, steps, seed) for size in (10_000, 40_000, 160_000) for steps in (10, 20, 50) for seed in (0, 1)]
    failed = row(5, 1, name="ltm--<b>", settings="ltm--<b>", bound=None, note="failed: not finite")
    study = Study({"slow.lr": 0.01, "fast.steps": 4}, [*ltms, *twins, failed], {"command": "pyro-ltm scale $x$"})
    study.laws = laws(study, resamplings=5)
    return study


def test_every_picture_is_painted(study):
    drawn = draw(study)
    assert set(drawn) == {"by-tokens", "by-operations", "trade", "by-thoughts", "law", "epochs", "figures"}
    for figure, caption in drawn.values():
        assert to_png(figure).startswith(b"\x89PNG")
        assert caption.endswith(".")


def test_the_reference_protocol_is_drawn_along_each_factor_that_it_was_scored_at():
    """Beside the honest figures of the same cells, and named for what it is."""
    level = Level(1.0, None)
    cells = [row(size, steps, reference=level) for size in (10, 40) for steps in (1, 4, 16)]
    figure = plot_protocol(Study({}, [*cells, row(10, 64), twin(10, 10, 0)]))
    assert [axes.get_xlabel() for axes in figure.axes] == ["fast steps", "parameters"]
    for axes, (factor, groups, places) in zip(figure.axes, (("fast_steps", 2, 3), ("parameters", 3, 2)), strict=True):
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == ["bound", "importance-weighted", "reference protocol, no bound"]
        lines = [line for line in axes.lines if len(line.get_xdata())]
        assert [len(line.get_xdata()) for line in lines] == [places] * 3 * groups, factor
    assert plot_protocol(Study({}, [cells[0], row(10, 64)])) is None, "of one cell nothing scales"


def test_frontiers_have_a_row_for_each_figure():
    """A twin's exact figure is its bound and its prediction; what a cell lacks is not drawn."""
    rows = [row(10, 1, predictive=Level(3.0, 0.1)), row(10, 4), twin(10, 10, 0)]
    axes = plot_frontiers(Study({}, rows)).axes
    labels = ["bound", "importance-weighted", "predictive"]
    assert [one.get_ylabel() for one in axes[::2]] == [f"{label}, nats a token" for label in labels]
    for one, latent in zip(axes[::2], (2, 2, 1), strict=True):
        clouds = [container.lines[0] for container in one.containers]
        assert [len(cloud.get_xdata()) for cloud in clouds] == [latent, 1]
    assert len(plot_frontiers(Study({}, [twin(10, 10, 0)])).axes) == 2


def test_few_cells_have_few_pictures():
    assert draw(Study({})) == {}
    assert set(draw(Study({}, [twin(10, 10, 0)]))) == {"by-operations", "epochs"}
    assert set(draw(Study({}, rows(sizes=(10,), steps=(1, 2))))) == {"by-tokens", "by-operations", "epochs", "figures"}


def test_sentences_say_what_the_cells_do(study):
    said = findings(study, gaps(study))
    assert said[0] == "Cells: 36 latent thoughts, 18 twin."
    assert any(line.startswith("Against twin at equal tokens: of 36 cells") for line in said)
    assert any("Lowest of twin" in line and "(exact)" in line for line in said)
    assert [line.partition(" L = ")[0] for line in law_lines(study)] == [
        "Law of latent thoughts, thoughts 4:",
        "Law of latent thoughts, thoughts 8:",
        "Law of twin:",
    ]
    assert "95% intervals: E 2.0" in law_lines(study)[0]
    assert remarks(study) == ["Without figures: ltm--<b>: not finite"]
    assert any(line.startswith("The reference protocol's figure, which is no bound, less the bound: ") for line in said)
    (written,) = [line for line in said if "no more operations a written token" in line]
    assert re.search(r"; predictive of 1 \d below, \d above\. In the median a cell's token takes [\d.]+ times", written)
    unscored = dataclasses.replace(study.rows[0], without={"reference": "so it is"})
    assert f"No reference figure: {unscored.name}: so it is" in remarks(Study({}, [unscored]))
    assert findings(Study({}), []) == ["No cell has figures yet."]


def test_tables_hold_every_cell_and_each_difference(study):
    columns, lines = cell_table(study.rows)
    assert len(lines) == len(study.rows)
    assert "reference, no bound" in columns
    assert [columns.index(name) for name in ("model.dim", "fast.steps", "model.thoughts", "seed")] == [2, 3, 4, 5]
    assert {tuple(line[3:5]) for line in lines if line[1] == "twin"} == {("-", "0")}
    assert lines[-1][-1] == "failed: not finite"
    best = min((row for row in study.rows if row.bound), key=lambda row: row.bound.nats_per_token)
    costs = [lines[0][columns.index(name)] for name in ("a scored token", "a written token")]
    assert costs == [f"{best.score_token_operations:.3g}", f"{best.write_token_operations:.3g}"]
    weighted = {(line[1], line[columns.index("importance-weighted")] != "-") for line in lines[:-1]}
    assert weighted == {("latent thoughts", True), ("twin", False)}, "draws weigh nothing where there are no thoughts"
    _, differences = gap_table(gaps(study))
    assert {line[2] for line in differences} == {*EQUAL.values()}
    first = gaps(study)[0]
    level = first.rival.bound.nats_per_token - first.row.bound.nats_per_token
    assert first.nats_per_token == pytest.approx(level)


def test_cells_from_before_an_axis_have_its_setting(tmp_path):
    before = row(10, 1, name="ltm--a", axes={"model.dim": 10})
    rival = row(10, 0, name="twin--b", family="twin", thoughts=0, axes={"model.dim": 10}, steps=7)
    after = row(10, 1, name="ltm--c", axes={"model.dim": 10, "slow.lr": 0.1, "fast.steps": 1, "slow.steps": 10})
    for one in (before, rival, after):
        write_row(tmp_path / "runs" / one.name, one)
    study = Study({"slow.lr": 0.01, "fast.steps": 1, "slow.steps": 5})
    write_study(study, tmp_path)
    assert [one.axes for one in study.rows] == [
        {"model.dim": 10, "slow.lr": 0.01, "fast.steps": 1, "slow.steps": 10},
        after.axes,
        {"model.dim": 10, "slow.lr": 0.01, "slow.steps": 7},
    ]
    lines = (tmp_path / "study.csv").read_text().splitlines()
    assert lines[0].startswith("model.dim,slow.lr,fast.steps,slow.steps,name")
    assert [line.split(",")[1] for line in lines[1:]] == ["0.01", "0.1", "0.01"]


def test_the_page_opens_from_disk_and_takes_nothing_for_markup(study, tmp_path):
    for one in study.rows[:3]:
        write_row(tmp_path / "runs" / one.name, one)
    assert read_rows(tmp_path) == sorted(study.rows[:3], key=lambda one: one.name)
    page = write_study(Study(study.settings, about=study.about), tmp_path).read_text()
    assert page.count('src="data:image/png') >= 3
    assert "http" not in page.partition("<body>")[2]
    assert "slow.lr" in page
    assert "fast.steps" not in page.partition("What was run")[2], "what is on an axis is no setting of all cells"
    whole = render(study, {})
    assert "ltm--&lt;b&gt;" in whole
    assert "<b>" not in whole
