"""Fast loops out of the options of a test."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from pyro_ltm.inference import FastLoop, Plateau, Posterior
from pyro_ltm.types import Batch

NAMES = {entry.name for entry in dataclasses.fields(FastLoop)}


def take_loop(options: dict[str, Any]) -> FastLoop:
    """The loop that some of `options` are of; the others stay there."""
    if "tolerance" in options:
        options["stopping"] = Plateau.of(options.pop("tolerance"), options.pop("patience", 4))
    return FastLoop(**{name: options.pop(name) for name in [*options] if name in NAMES})


def fit_posterior(model: nn.Module, batch: Batch, **options: Any) -> Posterior:
    """`FastLoop.fit`, with the options of the loop and those of the fit."""
    return take_loop(options).fit(model, batch, **options)
