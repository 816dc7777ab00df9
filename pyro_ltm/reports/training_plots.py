"""Curves of a run's training."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_ltm.errors import UserError
from pyro_ltm.reports.plots import COLORS, legend, panels, to_png, write_pictures
from pyro_ltm.runs.folder import METRICS
from pyro_ltm.runs.metrics import read_metrics

CAPTION = "Bounds, distortion and rate while it learned."


def plot_run(folder: Path) -> Path:
    """Draws the metrics of the run in `folder` into its plots/training.png. Raises UserError when there are none."""
    write_pictures({"training": (draw_training(read_metrics(folder / METRICS)), CAPTION)}, folder / "plots")
    return folder / "plots" / "training.png"


def training_picture(folder: Path) -> tuple[bytes, str] | None:
    """The run's plots/training.png and its caption, drawn where training has not done so; None without metrics."""
    path = folder / "plots" / "training.png"
    if path.is_file():
        return path.read_bytes(), CAPTION
    with contextlib.suppress(UserError):
        return to_png(draw_training(read_metrics(folder / METRICS))), CAPTION
    return None


def draw_training(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A run's metrics: the bound with its untrained and unigram levels, distortion, rate. Raises UserError for none."""
    train = [row for row in rows if row["kind"] == "train"]
    checks = [row for row in rows if row["kind"] == "validation"]
    if not train and not checks:
        raise UserError("training.png: nothing to draw, the run has no metrics yet")
    figure, (bound, parts, thoughts) = panels(11, 3.6, columns=3)
    _curve(bound, train, "bound_nats_per_token", "training batch", COLORS[0], alpha=0.35)
    _curve(bound, checks, "nats_per_token", "validation bound", COLORS[1], marker="o")
    _curve(bound, checks, "average_nats_per_token", "... of the average", COLORS[2], marker="^")
    for row in rows:
        if row["kind"] == "start" and row.get("unigram_nats_per_token"):
            bound.axhline(float(row["unigram_nats_per_token"]), color="0.5", linestyle="--", label="unigram")
    _finish(bound, "Upper bound on nats a token", "nats a token")
    _curve(parts, train, "distortion_nats_per_token", "distortion, training", COLORS[0], alpha=0.35)
    _curve(parts, checks, "distortion_nats_per_token", "distortion", COLORS[1], marker="o")
    _curve(parts, checks, "distortion_shuffled", "... of another's thoughts", COLORS[3], marker="s")
    _finish(parts, "Distortion: what thoughts explain", "nats a token")
    _curve(thoughts, train, "kl_nats_per_sequence", "training batch", COLORS[0], alpha=0.35)
    _curve(thoughts, checks, "kl_nats_per_sequence", "validation", COLORS[1], marker="o")
    _finish(thoughts, "Rate: what thoughts carry", "KL, nats a sequence")
    return figure


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, label: str, color: str, **style: Any) -> None:
    points = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, markersize=3, linewidth=1.3, **style)


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("slow step")
    axes.set_ylabel(unit)
    if axes.get_legend_handles_labels()[0]:
        legend(axes)
