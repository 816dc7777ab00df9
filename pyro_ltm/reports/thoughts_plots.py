"""Pictures of what thoughts carry, each from a part of a report's JSON."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from pyro_ltm.reports.plots import COLORS, Figures, legend, legible, panels
from pyro_ltm.thoughts.report import ThoughtsMap

SHOWN = 10
"""Values of a label that have a colour; a longer legend than that tells nothing."""


def draw_thoughts(result: Mapping[str, Any], thoughts_map: ThoughtsMap | None) -> Figures:
    """All pictures of a report's figures, each with a line that says how they were measured."""
    found = result["thoughts"]
    drawn: dict[str, tuple[Figure | None, str]] = {
        "rates": (plot_rates(found), "What each thought carries."),
        "distortion": (plot_distortions(found), "Distortion with whose thoughts: alike, if the decoder ignores them."),
        "layers": (plot_layers(found), "Progressive reconstruction: the other layers' thoughts are the prior's."),
    }
    if known := [probe for probe in result["probes"] if "accuracy" in probe]:
        drawn["probes"] = plot_probes(known), "Labels read off the thoughts by a linear classifier."
    maps = (thoughts_map.labels or {"": []}) if thoughts_map else {}
    for number, (name, values) in enumerate(maps.items(), 1):
        file = "-".join(["map", *re.findall(r"\w+", name)])
        file = file if file not in drawn else f"{file}-{number}"
        assert thoughts_map is not None
        figure = plot_map(thoughts_map.points, values if name else None, name, thoughts_map.shares)
        drawn[file] = figure, f"A map of the thoughts{', by ' + name if name else ''}."
    line = how_measured(found)  # in the picture itself, which may be looked at without the page
    return {name: (sign(figure, line), caption) for name, (figure, caption) in drawn.items() if figure is not None}


def how_measured(found: Mapping[str, Any]) -> str:
    """How the figures of `Diagnostics.to_dict` were taken, on one line."""
    return (
        f"{found['sequences']:,} sequences, {found['tokens']:,} tokens; {found['fast_steps']} fast steps of "
        f"{found['guide']}; particles {found['particles']}, seed {found['seed']}, fresh noise"
    )


def sign(figure: Figure, line: str) -> Figure:
    """The same figure with a small line below it that says how it was measured."""
    characters = int(15 * figure.get_figwidth())  # at this size
    figure.supxlabel(textwrap.fill(line, characters), fontsize=7, color="0.4")
    return figure


def plot_rates(found: Mapping[str, Any]) -> Figure | None:
    """Nats of each thought, layer by layer; None where the family has no such parts."""
    rates = found["rate_by_thought"]
    if rates is None:
        return None
    each = len(rates) // len(found["rate_by_layer"])
    figure, (axes,) = panels(max(4.0, 0.3 * len(rates) + 2), 3.4)
    colors = [COLORS[index // each % len(COLORS)] for index in range(len(rates))]
    axes.bar(
        range(1, len(rates) + 1), [rate["mean"] for rate in rates], 0.7, yerr=_errors(rates), color=colors, capsize=2
    )
    axes.set_xlabel("thought (a colour for each layer)")
    axes.set_ylabel("KL, nats a sequence")
    return figure


def plot_distortions(found: Mapping[str, Any]) -> Figure:
    """Nats a token with whose thoughts."""
    figure, (axes,) = panels(5, 3.4)
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
    figure, (nats, accuracy) = panels(8, 3.4, columns=2)
    for key, label, color in (("by_layer", "from the first up", 0), ("by_layer_down", "from the last down", 1)):
        style: dict[str, Any] = {"color": COLORS[color], "marker": "o", "markersize": 4, "capsize": 2, "label": label}
        for axes, name in ((nats, "nats_per_token"), (accuracy, "accuracy")):
            errors = [row[f"{name}_stderr"] or 0.0 for row in found[key]]
            axes.errorbar([row["layers"] for row in found[key]], [row[name] for row in found[key]], errors, **style)
    nats.set_ylabel("distortion, nats a token")
    accuracy.set_ylabel("tokens predicted, given those before")
    for axes in (nats, accuracy):
        axes.set_xlabel("layers whose thoughts are known")
        axes.set_xticks([row["layers"] for row in found["by_layer"]])
    legend(nats)
    return figure


def plot_probes(probes: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy of the linear probes, with that of a guess, of shuffled labels, and of features that cost less."""
    figure, (axes,) = panels(max(4.5, 1.1 * len(probes) + 1.5), 3.4)
    places = range(len(probes))
    axes.bar(
        places, [p["accuracy"] for p in probes], 0.5, yerr=[p["stderr"] for p in probes], color=COLORS[0], capsize=3
    )
    for key, label, color in (("majority", "the commonest value", 1), ("control", "shuffled labels", 3)):
        axes.scatter(places, [p[key] for p in probes], marker="_", s=500, color=COLORS[color], label=label, zorder=3)
    for index, name in enumerate(probes[0].get("baselines", {})):
        heights = [p["baselines"][name]["accuracy"] for p in probes]
        axes.scatter(places, heights, marker=MARKERS[index % len(MARKERS)], s=30, color="0.2", label=name, zorder=4)
    axes.set_xticks(list(places), [legible(p["label"], 16) for p in probes])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy of the probe")
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


MARKERS = "osx^"
"""Of the features that probes are compared with."""


def plot_map(
    points: Sequence[Sequence[float]], labels: Sequence[str] | None, name: str, shares: Sequence[float]
) -> Figure:
    """Posterior means on their two principal axes, a colour for each of the ten commonest values of a label."""
    figure, (axes,) = panels(6.0, 4.6)
    groups: dict[str, list[Sequence[float]]] = {}
    for index, point in enumerate(points):
        groups.setdefault(labels[index] if labels else "", []).append(point)
    for index, (value, group) in enumerate(sorted(groups.items(), key=lambda group: -len(group[1]))):
        color = f"C{index}" if index < SHOWN else "0.75"
        shown = None if index > SHOWN or not labels else "others" if index == SHOWN else legible(value)
        axes.scatter([x for x, _ in group], [y for _, y in group], s=9, color=color, alpha=0.8, label=shown)
    for axis, share, which in zip((axes.xaxis, axes.yaxis), shares, ("first", "second"), strict=False):
        axis.set_label_text(f"{which} principal axis ({share:.0%} of the variance)")
    if labels:
        legend(axes, title=legible(name), loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _errors(means: Any) -> list[float]:
    return [mean["stderr"] or 0.0 for mean in means]
