"""Pictures of a run and of its figures, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_ltm.errors import UserError
from pyro_ltm.evaluation.bound import Bound
from pyro_ltm.files import clear_errors, write_atomically

COLORS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#5c5470")


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
            bound.axhline(row["unigram_nats_per_token"], color="0.5", linestyle="--", label="unigram")
    _finish(bound, "Upper bound on nats a token", "nats a token")
    _curve(parts, train, "distortion_nats_per_token", "distortion, training", COLORS[0], alpha=0.35)
    _curve(parts, checks, "distortion_nats_per_token", "distortion", COLORS[1], marker="o")
    _curve(parts, checks, "distortion_shuffled", "... of another's thoughts", COLORS[3], marker="s")
    _finish(parts, "Distortion: what thoughts explain", "nats a token")
    _curve(thoughts, train, "kl_nats_per_sequence", "training batch", COLORS[0], alpha=0.35)
    _curve(thoughts, checks, "kl_nats_per_sequence", "validation", COLORS[1], marker="o")
    _finish(thoughts, "Rate: what thoughts carry", "KL, nats a sequence")
    return _save(figure, path)


def plot_bounds(bounds: Mapping[str, Bound], path: Path) -> Path:
    """Draws evaluated bounds side by side: distortion and rate stacked, and the distortion with other thoughts.

    Args:
        bounds: figures by the name to show, such as `LTM` and `twin`.
        path: the PNG to write.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    stack, probes = figure.subplots(1, 2)
    names = list(bounds)
    distortion = [b.distortion_nats_per_token for b in bounds.values()]
    rate = [b.kl_nats_per_sequence * b.sequences / b.tokens for b in bounds.values()]
    error = [0.0 if math.isnan(b.nats_per_token_stderr) else b.nats_per_token_stderr for b in bounds.values()]
    stack.bar(names, distortion, 0.5, color=COLORS[0], label="distortion")
    stack.bar(names, rate, 0.5, bottom=distortion, yerr=error, color=COLORS[3], label="rate (KL)", capsize=4)
    for index, bound in enumerate(bounds.values()):
        label = f"{bound.nats_per_token:.3f}"
        stack.annotate(label, (index, bound.nats_per_token), xytext=(0, 6), textcoords="offset points", ha="center")
    stack.set_ylim(0, 1.35 * max(b.nats_per_token for b in bounds.values()))
    stack.set_title("Upper bound on nats a token", fontsize=10)
    stack.set_ylabel("nats a token")
    stack.legend(frameon=False, fontsize=8, loc="upper right")
    with_thoughts = {name: b for name, b in bounds.items() if b.active_fraction_by_layer}
    kinds = {"own": "distortion_nats_per_token", "another's": "distortion_shuffled"}
    kinds |= {"prior": "distortion_from_prior", "zero": "distortion_zeroed"}
    width = 0.8 / max(1, len(with_thoughts))
    for index, (name, bound) in enumerate(with_thoughts.items()):
        heights = [getattr(bound, key) for key in kinds.values()]
        places = [place + index * width for place in range(len(kinds))]
        probes.bar(places, heights, width, label=name, color=COLORS[index % len(COLORS)])
        probes.set_ylim(0.98 * min(heights), 1.01 * max(heights))
    probes.set_xticks(range(len(kinds)), list(kinds))
    probes.set_title("Distortion with whose thoughts? (axis cut)", fontsize=10)
    probes.set_ylabel("nats a token")
    return _save(figure, path)


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, label: str, color: str, **style: Any) -> None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, markersize=3, linewidth=1.3, **style)


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("slow step")
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _save(figure: Figure, path: Path) -> Path:
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    return path
