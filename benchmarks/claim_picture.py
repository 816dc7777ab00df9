"""The picture of benchmarks/notes/claim.md, which `python -m benchmarks.claim --table FOLDER` draws."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.claim_tables import KINDS, cells
from benchmarks.pages import ROOT

SEEDS = 3
"""Of a text and window with fewer, the picture shows nothing."""
CLAIM = ROOT / "docs" / "pictures" / "claim.png"


def plotted(found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that the picture shows, to five digits: by comparison, text and figure, the gap and its error."""
    shown: dict[str, Any] = {"equal tokens": {}, "equal compute": {}}
    for cell in cells(found):
        if len(cell.seeds("ltm", "twin")) < SEEDS:
            continue
        text, window = cell.label
        for name, twin in (("equal tokens", "twin"), ("equal compute", cell.equal_compute)):
            gaps = {kind: cell.below(twin, kind) for kind in KINDS}
            found_gaps = {kind: [gap[0].nats_per_token, gap[0].stderr] for kind, gap in gaps.items() if gap}
            if found_gaps:
                one = {kind: [round(value, 5) for value in pair] for kind, pair in found_gaps.items()}
                shown[name][f"{text}, window {window}"] = one
    return shown


def digest(shown: Mapping[str, Any]) -> str:
    """Of what a picture shows; the picture carries it as its description."""
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def draw(found: Mapping[str, Any], path: Path = CLAIM) -> None:
    """How far below their twins the models are: a panel for equal tokens, one for equal compute."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = plotted(found)
    names = list(shown["equal tokens"])
    height = 1.4 + 0.32 * len(names)
    figure, panels = pyplot.subplots(1, 2, figsize=(10, height), layout="constrained", sharex=True, sharey=True)
    for panel, (name, gaps) in zip(panels, shown.items(), strict=True):
        for text, kinds in gaps.items():
            for color, (kind, (gap, error)) in enumerate(kinds.items()):
                place = -names.index(text) + 0.22 - 0.22 * color
                label = KINDS[kind] if text == names[0] else None
                panel.errorbar(gap, place, xerr=error, fmt="o", ms=4, lw=1, color=f"C{color + 2}", label=label)
        panel.axvline(0, color="black", lw=1)
        panel.set_yticks([-place for place in range(len(names))], names, fontsize=8)
        panel.set_title(f"below the twin, {name}", fontsize=10)
        panel.set_xlabel("nats a token, ± one standard error; left of 0 the twin is ahead", fontsize=8)
    panels[0].legend(fontsize=8, frameon=False, loc="best")
    figure.savefig(path, dpi=90, metadata={"Description": digest(shown)})
    pyplot.close(figure)
