"""Pictures of an evaluation: where each protocol's figure stands, and the curve of the importance-weighted bound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_ltm.files import clear_errors
from pyro_ltm.reports.plots import COLORS, Figures, legend, legible, panels, write_pictures

CAPTIONS = {
    "bounds": "Where the figures stand; what is hatched is no bound.",
    "importance": "The importance-weighted bound along the number of draws.",
}


def plot_evaluation(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws `bounds.png`, and `importance.png` where there is a curve, into `folder`; one of older figures goes.

    Args:
        result: what `Evaluation.to_dict` gives.

    Raises:
        UserError: the folder cannot be written.
    """
    drawn = write_pictures(draw_evaluation(result), folder)
    for name in set(CAPTIONS) - set(drawn):
        with clear_errors(folder):
            (folder / f"{name}.png").unlink(missing_ok=True)
    return [folder / f"{name}.png" for name in drawn]


def draw_evaluation(result: Mapping[str, Any]) -> Figures:
    """The pictures that `CAPTIONS` names: `importance` only where there is a curve."""
    curve = result.get("bound", {}).get("iwae_curve", [])
    drawn = {"bounds": _levels(result)} | ({"importance": _curve(result, curve)} if len(curve) > 1 else {})
    return {name: (figure, CAPTIONS[name]) for name, figure in drawn.items()}


def levels(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every figure of an evaluation by the name that it is shown under; `key` is its name among the differences."""
    found: dict[str, Mapping[str, Any]] = {}
    bound = result.get("bound")
    if bound:
        found["bound (at most)"] = {**bound, "key": "bound"}
        last = bound["iwae_curve"][-1]
        if last["particles"] > 1 and bound["active_fraction_by_layer"]:
            level = {"nats_per_token": last["nats_per_token"], "nats_per_token_stderr": last["stderr"]}
            found[f"importance-weighted, {last['particles']} (at most)"] = {**level, "key": "importance-weighted"}
        for start, one in bound.get("ais", {}).items():
            found[f"annealed from {start} (at most)"] = {**one, "key": f"AIS from {start}"}
    names = {
        "prefix": "predictive, sequential",
        "twin": "twin (exact)",
        "masked_diffusion": "masked diffusion (at most)",
    }
    names |= {"reference": "reference: NOT a bound"}
    return found | {name: {**result[key], "key": key} for key, name in names.items() if key in result}


def _levels(result: Mapping[str, Any]) -> Figure:
    """Horizontal bars, the floor as a line through them; the reference's bar is hatched."""
    found = levels(result)
    figure, (axes,) = panels(8, 1.2 + 0.42 * len(found))
    for index, one in enumerate(found.values()):
        _bar(axes, index, one)
    axes.set_yticks(range(len(found)), [legible(name, 40) for name in found])
    axes.invert_yaxis()
    known = [float(one["nats_per_token"]) for one in found.values()]
    low, high = min(known), max(known)
    label = "nats a token (axis cut)"
    if "floor" in result:
        floor = float(result["floor"]["nats_per_token"])
        low = min(low, floor)
        axes.axvline(floor, color="black", linewidth=1.2)
        label += f"; black: the floor, the text's entropy, {floor:.3f}"
    axes.set_xlim(max(0.0, low - 0.6 * (high - low) - 0.02 * high), high + 0.25 * (high - low) + 0.02 * high)
    axes.set_xlabel(label)
    axes.set_title("What this run's likelihood is known to be", fontsize=10)
    return figure


def _bar(axes: Axes, index: int, one: Mapping[str, Any]) -> None:
    """One figure's bar, with its error and its number."""
    hatched: dict[str, Any] = {"color": "white", "edgecolor": COLORS[3], "hatch": "///"}
    style = hatched if one.get("is_bound") is False else {"color": COLORS[0]}
    level = float(one["nats_per_token"])  # JSON may write it without a fraction, of any length
    axes.barh(index, level, 0.6, xerr=float(one.get("nats_per_token_stderr") or 0.0), capsize=3, **style)
    axes.annotate(f"{level:.3f}", (level, index), xytext=(8, 0), textcoords="offset points", va="center", size=8)


def _curve(result: Mapping[str, Any], curve: list[Mapping[str, Any]]) -> Figure:
    figure, (axes,) = panels(5, 3.4)
    axes.errorbar(
        [point["particles"] for point in curve],
        [float(point["nats_per_token"]) for point in curve],
        [float(point["stderr"] or 0.0) for point in curve],
        color=COLORS[0],
        marker="o",
        markersize=3,
        capsize=2,
        label="importance-weighted (at most)",
    )
    for index, (start, one) in enumerate(result["bound"].get("ais", {}).items(), 1):
        label, color = legible(f"annealed from {start}"), COLORS[index % len(COLORS)]
        axes.axhline(float(one["nats_per_token"]), color=color, linestyle="--", label=label)
    for name, color in (("twin", COLORS[3]), ("floor", "black")):
        if name in result:
            axes.axhline(float(result[name]["nats_per_token"]), color=color, linewidth=1.2, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("draws")
    axes.set_ylabel("nats a token")
    legend(axes)
    return figure
