"""The picture of README and docs/results.md, which `python -m benchmarks.protocols --table FILE` draws."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages import ROOT

RESULTS = ROOT / "docs" / "pictures" / "results.png"
TEXTS = {
    "worlds-longer": "worlds, 240 sentences",
    "worlds": "worlds, 15 sentences",
    "tinyshakespeare-longer": "tinyshakespeare",
    "wikitext-2-longer": "WikiText-2",
}
KINDS = {"importance-weighted": "importance-weighted bound", "bound": "ELBO", "prefix": "predictive"}
WORLDS = "worlds-longer"


def plotted(found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that the picture shows, to five digits: gaps to the twin with their errors, and a world's curves."""
    gaps = {
        name: [
            {kind: [_rounded(gap[key]) for key in ("nats_per_token", "stderr")] for kind, gap in _of_kinds(row)}
            for row in found[text]["rows"]
        ]
        for text, name in TEXTS.items()
        if _errors_are_known(found[text])
    }
    rows = found[WORLDS]["rows"]
    curves = [
        [[point["particles"], _rounded(point["nats_per_token"])] for point in row["bound"]["iwae_curve"]]
        for row in rows
    ]
    floor = rows[0]["floor"]
    lines = {
        "twin": _rounded(rows[0]["twin"]["nats_per_token"]),
        f"best predictor with {floor['window']} tokens in sight": _rounded(floor["windowed"]["nats_per_token"]),
        "floor: the text's entropy": _rounded(floor["nats_per_token"]),
    }
    return {"below the twin": gaps, "curves": curves, "lines": lines}


def digest(shown: Mapping[str, Any]) -> str:
    """Of what a picture shows; the picture carries it as its description."""
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def draw(found: Mapping[str, Any], path: Path = RESULTS) -> None:
    """How far below their twins models are, and how far down to the floor the bound of a world comes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = plotted(found)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    _draw_gaps(left, shown["below the twin"])
    for seed, curve in enumerate(shown["curves"]):
        right.plot(*zip(*curve, strict=True), "o-", ms=3, lw=1, color=f"C{seed}", label=f"bound, seed {seed}")
    for (name, level), style in zip(shown["lines"].items(), ("--", ":", "-"), strict=True):
        right.axhline(level, color="black", lw=1, ls=style)
        right.text(1, level + 0.002, name, fontsize=8)
    right.set_xscale("log", base=2)
    right.set_xlabel("draws K of the bound (1: the ELBO)", fontsize=9)
    right.set_title("worlds of 240 sentences: nats a token, at most", fontsize=10)
    right.legend(fontsize=8, frameon=False, loc=(0.68, 0.35))
    figure.savefig(path, dpi=90, metadata={"Description": digest(shown)})
    pyplot.close(figure)


def _draw_gaps(panel: Any, gaps: Mapping[str, Any]) -> None:
    for place, seeds in enumerate(gaps.values()):
        for seed, kinds in enumerate(seeds):
            for color, (kind, (gap, error)) in enumerate(kinds.items()):
                height = -place + 0.24 - 0.2 * color - 0.05 * seed
                label = KINDS[kind] if place == seed == 0 else None
                panel.errorbar(gap, height, xerr=error, fmt="o", ms=4, lw=1, color=f"C{color + 2}", label=label)
    panel.axvline(0, color="black", lw=1)
    panel.set_yticks([-place for place in range(len(gaps))], list(gaps))
    panel.set_xlabel("nats a token, ± one standard error; a point a seed", fontsize=9)
    panel.set_title("below the twin, after equally many tokens", fontsize=10)
    panel.legend(fontsize=8, frameon=False, loc="upper left")


def _of_kinds(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(kind, row["below_twin"][kind]) for kind in KINDS if kind in row["below_twin"]]


def _errors_are_known(found: Mapping[str, Any]) -> bool:
    """False for a text whose errors take neighbours in it as independent."""
    return all("floor" in row or "blocks" in row["below_twin"]["bound"] for row in found["rows"])


def _rounded(value: float) -> float:
    return round(float(value), 5)
