"""The precision of the decoder's products: as configured, or the faster one on this device."""

from __future__ import annotations

import dataclasses
import time

import torch

from pyro_ltm.config import Config, ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

GAIN = 1.5
"""How much faster products in bfloat16 must be to be taken; what else a step does stays in single precision."""


def resolve_dtype(config: Config, device: torch.device | str) -> Config:
    """`config` with a precision in place of `dtype = "auto"`, by timing a product of the decoder on `device`.

    A processor says that it has bfloat16 also where its products are slower in it.
    """
    if config.dtype != "auto":
        return config
    device = torch.device(device)
    if device.type == "meta":
        return dataclasses.replace(config, dtype="float32")
    seconds = product_seconds(config.model, device)
    gains = seconds["float32"] > GAIN * seconds["bfloat16"]
    return dataclasses.replace(config, dtype="bfloat16" if gains else "float32")


def product_seconds(model: ModelConfig, device: torch.device, repeats: int = 10) -> dict[str, float]:
    """Shortest time of the feed-forward layer's first product for one sequence, in each precision, taken in turn."""
    shapes = (model.max_length, model.dim), (model.dim, model.hidden_width)
    factors = {
        name: [torch.ones(shape, dtype=dtype, device=device) for shape in shapes] for name, dtype in DTYPES.items()
    }
    times: dict[str, list[float]] = {name: [] for name in DTYPES}
    for _ in range(repeats):
        for name, (rows, weight) in factors.items():
            began = time.perf_counter()
            float((rows @ weight)[0, 0])  # to be read, it must be there
            times[name].append(time.perf_counter() - began)
    return {name: min(taken) for name, taken in times.items()}
