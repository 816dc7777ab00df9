"""How the cost of a fit grows with each size of the problem, beside what its operations say.

    python -m benchmarks --only growth --out FOLDER

One size is varied at a time around a small decoder; the points of an axis run in turn. The prediction counts the matrix
products of the fast steps (`roofline`) and does them all at one rate, the median over all points of all axes: it has
nothing of an axis of its own, and can be wrong on each.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.interleave import interleaved, summary
from benchmarks.roofline import fast_step_products
from pyro_ltm.config import Config, ModelConfig
from pyro_ltm.inference import build
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.types import Batch

BASE = {"length": 512, "fast_steps": 4, "thoughts": 8, "sequences": 4, "vocabulary": 2048, "window": 64}
AXES: dict[str, list[int]] = {
    "length": [256, 512, 1024, 2048, 4096],
    "fast_steps": [1, 2, 4, 8, 16],
    "thoughts": [2, 8, 32, 128, 256],
    "sequences": [1, 2, 4, 8, 16],
    "vocabulary": [512, 2048, 8192, 32768],
    "window": [16, 32, 64, 128, 256],
}
LABELS = {
    "length": "tokens in a sequence T",
    "fast_steps": "fast steps",
    "thoughts": "thoughts N",
    "sequences": "sequences B",
    "vocabulary": "vocabulary V",
    "window": "window W",
}


def _model(point: dict[str, int]) -> ModelConfig:
    return ModelConfig(
        vocab_size=point["vocabulary"],
        dim=128,
        layers=2,
        heads=4,
        thoughts=point["thoughts"],
        max_length=point["length"],
        window=point["window"],
    )


def _work(point: dict[str, int]) -> Any:
    """The fit at a point."""
    model, loop = build(Config(model=_model(point)))
    loop = loop.with_steps(point["fast_steps"])
    tokens = torch.randint(point["vocabulary"], (point["sequences"], point["length"] + 1))
    batch = Batch.from_tokens(tokens)
    return lambda: loop.fit_to_score(model, batch)


def measure_axis(axis: str, rounds: int) -> dict[str, Any]:
    """Seconds and peak bytes of a fit at each point; and the last slope over the one before it: 1 on a line, 2 if the
    cost is quadratic (the sizes double)."""
    works = {str(size): _work(BASE | {axis: size}) for size in AXES[axis]}
    seconds = {name: summary(taken) for name, taken in interleaved(works, rounds).items()}
    medians = [seconds[str(size)]["median"] for size in AXES[axis]]
    peaks = [peak_memory(work) for work in works.values()]

    def slope(last: int) -> float:
        """Of the line from one point to the next, counted from the end."""
        sizes = AXES[axis]
        return (medians[last] - medians[last - 1]) / (sizes[last] - sizes[last - 1])

    return {
        "sizes": AXES[axis],
        "seconds": [seconds[str(size)] for size in AXES[axis]],
        "peak_bytes": peaks,
        "bend": slope(-1) / slope(-2) if len(medians) > 2 else 1.0,
    }


def run(rounds: int = 5) -> dict[str, Any]:
    """All axes."""
    return {"base": BASE, "axes": {axis: measure_axis(axis, rounds) for axis in AXES}}


def _flops(point: dict[str, int]) -> int:
    """Of the products of all fast steps of a fit."""
    products = fast_step_products(_model(point), point["sequences"], point["length"])
    return point["fast_steps"] * sum(product.flops for product in products)


def predicted(found: dict[str, Any]) -> tuple[float, dict[str, list[float]]]:
    """The one rate, in operations a second, and the seconds that it predicts at each point of each axis."""
    axes = found["axes"]
    flops = {axis: [_flops(found["base"] | {axis: size}) for size in one["sizes"]] for axis, one in axes.items()}
    rates = [
        count / second["median"]
        for axis, one in axes.items()
        for count, second in zip(flops[axis], one["seconds"], strict=True)
    ]
    rate = statistics.median(rates)
    return rate, {axis: [count / rate for count in counts] for axis, counts in flops.items()}


def plot(found: dict[str, Any], path: Path) -> None:
    """Time and memory against each size, and the time that is predicted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rate, seconds = predicted(found)
    figure, panels = pyplot.subplots(2, 3, figsize=(11, 6.2), layout="constrained")
    for panel, (axis, values) in zip(panels.flat, found["axes"].items(), strict=True):
        sizes = values["sizes"]
        medians = [1000 * one["median"] for one in values["seconds"]]
        spread = [[m - 1000 * one["least"] for m, one in zip(medians, values["seconds"], strict=True)]]
        spread += [[1000 * one["most"] - m for m, one in zip(medians, values["seconds"], strict=True)]]
        panel.errorbar(sizes, medians, yerr=spread, fmt="o", color="C0", label="measured", markersize=4)
        guess = f"operations at {rate / 1e9:.0f} GFLOP/s"
        panel.plot(sizes, [1000 * second for second in seconds[axis]], color="C0", lw=1, label=guess)
        panel.set_xlabel(LABELS[axis])
        panel.set_ylabel("ms a fit")
        panel.set_ylim(bottom=0)
        memory = panel.twinx()
        peaks = [peak / 2**20 for peak in values["peak_bytes"]]
        (line,) = memory.plot(sizes, peaks, "s--", color="C1", ms=3, lw=0.8, label="peak memory")
        memory.set_ylim(0, 1.1 * max(peaks))
        memory.set_ylabel("peak MiB", color="C1")
        panel.set_title(f"last slope over the one before: {values['bend']:.2f}", fontsize=9)
        if panel is panels.flat[0]:
            handles, labels = panel.get_legend_handles_labels()
            panel.legend([*handles, line], [*labels, "peak memory"], fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
