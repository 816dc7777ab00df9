"""Pictures of a comparison: bounds along the fit, the rate-distortion plane, and a map of guides and objectives."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from pyro_ltm.comparison.result import Comparison, Key, PairScore, Refused, arrival
from pyro_ltm.reports.plots import legible, panels

PALETTE = [colormaps["tab10"](index) for index in range(10)]
MARKERS = "osD^vP*X<>pd1234+x"
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
RIVAL_LINES: dict[str, dict[str, Any]] = {
    "twin": {"color": "0.4", "linestyle": ":"},
    "masked_diffusion": {"color": "0.4", "linestyle": "-."},
}
RIVAL_MARKERS = {"twin": "x", "masked_diffusion": "+"}
GREY, FAILED = "#d9d9d9", "#f4c7c3"


@dataclass(frozen=True)
class Line:
    """A bound on its way: points (x, nats a token), and the point at which it came within 1% of its best."""

    pair: PairScore
    points: list[tuple[float, float]]
    arrived: tuple[float, float] | None


def plot_curves(comparison: Comparison, axis: str) -> Figure:
    """Bounds along the way, a panel for each guide and a colour for each objective.

    Args:
        axis: what is counted: `steps`, or the time that they took, `seconds`.
    """
    lines = [line for pair in comparison.pairs if (line := _line(pair, axis))]
    guides, objectives = _names(comparison, [line.pair for line in lines])
    colours = "objective" if len(objectives) > 1 else "guide"
    names = objectives if len(objectives) > 1 else guides
    apart = len(objectives) > 1 and len(guides) > 1
    groups = [[line for line in lines if line.pair.guide == name] for name in guides] if apart else [lines]
    columns = min(5, len(groups))
    rows = -(-len(groups) // columns)
    size = (3.0 * columns + 0.4, 2.5 * rows + 0.9) if apart else (7.5, 4.4)
    figure, axes = panels(*size, rows, columns, sharey=True, sharex=True)
    low, high = _limits(*([line.points[index][1] for line in lines] for index in (-1, 0)))
    longest = max((line.pair.fast_steps for line in lines), default=0)
    for group, place in zip(groups, axes, strict=False):
        for line in group:
            index = names.index(getattr(line.pair, colours))
            _draw_line(place, line, index, main=line.pair.fast_steps == longest)
        _name_those_off(place, [getattr(line.pair, colours) for line in group if line.points[-1][1] > high])
        for name, rival in comparison.rivals.items():
            if rival.elbo:
                place.axhline(rival.level, **RIVAL_LINES[name], linewidth=1)
        if apart:
            place.set_title(legible(group[0].pair.guide), fontsize=10)
        place.tick_params(labelsize=8)
    for index, place in enumerate(axes):
        place.set_visible(index < len(groups))
        place.tick_params(labelbottom=index + columns >= len(groups))
    _scale(axes[0], comparison, axis, lines)
    if lines:
        axes[0].set_ylim(low, high)
    figure.supxlabel(_axis_label(comparison, axis), fontsize=10)
    figure.supylabel("upper bound, nats a token", fontsize=10)
    _legend_above(figure, names, comparison.rivals)
    return figure


def _style(index: int) -> dict[str, Any]:
    """Colour and dashes of the line of this name."""
    return {"color": PALETTE[index % 10], "linestyle": DASHES[index // 10 % 4]}


def _draw_line(axes: Axes, line: Line, index: int, *, main: bool) -> None:
    """A bound on its way, and a dot where it came close to its best; thin but for the `main` one."""
    axes.plot(*zip(*line.points, strict=True), linewidth=1.4 if main else 0.7, **_style(index))
    if line.arrived:
        axes.plot(*line.arrived, marker="o", markersize=4.5 if main else 3, color=_style(index)["color"])


def _name_those_off(axes: Axes, names: Sequence[str]) -> None:
    """Names the lines that end above the panel."""
    if names:
        text = "off the scale: " + ", ".join(legible(name) for name in dict.fromkeys(names))
        text = textwrap.fill(text, 26, break_long_words=False, break_on_hyphens=False)
        axes.text(0.98, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=7)


def plot_rate_distortion(comparison: Comparison) -> Figure:
    """Rate against distortion: a colour for each guide, a marker for each objective."""
    pairs = [pair for pair in comparison.pairs if pair.elbo]
    guides, objectives = _names(comparison, pairs)
    figure, (axes,) = panels(9.2, 6.4 if len(guides) + len(objectives) > 16 else 5.2)
    limit = _limits([pair.level for pair in pairs], [])[1]
    shown = [pair for pair in pairs if pair.level <= limit]
    colours: list[dict[str, Any]] = [
        {"color": PALETTE[i % 10], "fillstyle": "full" if i < 10 else "none"} for i in range(len(guides))
    ]
    markers = [MARKERS[i % len(MARKERS)] for i in range(len(objectives))]
    for pair in shown:
        style = {**colours[guides.index(pair.guide)], "marker": markers[objectives.index(pair.objective)]}
        place = pair.rate or 0.0, pair.distortion or 0.0
        axes.plot(*place, linestyle="none", markersize=7, alpha=0.85, **style)
    for name, rival in comparison.rivals.items():
        if rival.elbo:
            axes.plot(0, rival.level, marker=RIVAL_MARKERS[name], color="black", markersize=8, linestyle="none")
    _equal_bounds(axes, comparison)
    axes.set_xlabel("rate: KL, nats a sequence")
    axes.set_ylabel("distortion, nats a token")
    if len(shown) < len(pairs):
        axes.set_title(f"off the scale, see the table: {len(pairs) - len(shown)}", fontsize=9, loc="right")
    by_guide = [Line2D([], [], linestyle="none", marker="o", **colour) for colour in colours]
    by_objective = [Line2D([], [], linestyle="none", marker=marker, color="0.35") for marker in markers]
    side: dict[str, Any] = {"frameon": False, "fontsize": 8}
    figure.legend(by_guide, [*map(legible, guides)], title="guide", loc="outside right upper", **side)
    figure.legend(by_objective, [*map(legible, objectives)], title="objective", loc="outside right lower", **side)
    return figure


def plot_map(comparison: Comparison, *, equal_seconds: bool = False) -> Figure:
    """The bound of each guide with each objective; grey where the two do not fit. One panel for each number of steps.

    Args:
        equal_seconds: of decoders trained for as long as the fastest, and not for as many tokens.
    """
    guides, objectives = _names(comparison, [*comparison.pairs, *comparison.refused])
    settings = comparison.fast_steps or [0]
    rows, columns = ([legible(name) for name in names] for names in (guides, objectives))
    wide = 1.2 + 0.62 * len(columns) + 0.09 * max(map(len, rows), default=0)
    tall = 0.9 + 0.38 * len(rows) + 0.075 * max(map(len, columns), default=0)
    across = 2 if len(settings) > 1 and wide < 6 else 1
    down = -(-len(settings) // across)
    figure, axes = panels(max(4.5, wide) * across, max(2.4, tall) * down, down, across)
    levels = _levels(comparison, equal_seconds)
    low, high = (min(levels.values()), _limits([*levels.values()], [])[1]) if levels else (0.0, 1.0)
    for steps, place in zip(settings, axes, strict=False):
        for row, guide in enumerate(guides):
            for column, objective in enumerate(objectives):
                pair = comparison.find((guide, objective, steps))
                _cell(place, (column, row), pair, levels.get(pair.key) if pair else None, (low, high))
        place.set_xticks(range(len(objectives)), columns, rotation=40, ha="right", rotation_mode="anchor")
        place.set_yticks(range(len(guides)), rows)
        place.tick_params(labelsize=8, length=0)
        place.set_xlim(-0.5, len(objectives) - 0.5)
        place.set_ylim(len(guides) - 0.5, -0.5)
        place.spines[:].set_visible(False)
        if len(settings) > 1:
            place.set_title(f"{steps} fast steps", fontsize=10)
    for place in axes[len(settings) :]:
        place.set_visible(False)
    figure.supxlabel("nats a token, lower is better; grey: the two do not fit; –: no bound", fontsize=8)
    return figure


def _levels(comparison: Comparison, equal_seconds: bool) -> dict[Key, float]:
    """Nats a token of every pair that has a bound; at equal seconds of training, if asked for."""
    if not equal_seconds:
        return {pair.key: pair.level for pair in comparison.pairs if math.isfinite(pair.level)}
    keys, equal = {pair.key for pair in comparison.pairs}, comparison.equal_seconds()
    found = {key: row["nats_per_token"] for key, row in equal.items() if key in keys}
    return {key: float(level) for key, level in found.items() if level is not None}


def _cell(
    axes: Axes, place: tuple[int, int], pair: PairScore | None, value: float | None, limits: tuple[float, float]
) -> None:
    """One cell of the map, at column and row: its colour, its number; a frame around the best."""
    (column, row), (low, high) = place, limits
    share = 0.0 if value is None else min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
    colour: Any = colormaps["viridis_r"](0.05 + 0.85 * share)
    text, ink = "" if value is None else f"{value:.3f}" if value < 100 else f"{value:.4g}", "black"
    if value is None:
        failed = pair is not None and pair.note.startswith(("failed", "ran away"))
        colour, text = (FAILED, "failed") if failed else (GREY, "") if pair is None else ("white", "–")
    elif share > 0.5:
        ink = "white"
    best = value is not None and value == low
    edge: dict[str, Any] = (
        {"edgecolor": "#d1495b", "linewidth": 2.5, "zorder": 3} if best else {"edgecolor": "white", "linewidth": 1}
    )
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, **edge))
    weight = "bold" if best else "normal"
    axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink, weight=weight, zorder=4)


def _names(comparison: Comparison, pairs: Sequence[PairScore | Refused]) -> tuple[list[str], list[str]]:
    """Guides and objectives of these pairs, in the order in which they were asked for."""

    def of(axis: str, names: Sequence[str]) -> list[str]:
        return [name for name in dict.fromkeys([*comparison.definitions[axis], *names]) if name in names]

    return of("guides", [pair.guide for pair in pairs]), of("objectives", [pair.objective for pair in pairs])


def _line(pair: PairScore, axis: str) -> Line | None:
    """The pair's bound along its fit, or along its training where a decoder was trained; None where it has none."""
    if pair.training is not None:
        rows = [(row.step, row.seconds, row.nats_per_token) for row in pair.training.validation]
    else:
        rows = [(one.steps, one.ms, one.nats_per_token) for one in pair.curve]
    known = [(float(steps if axis == "steps" else time), level) for steps, time, level in rows if level is not None]
    best = arrival([level for _, level in known])
    return Line(pair, known, None if best is None else known[best]) if known else None


