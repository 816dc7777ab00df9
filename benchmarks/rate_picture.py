"""The picture of docs/rate.md, which `python -m benchmarks.representations --table FOLDER` draws: what a rate buys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.claim_picture import digest
from benchmarks.pages import ROOT
from benchmarks.representations_tables import dial, mean

RATE = ROOT / "docs" / "pictures" / "rate.png"
NATS = {"bound": "bound: distortion and rate", "distortion": "distortion: given the thoughts"}
SHARES = {
    "probe": "kind, by a linear probe",
    "neighbours": "kind, by the 10 nearest neighbours",
    "again": "tokens written again",
    "by_chance": "the same, from another text's thoughts",
    "midpoint": "tokens of both texts, from between their thoughts",
}


def plotted(found: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """The numbers that the picture shows, to four digits: by figure [rate, value], means over seeds."""
    shown: dict[str, list[list[float]]] = {}
    for name in (*NATS, "twin", *SHARES):
        points = [[mean(each, "rate"), mean(each, name)] for each in dial(found).values()]
        shown[name] = [[round(value, 4) for value in point] for point in points if not math.isnan(point[1])]
    return shown


def draw(found: Mapping[str, Any], path: Path = RATE) -> None:
    """Left: nats a token against the rate, beside the twin. Right: what is read off thoughts, and written from them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = plotted(found)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for color, (name, label) in enumerate(NATS.items()):
        left.plot(*zip(*shown[name], strict=True), "o-", ms=4, lw=1, color=f"C{color}", label=label)
    left.plot(*zip(*shown["twin"], strict=True), "k--", lw=1, label="twin, which has no thoughts")
    left.set_ylabel("nats a token", fontsize=9)
    for color, (name, label) in enumerate(SHARES.items()):
        if shown[name]:
            style = "--" if name == "by_chance" else "o-"
            right.plot(*zip(*shown[name], strict=True), style, ms=4, lw=1, color=f"C{color + 2}", label=label)
    right.set_ylim(0, 1)
    right.set_ylabel("share", fontsize=9)
    for panel in (left, right):
        panel.set_xlabel("rate, nats a text", fontsize=9)
        panel.legend(fontsize=7, frameon=False, loc="center right" if panel is right else "upper left")
    figure.savefig(path, dpi=90, metadata={"Description": digest(shown)})
    pyplot.close(figure)
