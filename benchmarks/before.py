"""One fast step of `nano` against that of another checkout of this repository, in one process, in turn.

    git worktree add ../before COMMIT
    python -m benchmarks --only before --before ../before --threads 1 --rounds 40 --out FOLDER

Four fast steps a fit, as the preset has them: what a fit does once counts for as many. With one thread, seconds are the
processor's. `compiled` is this checkout's with `compile=true`; its compilation is over before anything is timed.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro

from benchmarks.interleave import interleaved, quiet_clock, ratio, summary
from benchmarks.roofline import fast_step_products, measure

SEQUENCES, VOCABULARY, FAST_STEPS = 16, 1024, 4
OURS = ("benchmarks", "examples", "pyro_ltm")
TARGETS = {"faster_than_before": 1.5, "share_of_the_roofline": 0.55}


def yard_of(checkout: Path) -> Any:
    """The model and loop of a checkout: its own modules, whatever is imported already."""
    others = {module: sys.modules.pop(module) for module in list(sys.modules) if module.split(".")[0] in OURS}
    sys.path.insert(0, str(checkout))
    try:
        yard = importlib.import_module("benchmarks.speed").Yard(
            "nano", size=SEQUENCES, vocabulary=VOCABULARY, dtype="float32"
        )
        yard.compiled.model.train()
        yard.fit(FAST_STEPS)  # imports what it waited with
    finally:
        sys.path.remove(str(checkout))
        for module in [module for module in sys.modules if module.split(".")[0] in OURS]:
            del sys.modules[module]
        sys.modules.update(others)
    return yard


@pyro.validation_enabled(False)  # as in training
def run(checkout: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a fast step before, now and compiled, and of its roofline."""
    before, now = yard_of(checkout.resolve()), yard_of(Path(__file__).parents[1])
    clock, floor = quiet_clock(), []
    products = fast_step_products(now.config.model, *now.batch.inputs.shape)
    works: dict[str, Callable[[], Any]] = {
        "before": lambda: before.fit(FAST_STEPS),
        "now": lambda: now.fit(FAST_STEPS),
        "compiled": lambda: now.fit(FAST_STEPS, ours=now.compiled),
        "roofline": lambda: floor.append(FAST_STEPS * measure(products, repeats=3, clock=clock).seconds),
    }
    seconds = interleaved(works, rounds, clock=clock)
    del seconds["roofline"]  # of the round; its own are kept
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    return {
        "commit": commit.stdout.strip(),
        "seconds": {name: summary(each, FAST_STEPS) for name, each in seconds.items()},
        "faster_than_before": {name: ratio(seconds["before"], each) for name, each in seconds.items()},
        "share_of_the_roofline": {name: ratio(floor[-rounds:], each) for name, each in seconds.items()},
        "targets": TARGETS,
    }
