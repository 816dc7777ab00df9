"""Pictures of texts as points in the space of thoughts: ways between them, neighbours, steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_ltm.reports.plots import COLORS, legend, legible, panels
from pyro_ltm.thoughts.points import Points
from pyro_ltm.thoughts.probes import principal_components
from pyro_ltm.thoughts.steering import Steered

DISTORTION = "distortion, nats a token"


def plot_way(found: Points) -> Figure:
    """Distortion of both ends' texts along the way from the first to the second."""
    figure, (axes,) = panels(6.0, 3.6)
    shares = [float(point.name) for point in found.points]
    for color, end in enumerate(found.ends):
        nats = [point.nats_per_token[end.name] for point in found.points]
        label = f"{end.name}: {legible(end.text)}"
        axes.plot(shares, nats, color=COLORS[color], marker="o", markersize=4, label=label)
    axes.set_xlabel("share of the way from A's thoughts to B's")
    axes.set_ylabel(DISTORTION)
    legend(axes)
    return figure


def plot_points(found: Points) -> Figure:
    """Distortion of each end's text under each point's thoughts."""
    figure, (axes,) = panels(max(5.0, 1.6 * len(found.points)), 3.6)
    width = 0.8 / len(found.ends)
    heights = [nats for point in found.points for nats in point.nats_per_token.values()]
    for color, end in enumerate(found.ends):
        places = [place + (color - (len(found.ends) - 1) / 2) * width for place in range(len(found.points))]
        nats = [point.nats_per_token[end.name] for point in found.points]
        axes.bar(places, nats, width, color=COLORS[color % len(COLORS)], label=f"{end.name}: {legible(end.text)}")
    spread = max(heights) - min(heights)
    axes.set_ylim(max(0.0, min(heights) - 0.5 * spread - 0.01), max(heights) + 0.15 * spread + 0.01)
    axes.set_xticks(range(len(found.points)), [legible(point.name) for point in found.points])
    axes.set_xlabel("thoughts")
    axes.set_ylabel(f"{DISTORTION} (axis cut)")
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def plot_places(
    named: Mapping[str, Tensor], among: Tensor | None = None, near: Sequence[int] = (), labels: Sequence[str] = ()
) -> Figure:
    """Named thoughts [P] on the principal axes of all, with the rows of `among` [R, P]; those `near` bear their rank.

    Args:
        labels: of the rows that are near, in their order.
    """
    own = torch.stack([one.flatten() for one in named.values()])
    points, shares = principal_components(own if among is None else torch.cat([own, among.flatten(1)]))
    figure, (axes,) = panels(6.4, 4.6)
    rows = points[len(named) :]
    if len(rows):
        nearest = rows[list(near)]
        axes.scatter(rows[:, 0], rows[:, 1], s=8, color="0.75", label="documents")
        axes.scatter(nearest[:, 0], nearest[:, 1], s=20, color=COLORS[0], label="the nearest")
    for rank, row in enumerate(near, 1):
        label = legible(labels[rank - 1], 16) if labels and labels[rank - 1] else ""
        x, y = rows[row].tolist()
        axes.annotate(f"{rank} {label}".strip(), (x, y), xytext=(3, 3), textcoords="offset points", size=7)
    for name, (x, y) in zip(named, points.tolist(), strict=False):
        axes.scatter(x, y, s=60, marker="*", color=COLORS[1], zorder=3)
        axes.annotate(legible(name), (x, y), xytext=(5, -9), textcoords="offset points", size=8, color=COLORS[1])
    for axis, share, which in zip((axes.xaxis, axes.yaxis), shares.tolist(), ("first", "second"), strict=False):
        axis.set_label_text(f"{which} principal axis ({share:.0%} of the variance)")
    if len(rows):
        legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def plot_steering(found: Steered) -> Figure:
    """The classifier's probability of the label by strength; and the distortion of the text, where there is one."""
    ends = found.points.ends
    figure, axes = panels(4.4 * (1 + bool(ends)), 3.4, columns=1 + bool(ends))
    axes[0].plot(found.strengths, found.probabilities, color=COLORS[0], marker="o", markersize=4)
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].set_ylabel(f"probability of {legible(found.direction.towards)}")
    for one, end in zip(axes[1:], ends, strict=True):
        nats = [point.nats_per_token[end.name] for point in found.points.points]
        one.plot(found.strengths, nats, color=COLORS[1], marker="o", markersize=4)
        one.set_ylabel(f"{DISTORTION}, of the text")
    for one in axes:
        one.set_xlabel("strength, standard deviations of the texts")
    return figure
