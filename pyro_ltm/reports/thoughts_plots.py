"""Pictures of what thoughts carry, each from a part of a report's JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_ltm.reports.plots import COLORS, legible

SHOWN = 10
"""Values of a label that have a colour; a longer legend than that tells nothing."""


def plot_rates(found: Mapping[str, Any]) -> Figure | None:
    """Nats of each thought, layer by layer; None where the family has no such parts."""
    rates = found["rate_by_thought"]
    if rates is None:
        return None
    each = len(rates) // len(found["rate_by_layer"])
    figure, axes = _axes(width=max(4.0, 0.3 * len(rates) + 2))
    colors = [COLORS[index // each % len(COLORS)] for index in range(len(rates))]
    axes.bar(
        range(1, len(rates) + 1), [rate["mean"] for rate in rates], 0.7, yerr=_errors(rates), color=colors, capsize=2
    )
    axes.set_xlabel("thought (a colour for each layer)")
    axes.set_ylabel("KL, nats a sequence")
    return figure


def plot_distortions(found: Mapping[str, Any]) -> Figure:
    """Nats a token with whose thoughts."""
    figure, axes = _axes()
    kinds = found["distortion"]
    heights = [kind["mean"] for kind in kinds.values()]
    axes.bar(list(kinds), heights, 0.6, yerr=_errors(kinds.values()), color=COLORS[0], capsize=3)
    spread = max(heights) - min(heights)
    axes.set_ylim(max(0.0, min(heights) - 0.5 * spread - 0.01), max(heights) + 0.15 * spread + 0.01)
    axes.set_ylabel("distortion, nats a token (axis cut)")
    axes.set_xlabel("thoughts from")
    return figure


def plot_layers(found: Mapping[str, Any]) -> Figure:
    """Progressive reconstruction: nats and accuracy as more layers' thoughts are known."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    nats, accuracy = figure.subplots(1, 2)
    for key, label, color in (("by_layer", "from the first up", 0), ("by_layer_down", "from the last down", 1)):
        rows = found[key]
        count = [row["layers"] for row in rows]
        level = [row["nats_per_token"] for row in rows]
        errors = [row["nats_per_token_stderr"] or 0.0 for row in rows]
        nats.errorbar(count, level, errors, color=COLORS[color], marker="o", markersize=4, capsize=2, label=label)
        level, errors = [row["accuracy"] for row in rows], [row["accuracy_stderr"] or 0.0 for row in rows]
        accuracy.errorbar(count, level, errors, color=COLORS[color], marker="o", markersize=4, capsize=2)
    nats.set_ylabel("distortion, nats a token")
    accuracy.set_ylabel("tokens told right, given those before")
    for axes in (nats, accuracy):
        axes.set_xlabel("layers whose thoughts are known")
        axes.set_xticks([row["layers"] for row in found["by_layer"]])
        axes.spines[["top", "right"]].set_visible(False)
    nats.legend(frameon=False, fontsize=8)
    return figure


def plot_probes(probes: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy of the linear probes beside a guess and shuffled labels."""
    figure, axes = _axes(width=max(4.5, 1.1 * len(probes) + 1.5))
    places = range(len(probes))
    axes.bar(
        places, [p["accuracy"] for p in probes], 0.5, yerr=[p["stderr"] for p in probes], color=COLORS[0], capsize=3
    )
    for key, label, color in (("majority", "the commonest value", 1), ("control", "shuffled labels", 3)):
        axes.scatter(places, [p[key] for p in probes], marker="_", s=500, color=COLORS[color], label=label, zorder=3)
    axes.set_xticks(list(places), [legible(p["label"], 16) for p in probes])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("told right from the thoughts")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def plot_map(
    points: Sequence[Sequence[float]], labels: Sequence[str] | None, name: str, shares: Sequence[float]
) -> Figure:
    """Posterior means on their two principal axes, a colour for each of the ten commonest values of a label."""
    figure, axes = _axes(width=6.0, height=4.6)
    groups: dict[str, list[Sequence[float]]] = {}
    for index, point in enumerate(points):
        groups.setdefault(labels[index] if labels else "", []).append(point)
    for index, (value, members) in enumerate(sorted(groups.items(), key=lambda group: -len(group[1]))):
        color = f"C{index}" if index < SHOWN else "0.75"
        shown = None if index > SHOWN or not labels else "others" if index == SHOWN else legible(value)
        axes.scatter([x for x, _ in members], [y for _, y in members], s=9, color=color, alpha=0.8, label=shown)
    for axis, share, which in zip((axes.xaxis, axes.yaxis), shares, ("first", "second"), strict=False):
        axis.set_label_text(f"{which} principal axis ({share:.0%} of the variance)")
    if labels:
        axes.legend(title=legible(name), frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def sign(figure: Figure, line: str) -> Figure:
    """The same figure with a small line below it that says how it was measured."""
    characters = int(15 * figure.get_figwidth())  # at this size
    figure.supxlabel(textwrap.fill(line, characters), fontsize=7, color="0.4")
    return figure


def _axes(width: float = 5.0, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _errors(means: Any) -> list[float]:
    return [mean["stderr"] or 0.0 for mean in means]
