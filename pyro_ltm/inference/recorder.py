"""The fast loop recorded on a GPU as one CUDA graph, and replayed for every later batch of the same shapes.

A fast step of a small decoder is hundreds of short kernels, and Python takes longer to ask for them than the GPU to run
them. Recorded, they are asked for once; a replay differs from them in the numbers that it reads: the batch's tokens,
the first local parameters, the noise, and the weights where they lie.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.noise import Noise
from pyro_ltm.types import Batch, State

Fit = Callable[[Batch, State, Noise], tuple[State, Tensor]]
"""From a batch, first local parameters and noise to the last parameters and the history; all that it asks of the device
depends on their shapes alone."""

Capture = Callable[[Callable[[], tuple[State, Tensor]]], tuple[tuple[State, Tensor], Callable[[], object]]]
"""Records work: what it made, which is filled in with each call of what else is given back."""

Asked = tuple[torch.Size, int, torch.dtype]
"""A draw of noise: its shape, how many of its dimensions are the event's, and its type."""

KEPT = 2
"""Recordings that are kept, those used last, and kinds of fits remembered: training's and validation's."""


def cuda_graph() -> Capture:
    """Recording by CUDA graphs that share their memory, of which one is replayed at a time."""
    graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def capture(work: Callable[[], tuple[State, Tensor]]) -> tuple[tuple[State, Tensor], Callable[[], object]]:
        pool = next((graph.pool() for graph in graphs), None)  # that of a graph that lives: it goes with the last one
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            made = work()
        graphs.add(graph)
        return made, graph.replay

    return capture


class Recorder:
    """Runs fits: the first of its kind as it is, the second while it records it, and replays the others.

    What cannot be recorded, because it asks for a value on the host, is run as it is each time.
    """

    def __init__(self, capture: Capture | None = None):
        self._capture = capture or cuda_graph()
        self._draws: dict[Hashable, list[Asked]] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._refused: set[Hashable] = set()

    def run(self, fit: Fit, kind: Hashable, batch: Batch, start: State, noise: Noise) -> tuple[State, Tensor]:
        """`fit(batch, start, noise)`. `kind` tells apart fits that do not ask the same for batches of one shape."""
        key = (kind, _shapes({"inputs": batch.inputs, "targets": batch.targets, "mask": batch.mask}), _shapes(start))
        if key in self._refused:
            return fit(batch, start, noise)
        if key not in self._recordings and key not in self._draws:
            listening = _Listening(noise)
            found = fit(batch, start, listening)
            self._draws[key] = listening.asked
            _shorten(self._draws)
            return found
        recording = self._recordings.pop(key, None)
        if recording is None:
            try:
                recording = _Recording(self._capture, fit, batch, start, self._draws.pop(key), noise.device)
            except RuntimeError as error:
                self._refused.add(key)
                warnings.warn(f"the fast loop cannot be recorded and runs as it is: {error}", stacklevel=2)
                return fit(batch, start, noise)
        self._recordings[key] = recording
        _shorten(self._recordings)
        return recording.replay(batch, start, noise)

    def forget(self) -> None:
        """Lets go of what was recorded, and of its memory."""
        self._draws.clear()
        self._recordings.clear()


class _Recording:
    """One fit, recorded; what it reads lies in place and is written over before each replay."""

    def __init__(
        self,
        capture: Capture,
        fit: Fit,
        batch: Batch,
        start: State,
        asked: list[Asked],
        device: torch.device,
    ):
        self._asked = asked
        assert batch.targets is not None  # a fit reads them
        self._tokens = [each.clone() for each in (batch.inputs, batch.targets, batch.mask)]
        self._start = {name: value.detach().clone() for name, value in start.items()}
        self._draws = [torch.zeros(shape, dtype=dtype, device=device) for shape, _, dtype in asked]
        inputs, targets, mask = self._tokens
        there = dataclasses.replace(batch, inputs=inputs, targets=targets, mask=mask)
        (self._state, self._history), self._play = capture(
            lambda: fit(there, self._start, _Laid(batch.ids, iter(self._draws), device))
        )

    def replay(self, batch: Batch, start: State, noise: Noise) -> tuple[State, Tensor]:
        """What the fit makes of these. Nobody waits: all is asked for in order, on one stream."""
        assert batch.targets is not None
        for place, value in zip(self._tokens, (batch.inputs, batch.targets, batch.mask), strict=True):
            place.copy_(value)
        for name, value in start.items():
            self._start[name].copy_(value)
        for place, (shape, event_dims, dtype) in zip(self._draws, self._asked, strict=True):
            place.copy_(noise.normal(shape, event_dims=event_dims, dtype=dtype))
        self._play()
        return {name: value.clone() for name, value in self._state.items()}, self._history.clone()


class _Listening(Noise):
    """`noise`, and what was asked of it."""

    def __init__(self, noise: Noise):
        self._noise, self.device = noise, noise.device
        self.asked: list[Asked] = []

    def normal(self, shape: torch.Size, *, event_dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
        self.asked.append((shape, event_dims, dtype))
        return self._noise.normal(shape, event_dims=event_dims, dtype=dtype)


class _Laid(Noise):
    """Noise that lies in place."""

    def __init__(self, ids: Tensor, draws: Iterator[Tensor], device: torch.device):
        self._draws, self.device = draws, device

    def normal(self, shape: torch.Size, *, event_dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return next(self._draws)


def _shorten(kept: dict[Hashable, Any]) -> None:
    for oldest in list(kept)[:-KEPT]:
        del kept[oldest]


def _shapes(tensors: Mapping[str, Tensor | None]) -> Hashable:
    return tuple((name, value.shape, value.dtype) for name, value in tensors.items() if value is not None)
