"""Pictures of a scaling study: what tokens, operations, size, fast steps and thoughts are worth."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from pyro_ltm.comparison.scaling.analysis import Point, averaged, beside, frontier, predicted_by
from pyro_ltm.comparison.scaling.grid import reads
from pyro_ltm.comparison.scaling.result import Level, Row, Study
from pyro_ltm.reports.plots import COLORS, Figures, legend, legible, panels

NAMES = {"ltm": "latent thoughts", "twin": "twin", "masked-diffusion": "masked diffusion"}
STYLES: dict[str, dict[str, Any]] = {
    "ltm": {"color": COLORS[0], "marker": "o"},
    "twin": {"color": COLORS[1], "marker": "s"},
    "masked-diffusion": {"color": COLORS[3], "marker": "^"},
}
"""Colours that those who see no red or green tell apart, too."""
LINES = {"ltm": "-", "twin": "--", "masked-diffusion": ":"}
MARKERS = "oDvP*X<>"
"""Of the laws of one family."""
NATS = "nats a token (lower is better)"
KINDS = {
    "bound": "bound",
    "iwae": "importance-weighted",
    "predictive": "predictive",
    "reference": "reference protocol, no bound",
}
FIGURE_STYLES: dict[str, dict[str, Any]] = {
    "bound": {"color": COLORS[0], "marker": "o", "linestyle": "-", "markersize": 8, "fillstyle": "none"},
    "iwae": {"color": COLORS[3], "marker": "s", "linestyle": "-", "markersize": 5, "fillstyle": "none"},
    "predictive": {"color": COLORS[1], "marker": "D", "linestyle": "-", "markersize": 3},
    "reference": {"color": "0.5", "marker": "x", "linestyle": ":", "markersize": 5},
}
"""Where figures are nearly equal, each is seen within the other."""
MARKED = ("fast_steps", "thoughts")
"""Figures of a cell that curves are told apart by."""
MOST_PANELS = 6
"""Shapes that a picture has room for: of more, some from the smallest to the largest."""
SIZE = ("fast.steps", "model.dim", "model.layers", "model.heads", "model.hidden", "model.embedding_scale")
"""Keys on axes that the picture of size against fast steps shows."""
ALONG: dict[str, tuple[Sequence[str], str]] = {
    "fast_steps": (("fast.steps",), "fast steps"),
    "thoughts": (("model.thoughts",), "thoughts N"),
    "parameters": (SIZE[1:], "parameters"),
}
"""Factors along which the protocols are drawn: the keys on axes behind each, and its name."""


def draw(study: Study) -> Figures:
    """Every picture that the cells are enough for, by name, with its caption."""
    drawn: dict[str, tuple[Figure | None, str]] = {
        "by-tokens": (
            plot_curves(study),
            "Sample efficiency: validation nats against tokens read, of each cell while it was trained (fewer "
            "sequences than the final figures), the mean of its seeds. A panel for each shape, of at most six; "
            "colours: fast steps; marks: thoughts, where they differ; broken: rivals.",
        ),
        "by-operations": (
            plot_frontiers(study),
            "Final figures against the operations of training and of a written token. Lines: the frontier of each "
            "family, beyond which no cell of it lies. Bars: one standard error.",
        ),
        "protocol": (
            plot_protocol(study),
            "How much of the scaling is the protocol: the reference's figure, which is no bound, beside the honest "
            "figures of the same cells, the mean of their seeds. Lines join cells that differ in nothing else.",
        ),
        "trade": (
            plot_trade(study),
            "Size against fast steps: where inference stands in for parameters, a line of equal nats falls to the "
            "right. Dots are cells, the mean of their seeds; lines between them are interpolated.",
        ),
        "by-thoughts": (
            plot_thoughts(study),
            "What thoughts carry: the rate, and the latent dimensions that are in use, against their number. "
            "Lines join cells that differ in nothing else.",
        ),
        "law": (plot_laws(study), "What the fitted law says of each cell against what was measured."),
        "epochs": (plot_epochs(study), "Where data run out: validation nats against epochs of the training text."),
        "figures": (
            plot_figures(study),
            "The honest figures of each latent-thought cell beside one another, by its bound. The reference "
            "protocol's, where it was asked for, is no bound: what lies below the others is the protocol.",
        ),
    }
    return {name: (figure, caption) for name, (figure, caption) in drawn.items() if figure is not None}


def plot_curves(study: Study) -> Figure | None:
    """Validation against tokens."""
    return _curves(study, lambda row: row.family == "ltm", lambda row: 1.0, "tokens read")


def plot_frontiers(study: Study) -> Figure | None:
    """Final figures against training operations and against those of a written token; a row for each kind of them."""
    if not study.families:
        return None
    rows = [row for family in study.families for row in study.of(family)]
    own = ("iwae", "predictive")
    figures = ["bound", *(name for name in own if any(getattr(row, name) for row in rows if row.thoughts))]
    figure, axes = panels(10.5, 3.6 * len(figures) + 0.6, len(figures), 2, sharex="col", sharey=True)
    for index, name in enumerate(figures):
        for place, cost in zip(axes[2 * index :], ("training_operations", "write_token_operations"), strict=False):
            _frontiers(place, study, cost, name)
        axes[2 * index].set_ylabel(f"{KINDS[name]}, nats a token")
    for place, label in zip(axes[-2:], ("operations of training", "operations a written token"), strict=True):
        place.set_xlabel(label)
    legend(axes[0])
    return figure


def _frontiers(place: Any, study: Study, cost: str, figure: str) -> None:
    """Cells of each family by one cost and one figure, and the line of those that no other undercuts."""
    for family in study.families:
        style = STYLES[family]
        known = [(getattr(row, cost), level) for row in study.of(family) if (level := row.level(figure))]
        if not known:
            continue
        points = [(x, level.nats_per_token) for x, level in known]
        errors = [level.stderr or 0.0 for _, level in known]
        x, y = zip(*points, strict=True)
        place.errorbar(x, y, errors, linestyle="none", alpha=0.6, markersize=4, elinewidth=0.6, **style)
        line = {"color": style["color"], "linestyle": LINES[family], "marker": style["marker"], "markersize": 4}
        place.plot(*zip(*frontier(points), strict=True), label=NAMES[family], **line)
    place.set_xscale("log")
    place.xaxis.set_minor_formatter(NullFormatter())


def plot_protocol(study: Study) -> Figure | None:
    """The honest figures and the reference protocol's along each factor that cells scored by both have values of."""
    rows = [row for row in study.of("ltm") if row.reference]
    along = {name: one for name, one in ALONG.items() if len({getattr(row, name) for row in rows}) > 1}
    if not along:
        return None
    figure, axes = panels(4.2 * len(along) + 0.6, 4.0, 1, len(along), sharey=True)
    for place, (name, (keys, label)) in zip(axes, along.items(), strict=True):
        for kind, style in FIGURE_STYLES.items():
            groups: dict[str, list[Point]] = defaultdict(list)
            for row, nats in averaged(rows, functools.partial(_of, kind)).values():
                groups[beside(row, keys)].append((getattr(row, name), nats))
            for points in groups.values():
                place.plot(*zip(*sorted(points), strict=True), linewidth=0.9, **style)
            if groups:
                place.plot([], [], label=KINDS[kind], **style)
        place.set_xscale("log")
        values = sorted({getattr(row, name) for row in rows})
        place.set_xticks(values, [f"{value:,}" for value in values])
        place.xaxis.set_minor_locator(NullLocator())
        place.set_xlabel(label)
    axes[0].set_ylabel(NATS)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def plot_trade(study: Study) -> Figure | None:
    """Lines of equal nats over parameters and fast steps; a panel for each of what else differs."""
    groups: dict[str, list[tuple[Row, float]]] = defaultdict(list)
    for row, nats in averaged(study.of("ltm"), _nats).values():
        groups[beside(row, SIZE)].append((row, nats))
    groups = {name: cells for name, cells in groups.items() if _spans(cells)}
    if not groups:
        return None
    count = min(len(groups), MOST_PANELS)
    figure, axes = panels(4.6 * min(count, 3) + 0.6, 4.0 * -(-count // 3), -(-count // 3), min(count, 3))
    for place in axes[count:]:
        place.set_visible(False)
    for place, (name, cells) in zip(axes, sorted(groups.items()), strict=False):
        size = np.log2([row.parameters for row, _ in cells])
        steps = np.log2([row.fast_steps for row, _ in cells])
        levels = np.array([nats for _, nats in cells])
        # One triangulation for axes of unlike spread.
        lines = place.tricontour(_unit(steps), _unit(size), levels, levels=8, cmap="viridis")
        place.clabel(lines, fontsize=7, fmt="%.3f")
        place.scatter(_unit(steps), _unit(size), c=levels, clip_on=False, cmap="viridis", s=22, zorder=3)
        _ticks(place.xaxis, steps, "d")
        _ticks(place.yaxis, size, ",d")
        place.set_xlabel("fast steps")
        place.set_ylabel("parameters")
        if name:
            place.set_title(legible(name, 40), fontsize=9)
    return figure


def plot_thoughts(study: Study) -> Figure | None:
    """Rate and active dimensions against the number of thoughts."""
    rows = study.of("ltm")
    if len({row.thoughts for row in rows}) < 2:
        return None
    figure, axes = panels(9.5, 3.8, 1, 2)
    steps = sorted({row.fast_steps for row in rows})
    shown: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
        ("rate, nats a sequence", lambda row: row.rate),
        ("active latent dimensions", lambda row: row.active),
    )
    for place, (label, value) in zip(axes, shown, strict=True):
        for index, count in enumerate(steps):
            groups: dict[str, list[Point]] = defaultdict(list)
            for row, one in averaged([row for row in rows if row.fast_steps == count], value).values():
                groups[beside(row, ("model.thoughts",))].append((row.thoughts, one))
            for points in groups.values():
                x, y = zip(*sorted(points), strict=True)
                place.plot(x, y, "o-", color=_shade(index, len(steps)), linewidth=0.8, markersize=4)
            place.plot([], [], "o-", color=_shade(index, len(steps)), label=f"{count}")
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        place.set_xlabel("thoughts N")
        place.set_ylabel(label)
    legend(axes[0], title="fast steps")
    return figure


def plot_laws(study: Study) -> Figure | None:
    """Each law against the cells that it was fitted to."""
    fitted = [law for law in study.laws if "why" not in law]
    if not fitted:
        return None
    figure, (axes,) = panels(5.2, 4.6)
    of = [law["family"] for law in fitted]
    for index, law in enumerate(fitted):
        said = [(predicted_by(law, row), _nats(row)) for row in study.of(law["family"])]
        known = [pair for pair in said if pair[0] is not None]
        label = ", ".join(filter(None, (NAMES[law["family"]], law["where"])))
        style = dict(STYLES[law["family"]])
        if of.count(law["family"]) > 1:
            style["marker"] = MARKERS[of[:index].count(law["family"]) % len(MARKERS)]
        axes.plot(*zip(*known, strict=True), linestyle="none", label=label, alpha=0.7, **style)
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel("the law, nats a token")
    axes.set_ylabel("measured")
    legend(axes)
    return figure


def plot_epochs(study: Study) -> Figure | None:
    """Validation against epochs, where any cell reads its text more than once."""
    return _curves(study, lambda row: row.epochs > 1, lambda row: row.corpus_tokens, "epochs of the training text")


def _curves(study: Study, shows: Callable[[Row], bool], unit: Callable[[Row], float], label: str) -> Figure | None:
    """Validations of cells against tokens in units of `unit`; None where there are none of a cell that `shows`.

    A panel for each shape, that is for the values of all that rivals look at, too. In it a line is the mean of the
    seeds of one setting: colours tell fast steps apart, marks thoughts, broken lines rivals.
    """
    rows = [row for family in study.families for row in study.of(family) if len(_curve(row)) > 1 and unit(row)]
    if not any(map(shows, rows)):
        return None
    shapes: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.body, row.parameters)):
        shapes[_shape(row)].append(row)
    count = min(len(shapes), MOST_PANELS)
    chosen = [list(shapes)[index] for index in np.linspace(0, len(shapes) - 1, count).round().astype(int)]
    wide = 2 if count == 4 else min(count, 3)
    figure, axes = panels(4.2 * wide + 1.2, 4.0 * -(-count // wide), -(-count // wide), wide, sharex=True, sharey=True)
    for place in axes[count:]:
        place.set_visible(False)
    steps, thoughts = (sorted({getattr(row, name) for row in rows if row.family == "ltm"}) for name in MARKED)
    for place, name in zip(axes, chosen, strict=False):
        for setting in _by_setting(shapes[name]):
            points = _mean_curve(setting)
            scaled = [tokens / unit(setting[0]) for tokens, _ in points]
            place.plot(scaled, [nats for _, nats in points], **_style(setting[0], steps, thoughts))
        if name:
            place.set_title(legible(name, 40), fontsize=9)
        place.set_xscale("log")
        place.tick_params(labelbottom=True)  # with an empty place below it, too
        place.set_xlabel(label)
    _explain(axes[0], steps, thoughts, [family for family in study.families if family != "ltm"])
    legend(axes[0], loc="upper right")
    axes[0].set_ylabel(NATS)
    return figure


def plot_figures(study: Study) -> Figure | None:
    """Every figure of the latent-thought cells, in the order of their bounds."""
    rows = sorted(study.of("ltm"), key=_nats)
    if not rows:
        return None
    figure, (axes,) = panels(8.0, 4.2)
    for name, style in FIGURE_STYLES.items():
        points = [(at, nats) for at, row in enumerate(rows) if (nats := _of(name, row)) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=KINDS[name], **{**style, "linestyle": "none"})
    if floors := {row.floor.nats_per_token for row in rows if row.floor}:
        axes.axhline(min(floors), color="black", linestyle=":", linewidth=1, label="entropy of the text")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("latent-thought cells, by their bound")
    axes.set_ylabel(NATS)
    legend(axes)
    return figure


def _nats(row: Row) -> float:
    assert row.bound is not None
    return row.bound.nats_per_token


def _of(figure: str, row: Row) -> float | None:
    """A figure of a cell, or the reference protocol's."""
    level: Level | None = row.reference if figure == "reference" else row.level(figure)
    return level.nats_per_token if level else None


def _curve(row: Row) -> list[tuple[float, float]]:
    """Tokens and nats of the validations, but for that of the first weights."""
    return [(look.tokens, look.nats_per_token) for look in row.curve if look.tokens and look.nats_per_token is not None]


def _style(row: Row, steps: Sequence[int], thoughts: Sequence[int]) -> dict[str, Any]:
    """How the curve of a cell is drawn, where cells have so many `steps` and `thoughts`."""
    style = {"linestyle": LINES[row.family], "markersize": 4}
    if row.family != "ltm":
        return {**style, "color": STYLES[row.family]["color"], "linewidth": 1.0}
    mark = MARKERS[thoughts.index(row.thoughts) % len(MARKERS)] if len(thoughts) > 1 else ""
    return {**style, "color": _shade(steps.index(row.fast_steps), len(steps)), "linewidth": 1.6, "marker": mark}


def _explain(place: Any, steps: Sequence[int], thoughts: Sequence[int], rivals: Sequence[str]) -> None:
    """Entries of the legend of curves drawn by `_style`."""
    for index, value in enumerate(steps):
        place.plot([], [], color=_shade(index, len(steps)), label=f"fast steps: {value}")
    for index, value in enumerate(thoughts if len(thoughts) > 1 else ()):
        mark = MARKERS[index % len(MARKERS)]
        place.plot([], [], color="0.4", linestyle="none", marker=mark, markersize=4, label=f"thoughts: {value}")
    for family in rivals:
        place.plot([], [], color=STYLES[family]["color"], linestyle=LINES[family], label=NAMES[family])


def _by_setting(rows: Sequence[Row]) -> list[list[Row]]:
    """Cells that differ in their seed alone, together."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.settings].append(row)
    return list(groups.values())


def _mean_curve(rows: Sequence[Row]) -> list[Point]:
    """Mean over seeds of the curves of one setting, where all have a validation."""
    levels: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        for tokens, nats in _curve(row):
            levels[tokens].append(nats)
    return [(tokens, sum(some) / len(some)) for tokens, some in levels.items() if len(some) == len(rows)]


def _shape(row: Row) -> str:
    """Values on the axes that a cell and its rivals have in common, in words, but for how long each was trained."""
    own = {key: value for key, value in row.axes.items() if reads("twin", key) and key != "slow.steps"}
    return ", ".join(f"{key} {value}" for key, value in sorted(own.items()))


def _spans(cells: Sequence[tuple[Row, float]]) -> bool:
    """Whether cells fill an area of sizes and fast steps, each twice at the least."""
    places = {(row.parameters, row.fast_steps) for row, _ in cells if row.fast_steps}
    sizes, steps = ({place[index] for place in places} for index in (0, 1))
    return len(places) == len(cells) >= 4 and len(sizes) > 1 and len(steps) > 1


def _unit(values: Any) -> Any:
    """Between 0 and 1."""
    return (values - values.min()) / (values.max() - values.min())


def _ticks(axis: Any, logs: Any, form: str) -> None:
    """The values themselves at their places in `_unit`."""
    places = np.unique(logs)
    axis.set_ticks(
        list((places - logs.min()) / (logs.max() - logs.min())), [f"{round(2**one):{form}}" for one in places]
    )


def _shade(index: int, count: int) -> Any:
    return colormaps["viridis"](0.9 * index / max(count - 1, 1))


__all__ = ["NAMES", "draw"]
