"""Effect of each lever on speed and on the honest bound: at equal slow steps, and at equal time.

    python -m benchmarks --only levers --data DIR --out FOLDER [--steps 300] [--seeds 0] [--rows "alone 0.5;compile"]

Every row trains the preset nano twice: for so many slow steps, and for as many as fit into the default's time. Beside
each run goes one of the default's, step by step in turn, so that both see the same machine; its seconds are what the
row's are set against. What is done once, such as compiling, is over before and counted by itself. Each is judged by the
same long fit (64 steps of Adam at 0.1, fresh noise, whole KL, 4 draws) on the same validation sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro

from benchmarks.levers_training import Training, configure, judge, learning, level, remembering, together, warmed
from pyro_ltm.data import TokenDataset
from pyro_ltm.inference import build
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.scores import Bound

ROWS: dict[str, list[str]] = {
    "default": [],
    "2 fast steps": ["fast.steps=2"],
    "16 fast steps": ["fast.steps=16"],
    "subsample 2": ["fast.subsample=2"],
    "subsample 4": ["fast.subsample=4"],
    "16 fast steps, subsample 4": ["fast.steps=16", "fast.subsample=4"],
    "alone 0.5": ["slow.decoder_warmup=0.5"],
    "alone 0.5, subsample 4": ["slow.decoder_warmup=0.5", "fast.subsample=4"],
    "compile": ["compile=true"],
    "bfloat16": ["dtype=bfloat16"],
    "recompute": ["slow.recompute=true"],
    "natural": ["optimizer.name=natural"],
    "natural, lr 0.7": ["optimizer.name=natural", "optimizer.lr=0.7"],
    "semi-amortized": ["guide.name=semi-amortized"],
    "16 fast steps, early stop": ["fast.steps=16", "fast.tolerance=0.5", "fast.patience=2"],
    "remembered starts": [],
}
REMEMBERED = "remembered starts"
EPOCHS = 3
"""Passes over the text in which starts are remembered, unless more slow steps are asked for."""


def ready(row: str, data: TokenDataset, steps: int, seed: int) -> tuple[LatentThoughtModel, Training, float]:
    """A row's model, its training before its first step, and the seconds that went once into what it needs."""
    config = configure(data, steps, seed, ROWS[row])
    ours, learner = build(config), remembering if row == REMEMBERED else learning
    once = warmed(ours, config, data, learner)
    return ours[0], Training(config, data, learner(ours, config)), once


@pyro.validation_enabled(False)  # as in training
def default(data: TokenDataset, validation: TokenDataset, steps: int, seed: int) -> tuple[dict[str, Any], Bound]:
    """The row that all others are set against, and its bound."""
    model, training, once = ready("default", data, steps, seed)
    together(training)
    bound = judge(model, validation)
    found = {"row": "default", "settings": [], "seed": seed, "steps": steps, "seconds": training.seconds, "once": once}
    return found | level(bound), bound


@pyro.validation_enabled(False)
def measure(
    row: str, data: TokenDataset, validation: TokenDataset, steps: int, seed: int, its: Bound
) -> dict[str, Any]:
    """One lever's row; `its` is the default's bound after as many steps, with the same seed."""

    def beside(own: int) -> dict[str, Any]:
        model, training, once = ready(row, data, own, seed)
        _, rival, _ = ready("default", data, steps, seed)  # its bound is known, its seconds are today's
        together(training, rival)
        seconds = {"steps": own, "seconds": training.seconds, "default_seconds": rival.seconds, "once": once}
        return seconds | level(judge(model, validation), its)

    found = beside(steps)
    again = max(1, round(steps * found["default_seconds"] / found["seconds"]))
    return {"row": row, "settings": ROWS[row], "seed": seed, **found, "equal_time": beside(again)}


def run(folder: Path, steps: int, seeds: list[int], rows: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """All levers, the default first, each as soon as it is measured."""
    data, validation = TokenDataset(folder), TokenDataset(folder, "validation")
    for seed in seeds:
        bounds: dict[int, Bound] = {}
        for row in ["default", *(rows or list(ROWS)[1:])]:
            own = steps
            if row == REMEMBERED:  # a start can only be remembered where a sequence comes again
                own = max(steps, EPOCHS * len(data) // configure(data, steps, seed, []).slow.batch_size)
            if own not in bounds:
                its, bounds[own] = default(data, validation, own, seed)
                yield its
            if row != "default":
                yield measure(row, data, validation, own, seed, bounds[own])
