"""Tables of what `python -m benchmarks.scaling` measured, by the name that marks each in a page.

A level is the mean over the seeds of a setting; behind it, in brackets, the smallest and the largest of them where
there are several. How far a cell lies below a rival is paired by sequence, with its standard error, for each seed; both
are averaged likewise, and the smallest and the largest distance stand behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.pages import table

Found = Mapping[str, Any]
RIVALS = {"twin": "twin", "masked-diffusion": "masked diffusion"}
EQUAL = {"tokens": "equal tokens", "flops": "equal operations"}
WRITTEN = {"writing": "no more operations a written token"}


def tables(found: Found) -> dict[str, str]:
    """All tables."""
    return {
        "scaling steps": _by(found, "fast_steps", "fast steps", {"thoughts": 8, "dim": 64, "layers": 2}),
        "scaling thoughts": _by(found, "thoughts", "thoughts", {"fast_steps": 16, "dim": 64, "layers": 2}),
        "scaling size": _sizes(found),
        "scaling laws": _laws(found),
        "scaling cells": _cells(found),
        "scaling gaps": _gaps(found),
    }


def label(study: str) -> list[Any]:
    """The first columns: text and window."""
    text, _, window = study.rpartition("-w")
    return [text, window]


def ltms(cells: Iterable[Any], same: Mapping[str, Any]) -> list[Any]:
    """Latent-thought cells with figures and these values."""
    fitting = (cell for cell in cells if cell["family"] == "ltm" and cell["bound"])
    return [cell for cell in fitting if all(cell[key] == value for key, value in same.items())]


def _by(found: Found, key: str, name: str, same: Mapping[str, Any]) -> str:
    """Cells by one factor, all else as in the middle; the notes have the other rival, too."""
    gaps = [f"below the twin, {words}" for words in EQUAL.values()]
    columns = ["study", name, "seeds", "at most, nats a token", "rate", *gaps]
    columns += ["a written token, of the twin's operations"]
    lines = []
    for study, one in found.items():
        groups = _grouped(ltms(one["cells"], same), lambda cell: cell[key])
        for value, cells in sorted(groups.items()):
            names = {cell["name"] for cell in cells}
            level = _spread([cell["bound"]["nats_per_token"] for cell in cells])
            theirs = [_gap(one["gaps"], names, "twin", equal) for equal in EQUAL]
            written = _share_of_twin(one, cells[0])
            rate = f"{mean(cell['rate'] for cell in cells):.1f}"
            lines.append([study, value, len(cells), level, rate, *theirs, written])
    return table(columns, lines)


def _sizes(found: Found) -> str:
    """Parameters against fast steps: where a row's nats are met by a smaller size further right."""
    steps = sorted({cell["fast_steps"] for one in found.values() for cell in ltms(one["cells"], {})})
    columns = ["text", "window", "parameters", *(f"{count} fast steps" for count in steps), "twin, equal tokens"]
    lines = []
    for study, one in found.items():
        sizes = _grouped(ltms(one["cells"], {"thoughts": 8, "layers": 2}), lambda cell: cell["dim"])
        for dim, cells in sorted(sizes.items()):
            levels = []
            for count in steps:
                some = [cell["bound"]["nats_per_token"] for cell in cells if cell["fast_steps"] == count]
                levels.append(_spread(some) if some else "")
            twins = [
                cell["bound"]["nats_per_token"]
                for cell in one["cells"]
                if (cell["family"], cell["dim"], cell["layers"]) == ("twin", dim, 2)
                and cell["steps"] == cells[0]["steps"]
                and cell["bound"]
            ]
            lines.append([*label(study), f"{cells[0]['parameters']:,}", *levels, _spread(twins) if twins else ""])
    return table(columns, lines)