def _scale(axes: Axes, comparison: Comparison, axis: str, lines: Sequence[Line]) -> None:
    """Fast steps double from point to point, and so does their time; training goes on evenly."""
    if comparison.kind == "training" or not lines:
        return
    if axis == "steps":
        last = max(point[0] for line in lines for point in line.points)
        axes.set_xscale("symlog", base=2, linthresh=1)
        ticks = [0, *(1 << power for power in range(0, int(last).bit_length(), 1 if last <= 64 else 2))]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlim(-0.1, max(1.0, last) * 1.15)
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _axis_label(comparison: Comparison, axis: str) -> str:
    if comparison.kind == "training":
        return "slow steps (equal tokens)" if axis == "steps" else "seconds of training"
    return "fast steps" if axis == "steps" else "milliseconds of fitting a sequence"


def _limits(finals: Sequence[float], starts: Sequence[float]) -> tuple[float, float]:
    """Limits that show most pairs well: those that ran off, or began far off, do not squash the others."""
    if not finals:
        return 0.0, 1.0
    low, ends, begins = min([*finals, *starts]), sorted(finals), sorted(starts)
    usual = ends[min(len(ends) - 1, int(0.75 * len(ends)))]
    room = max(2 * (usual - low), 0.03 * abs(low))
    begin = begins[min(len(begins) - 1, int(0.75 * len(begins)))] if begins else low
    room = max(room, begin - low) if begin - low < 4 * room else room
    high = min(max([*finals, *starts]), low + room)
    margin = 0.05 * ((high - low) or abs(high) or 1.0)
    return low - margin, high + margin


