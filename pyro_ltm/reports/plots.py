"""Pictures of a run and of its figures, as PNG files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.files import clear_errors, write_atomically
from pyro_ltm.runs.folder import METRICS
from pyro_ltm.runs.metrics import read_metrics

COLORS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#5c5470")


def plot_run(folder: Path) -> Path:
    """Draws the metrics of the run in `folder` into its plots/training.png. Raises UserError when there are none."""
    return plot_training(read_metrics(folder / METRICS), folder / "plots" / "training.png")


def plot_training(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draws a run's metrics: the bound with its untrained and unigram levels, distortion and rate, the gradient's norm.

    Args:
        rows: the rows of metrics.jsonl.
        path: the PNG to write.

    Raises:
        UserError: no rows, or the file cannot be written.
    """
    train = [row for row in rows if row["kind"] == "train"]
    checks = [row for row in rows if row["kind"] == "validation"]
    if not train and not checks:
        raise UserError(f"{path.name}: nothing to draw, the run has no metrics yet")
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    bound, parts, thoughts = figure.subplots(1, 3)
    _curve(bound, train, "bound_nats_per_token", "training batch", COLORS[0], alpha=0.35)
    _curve(bound, checks, "nats_per_token", "validation bound", COLORS[1], marker="o")
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
    return save(figure, path)


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, label: str, color: str, **style: Any) -> None:
    points = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, markersize=3, linewidth=1.3, **style)


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("slow step")
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def legible(text: str, longest: int = 28) -> str:
    """`text` as a picture can show it: one short line of characters that the font has, and no mathematics.

    To a legend, a leading underscore would mean that it is not to be shown.
    """
    known = _characters()
    line = "".join(character if ord(character) in known else "\u25a1" for character in one_line(text, longest + 1))
    line = line if len(line) <= longest else line[: longest - 1] + "\u2026"
    return (f"'{line}'" if not line or line.startswith("_") else line).replace("$", r"\$")


@functools.cache
def _characters() -> frozenset[int]:
    """Those that the font of all pictures has."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return frozenset(font.get_charmap())


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture, atomically, and its folder. Raises UserError when it cannot be written."""
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    return path
