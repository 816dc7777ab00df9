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
from torch.distributions import MixtureSameFamily

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
        device: where the normals are wanted; that of `ids` when None.
        seed: the other half of each key; different seeds give independent streams.
        kind: "fresh"; "antithetic": every second particle mirrors the one before it, and with single draws every second
            draw does, so that what is odd in the noise cancels; "fixed": every draw begins the stream again, so that
            draws of one shape are equal for ever. What is fitted on one draw must not be scored on it: the score is no
            bound.
    """

    def __init__(self, ids: Tensor, *, seed: int, kind: str = "fresh", device: torch.device | None = None):
        self.kind = kind
        self._streams = [_Stream(fold(seed, i)) for i in ids.tolist()]
        self.device = ids.device if device is None else device

    @property
    def seeds(self) -> list[int]:
        """The seed of each sequence's stream."""
        return [stream.seed for stream in self._streams]

    def normal(self, shape: torch.Size, *, event_dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals of `shape` [..., B, *event], where the event has `event_dims` dimensions."""
        axis = len(shape) - event_dims - 1
        if shape[axis] != len(self._streams):
            raise ValueError(f"noise for {len(self._streams)} sequences, asked for {shape[axis]} (shape {shape})")
        row = shape[:axis] + shape[axis + 1 :]
        if self.kind == "antithetic":
            drawn = [stream.mirrored(row, dtype, pairs=bool(axis) and row[0] > 1) for stream in self._streams]
        else:
            drawn = [stream.draw(row, dtype, again=self.kind == "fixed") for stream in self._streams]
        whole = torch.stack(drawn, dim=axis)
        if self.device.type == "cuda":  # from pinned memory, so that nobody waits for the copy
            whole = whole.pin_memory()
        return whole.to(self.device, non_blocking=True)

    def part(self) -> None:
        """Begins anew: no later draw mirrors an earlier one."""
        for stream in self._streams:
            stream.part()

    def select(self, rows: Tensor) -> Noise:
        """The streams of the sequences at `rows` (int64 [B']): these very streams, so that what they give is gone."""
        part = copy.copy(self)
        part._streams = [self._streams[row] for row in rows.tolist()]
        return part


def dropout_mask(ids: Tensor, shape: tuple[int, ...], share: float, *, seed: int, device: torch.device) -> Tensor:
    """Which numbers of each sequence dropout keeps: bool [B, *shape], each True with probability `share`.

    By a generator for each of `ids` [B], so that they do not depend on who shares the batch; on another kind of device
    they are others.
    """
    whole = torch.empty(len(ids), *shape, dtype=torch.bool, device=device)
    for row, name in zip(whole, ids.tolist(), strict=True):
        row.bernoulli_(share, generator=torch.Generator(device).manual_seed(fold(seed, "dropout", name)))
    return whole


class _Stream:
    """The normals of one sequence."""

    def __init__(self, seed: int):
        self.seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._mirror: Tensor | None = None

    def draw(self, shape: torch.Size, dtype: torch.dtype, *, again: bool = False) -> Tensor:
        """The next normals, or from the beginning `again`."""
        if again:
            self._generator.manual_seed(self.seed)
        return torch.randn(shape, generator=self._generator, dtype=dtype)

    def part(self) -> None:
        """Forgets the draw whose mirror would come next."""
        self._mirror = None

    def mirrored(self, shape: torch.Size, dtype: torch.dtype, *, pairs: bool) -> Tensor:
        """Normals in mirrored `pairs` along the first dimension; or a draw, and at the next call its mirror."""
        if pairs:
            half = self.draw(torch.Size([(shape[0] + 1) // 2, *shape[1:]]), dtype)
            return torch.stack([half, -half], dim=1).flatten(0, 1)[: shape[0]]
        mirror, self._mirror = self._mirror, None
        if mirror is not None and mirror.shape == shape:
            return -mirror
        self._mirror = self.draw(shape, dtype)
        return self._mirror


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


@rsample_from.register
def _(distribution: MixtureSameFamily, normals: Normals) -> Tensor:
    """A draw of a mixture, which carries no gradient: which component it is of has none."""
    batch, drawn = distribution.batch_shape, []

    def of_components(shape: torch.Size) -> Tensor:
        drawn.append(normals(torch.Size([*batch, 1 + shape[len(batch) :].numel()])))
        return drawn[0][..., 1:].reshape(shape)

    each = rsample_from(distribution.component_distribution, of_components)  # [..., C, *event]
    # A standard normal through its own distribution function is uniform.
    share, reached = torch.special.ndtr(drawn[0][..., :1]), distribution.mixture_distribution.probs.cumsum(-1)
    index = (share >= reached).sum(-1, keepdim=True).clamp(max=reached.shape[-1] - 1)
    index = index.reshape(*index.shape, *[1] * len(distribution.event_shape))
    return each.detach().take_along_dim(index, dim=len(batch)).squeeze(len(batch))


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


__all__ = ["KINDS", "DrawFrom", "Noise", "draw", "dropout_mask", "fold", "rsample_from"]
