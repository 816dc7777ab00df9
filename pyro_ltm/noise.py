"""Noise keyed by sequence: what a sequence draws depends on its id and a seed, never on who shares its batch.

So a posterior is the same whatever the batch size, figures do not move with it, and a resumed run needs no saved
generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

Normals = Callable[[torch.Size], Tensor]
"""Standard normals of a shape [..., B, *event]."""


def fold(*key: int | str) -> int:
    """A seed made from several: 63 bits, the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Noise:
    """A stream of standard normals for the sequences `ids` [B], one generator each.

    Args:
        ids: the sequences' stable names.
        seed: the other half of each key; different seeds give independent streams.
        fixed: repeats the first draw of each shape for ever, as the reference implementation does. What is fitted on
            one draw must not be scored on it: the score is no bound.
    """

    def __init__(self, ids: Tensor, *, seed: int, fixed: bool = False):
        self.fixed = fixed
        self._generators = [torch.Generator().manual_seed(fold(seed, i)) for i in ids.tolist()]
        self._device = ids.device
        self._drawn: dict[tuple[torch.Size, int], Tensor] = {}

    def normal(self, shape: torch.Size, *, event_dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals of `shape` [..., B, *event], where the event has `event_dims` dimensions."""
        if self.fixed and (shape, event_dims) in self._drawn:
            return self._drawn[shape, event_dims].to(dtype)
        axis = len(shape) - event_dims - 1
        if shape[axis] != len(self._generators):
            raise ValueError(f"noise for {len(self._generators)} sequences, asked for {shape[axis]} (shape {shape})")
        row = shape[:axis] + shape[axis + 1 :]
        drawn = torch.stack([torch.randn(row, generator=g, dtype=dtype) for g in self._generators], dim=axis)
        drawn = drawn.to(self._device)
        if self.fixed:
            self._drawn[shape, event_dims] = drawn
        return drawn


@singledispatch
def rsample_from(distribution: Any, normals: Normals) -> Tensor:
    """A reparameterized draw from `distribution` made of the given standard normals.

    Register a rule for a distribution of your own with `@rsample_from.register`.

    Raises:
        NotImplementedError: no rule for this distribution.
    """
    raise NotImplementedError(
        f"no rule makes a draw of {type(distribution).__name__} from standard normals: "
        "add one with @pyro_ltm.noise.rsample_from.register"
    )


@rsample_from.register
def _(distribution: dist.Normal, normals: Normals) -> Tensor:
    loc: Tensor = distribution.loc
    return loc + normals(loc.shape) * distribution.scale


@rsample_from.register
def _(distribution: dist.Independent, normals: Normals) -> Tensor:
    return rsample_from(distribution.base_dist, normals)


def draw(distribution: Any, noise: Noise) -> Tensor:
    """A reparameterized draw [..., B, *event] from `distribution`, made of `noise`."""
    event_dims, dtype = len(distribution.event_shape), _dtype(distribution)
    return rsample_from(distribution, lambda shape: noise.normal(shape, event_dims=event_dims, dtype=dtype))


class DrawFrom(Messenger):
    """An effect handler: the guide's site `thoughts` draws from `noise` instead of torch's global generator."""

    def __init__(self, noise: Noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] == "thoughts" and not msg["done"] and not msg["is_observed"]:
            msg["value"] = draw(msg["fn"], self.noise)
            msg["done"] = True


def _dtype(distribution: Any) -> torch.dtype:
    """The floating type of a distribution's parameters."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    dtype: torch.dtype = distribution.mean.dtype
    return dtype


__all__ = ["DrawFrom", "Noise", "draw", "fold", "rsample_from"]