def _laws(found: Found) -> str:
    columns = [
        "text",
        "window",
        "family",
        "E",
        "exponents, with 95% intervals",
        "misses",
        "misses the largest, left out",
        "remarks",
    ]
    lines = []
    for study, one in found.items():
        for law in one["laws"]:
            family = RIVALS.get(law["family"], "latent thoughts")
            if "why" in law:
                if len(law["of"]) > 1:
                    lines.append([*label(study), family, f"none: {law['why']}", "", "", "", ""])
                continue
            powers = (
                _within(f"{key} {law['exponents'][key]:.2f}", law["exponent_intervals"][key])
                for key in law["exponents"]
            )
            floor = _within(f"{law['floor']:.2f}", law["floor_interval"])
            held_out = "" if law["held_out"] is None else f"{law['held_out']:.3f}"
            misses = [f"{law['error']:.3f}", held_out]
            lines.append([*label(study), family, floor, ", ".join(powers), *misses, "; ".join(law["remarks"])])
    return table(columns, lines)


def _cells(found: Found) -> str:
    columns = ["text", "window", "cell", "steps", "parameters", "TFLOP", "s", "nats a token", "±"]
    columns += ["importance-weighted", "rate", "active"]
    lines = []
    for study, one in found.items():
        for cell in one["cells"]:
            if cell["bound"]:
                level = [f"{cell['bound']['nats_per_token']:.4f}", f"{cell['bound']['stderr'] or 0:.4f}"]
                cost = [f"{cell['training_operations'] / 1e12:.2f}", f"{cell['seconds']:.0f}"]
                size = [cell["steps"], f"{cell['parameters']:,}"]
                rate = f"{cell['rate']:.1f}"
                weighted = f"{cell['iwae']['nats_per_token']:.4f}" if cell["family"] == "ltm" else ""
                used = f"{cell['active']} of {cell['latent']}" if cell["family"] == "ltm" else ""
                lines.append([*label(study), plain(cell["name"]), *size, *cost, *level, weighted, rate, used])
    return table(columns, lines)


def _gaps(found: Found) -> str:
    """How far each cell lies below each of its rivals."""
    lines = []
    for study, one in found.items():
        for gap in one["gaps"]:
            names = [plain(gap["cell"]), plain(gap["rival"]), (EQUAL | WRITTEN)[gap["equal"]]]
            lines.append([*label(study), *names, f"{gap['below']:+.4f} ± {gap['stderr']:.4f}"])
    return table(["text", "window", "cell", "rival", "at", "below it"], lines)


def plain(name: str) -> str:
    """A cell's name, for a table."""
    return name.replace("--", " ").replace("masked-diffusion", "diffusion")


def _gap(found: Iterable[Any], names: set[str], rival: str, equal: str) -> str:
    """How far these cells lie below a rival: the mean over seeds, with the mean of their errors."""
    some = [gap for gap in found if gap["cell"] in names and gap["equal"] == equal]
    some = [gap for gap in some if gap["rival"].startswith(f"{rival}--")]
    if not some:
        return ""
    each = [gap["below"] for gap in some]
    whole = f"{mean(each):+.4f} ± {mean(gap['stderr'] for gap in some):.4f}"
    return whole if len(each) < 2 else f"{whole} ({min(each):+.4f} to {max(each):+.4f})"


def _share_of_twin(one: Any, cell: Any) -> str:
    """Operations of a written token, of those of the twin of equal tokens."""
    by_name = {other["name"]: other for other in one["cells"]}
    for gap in one["gaps"]:
        if gap["cell"] == cell["name"] and gap["rival"].startswith("twin--") and gap["equal"] in EQUAL:
            return f"{cell['write_token_operations'] / by_name[gap['rival']]['write_token_operations']:.1f}"
    return ""


def _grouped(cells: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for cell in cells:
        groups[key(cell)].append(cell)
    return groups


def _within(level: str, interval: Sequence[float]) -> str:
    return f"{level} ({interval[0]:.2f} to {interval[1]:.2f})"


def _spread(values: list[float]) -> str:
    whole = f"{mean(values):.4f}"
    return whole if len(values) < 2 else f"{whole} ({min(values):.4f} to {max(values):.4f})"