def _equal_bounds(axes: Axes, comparison: Comparison) -> None:
    """Lines along which distortion and rate make up the same bound."""
    counts = comparison.token_counts
    if not counts or not comparison.best:
        return
    share = len(counts) / sum(counts)
    axes.autoscale_view()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    lowest, highest = bottom + share * left, top + share * right
    for index in range(1, 8):
        level = lowest + index / 8 * (highest - lowest)
        ends = [(x, level - share * x) for x in (left, right)]
        axes.plot(*zip(*ends, strict=True), color="0.8", linewidth=0.8, linestyle="--", zorder=0)
        x = left + 0.01 * (right - left)
        y = level - share * x
        if bottom + 0.02 * (top - bottom) < y < top - 0.02 * (top - bottom):
            axes.text(x, y, f"{level:.2f}", color="0.55", fontsize=7, va="bottom")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _legend_above(figure: Figure, names: Sequence[str], rivals: Iterable[str]) -> None:
    """A legend of the lines, in as many columns as the figure has room for."""
    handles = [Line2D([], [], label=legible(name), **_style(index)) for index, name in enumerate(names)]
    handles += [Line2D([], [], **RIVAL_LINES[name], label=name.replace("_", " ")) for name in rivals]
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.55 + 0.075 * longest))))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)


__all__ = ["plot_curves", "plot_map", "plot_rate_distortion"]
