"""Latent-thought language models as a probabilistic program.

    import pyro_ltm as ltm

    run = ltm.train(ltm.preset("nano"), data="python-docs", out="runs/first")
    print(run.evaluate(particles=8))
    print(run.generate(prompt="The statement", num=3))

The names below are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_ltm.config import Config, apply_settings, load_toml
    from pyro_ltm.data import TokenDataset, Tokenizer, prepare
    from pyro_ltm.errors import UserError
    from pyro_ltm.inference import FastLoop
    from pyro_ltm.model import DecodingOptions, LatentThoughtModel
    from pyro_ltm.presets import preset
    from pyro_ltm.runs import Run
    from pyro_ltm.scores import Bound, evaluate_bound
    from pyro_ltm.training import train
    from pyro_ltm.types import Batch

__version__ = "0.1.0"

# Where each name lives.
_HOME = {
    "Batch": "types",
    "Bound": "scores",
    "Config": "config",
    "FastLoop": "inference",
    "LatentThoughtModel": "model",
    "Run": "runs",
    "DecodingOptions": "model",
    "TokenDataset": "data",
    "Tokenizer": "data",
    "UserError": "errors",
    "apply_settings": "config",
    "evaluate_bound": "scores",
    "load_toml": "config",
    "prepare": "data",
    "preset": "presets",
    "train": "training",
}

__all__ = [
    "Batch",
    "Bound",
    "Config",
    "DecodingOptions",
    "FastLoop",
    "LatentThoughtModel",
    "Run",
    "TokenDataset",
    "Tokenizer",
    "UserError",
    "apply_settings",
    "evaluate_bound",
    "load_toml",
    "prepare",
    "preset",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
