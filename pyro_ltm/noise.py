"""Noise keyed by sequence: what a sequence draws depends on its id and a seed, never on who shares its batch.

So a posterior is the same whatever the batch size, figures do not move with it, and a resumed run needs no saved
generator state.
"""

from __future__ import annotations

import copy
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
"""Standard normals of a shape [..., B, *any], whose leading dimensions are the distribution's batch shape."""


def fold(*key: int | str) -> int:
    """A seed made from several: 63 bits, the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


KINDS = ("fresh", "antithetic", "fixed")
"""New draws each time; pairs of mirrored draws; one draw for ever, as the reference implementation has it."""


class Noise:
    """A stream of standard normals for the sequences `ids` [B], one generator each.

    Args:
        ids: the sequences' stable names.
        seed: the other half of each key; different seeds give independent streams.
        kind: "fresh"; "antithetic": every second particle mirrors the one before it, and with single draws every second
            draw does, so that what is odd in the noise cancels; "fixed": every draw begins the stream again, so that
            draws of one shape are equal for ever. What is fitted on one draw must not be scored on it: the score is no
            bound.
    """

    def __init__(self, ids: Tensor, *, seed: int, kind: str = "fresh"):
        self.kind = kind
        self.seeds = [fold(seed, i) for i in ids.tolist()]
        self._device = ids.device
        self._mirror: Tensor | None = None
        self._restart()

    def normal(self, shape: torch.Size, *, event_dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals of `shape` [..., B, *event], where the event has `event_dims` dimensions."""
        axis = len(shape) - event_dims - 1
        if shape[axis] != len(self._generators):
            raise ValueError(f"noise for {len(self._generators)} sequences, asked for {shape[axis]} (shape {shape})")
        if self.kind == "fixed":
            self._restart()
        if self.kind != "antithetic":
            return self._draw(shape, axis, dtype)
        if axis and shape[0] > 1:
            half = self._draw(torch.Size([(shape[0] + 1) // 2, *shape[1:]]), axis, dtype)
            return torch.stack([half, -half], dim=1).flatten(0, 1)[: shape[0]]
        mirror, self._mirror = self._mirror, None
        if mirror is not None and mirror.shape == shape:
            return -mirror
        self._mirror = self._draw(shape, axis, dtype)
        return self._mirror

    def select(self, rows: Tensor) -> Noise:
        """The streams of the sequences at `rows` (int64 [B']), from where they stand."""
        chosen = rows.tolist()
        part = copy.copy(self)
        part.seeds = [self.seeds[row] for row in chosen]
        part._generators = [self._generators[row] for row in chosen]
        if self._mirror is not None:
            part._mirror = self._mirror.index_select(self._mirror_axis, rows)
        return part

    def _draw(self, shape: torch.Size, axis: int, dtype: torch.dtype) -> Tensor:
        self._mirror_axis = axis
        row = shape[:axis] + shape[axis + 1 :]
        drawn = torch.stack([torch.randn(row, generator=g, dtype=dtype) for g in self._generators], dim=axis)
        return drawn.to(self._device)

    def _restart(self) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]


@singledispatch
def rsample_from(distribution: Any, normals: Normals) -> Tensor:
    """A reparameterized draw from `distribution` made of the given standard normals.

    Register a rule for a distribution of your own with `@rsample_from.register`. A rule asks for its normals once: on
    fixed noise a second call would get the same ones again.

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
    dtype, batch_dims = _dtype(distribution), len(distribution.batch_shape)

    def normals(shape: torch.Size) -> Tensor:
        return noise.normal(shape, event_dims=len(shape) - batch_dims, dtype=dtype)

    return rsample_from(distribution, normals)


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


__all__ = ["KINDS", "DrawFrom", "Noise", "draw", "fold", "rsample_from"]
