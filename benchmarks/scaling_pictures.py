"""The pictures of docs/scaling.md, drawn from benchmarks/scaling-DATE.json alone.

python -m benchmarks.scaling --pictures
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.claim_picture import digest
from benchmarks.pages import ROOT
from benchmarks.scaling_tables import ltms

OPERATIONS = ROOT / "docs" / "pictures" / "scaling-operations.png"
SIZES = ROOT / "docs" / "pictures" / "scaling-sizes.png"

FAMILIES = {"ltm": "latent thoughts", "twin": "twin", "masked-diffusion": "masked diffusion"}

Places = dict[str, dict[str, list[list[float]]]]
"""Places, each an x and nats a token, of each line of each panel."""


def by_operations(found: Mapping[str, Any]) -> Places:
    """Of each study and family: operations of training and nats a token of each cell, the cheapest first."""
    shown: Places = {}
    for study, one in found.items():
        for family, label in FAMILIES.items():
            cells = [cell for cell in one["cells"] if cell["family"] == family and cell["bound"]]
            places = sorted([cell["training_operations"], cell["bound"]["nats_per_token"]] for cell in cells)
            if places:
                shown.setdefault(study, {})[label] = places
    return shown


def by_size(found: Mapping[str, Any]) -> Places:
    """Of each study and number of fast steps: parameters and nats a token, the mean over seeds.

    Beside them the twins that read the same tokens.
    """
    shown: Places = {}
    for study, one in found.items():
        lines: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        middle = ltms(one["cells"], {"thoughts": 8, "layers": 2})
        for cell in sorted(middle, key=lambda cell: cell["fast_steps"]):
            steps = cell["fast_steps"]
            lines[f"{steps} fast step{'s' if steps > 1 else ''}"][cell["parameters"]].append(
                cell["bound"]["nats_per_token"]
            )
        slow_steps = {cell["steps"] for cell in middle}
        for cell in one["cells"]:
            if cell["family"] == "twin" and cell["layers"] == 2 and cell["steps"] in slow_steps and cell["bound"]:
                lines["twin, equal tokens"][cell["parameters"]].append(cell["bound"]["nats_per_token"])
        shown[study] = {
            label: [[size, statistics.fmean(levels)] for size, levels in sorted(sizes.items())]
            for label, sizes in lines.items()
        }
    return shown


def frontier(places: list[list[float]]) -> list[list[float]]:
    """Of places in order of x, those with fewer nats than all before."""
    best: list[list[float]] = []
    for place in places:
        if not best or place[1] < best[-1][1]:
            best.append(place)
    return best


def draw(found: Mapping[str, Any], operations: Path = OPERATIONS, sizes: Path = SIZES) -> None:
    """Both pictures."""
    _draw(by_operations(found), "operations of training", operations, frontiers=True)
    _draw(by_size(found), "parameters", sizes, frontiers=False)


def _order(label: str) -> tuple[int, str]:
    """Numbers by size, then words."""
    first = label.split()[0]
    return (int(first), "") if first.isdecimal() else (0, label)


def _draw(shown: Places, axis: str, path: Path, *, frontiers: bool) -> None:
    """A panel for each study; the picture carries the digest of its numbers as its description."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = sorted({label for lines in shown.values() for label in lines if not label.startswith("twin")}, key=_order)
    figure, panels = pyplot.subplots(1, len(shown), figsize=(10, 3.6), layout="constrained", squeeze=False)
    for panel, (study, lines) in zip(panels[0], shown.items(), strict=True):
        for label, places in lines.items():
            # Of one shape and color in every panel; hollow, since some lie on one another.
            kind = labels.index(label) if label in labels else None
            color, marker = ("black", "x") if kind is None else (f"C{kind}", "osD^v<>"[kind % 7])
            style: dict[str, Any] = {"marker": marker, "mfc": "none", "ms": 6, "lw": 1, "color": color, "label": label}
            panel.plot(*zip(*places, strict=True), ls="" if frontiers else "-", **style)
            if frontiers:
                panel.step(*zip(*frontier(places), strict=True), where="post", lw=1, color=color)
        text, _, window = study.rpartition("-w")
        panel.set_xscale("log")
        panel.set_title(f"{text}, window {window}", fontsize=10)
        panel.set_xlabel(axis, fontsize=8)
        panel.tick_params(which="both", labelsize=8)
    panels[0][0].set_ylabel("nats a token, at most", fontsize=8)
    if any(shown.values()):  # of few cells there may be nothing to show
        panels[0][0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=90, metadata={"Description": digest(shown)})
    pyplot.close(figure)
