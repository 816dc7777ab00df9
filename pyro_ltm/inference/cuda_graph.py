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
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyro_ltm.guides import Guide
from pyro_ltm.interruption import left_at
from pyro_ltm.noise import Noise
from pyro_ltm.objectives import Objective, PyroObjective
from pyro_ltm.registry import Member
from pyro_ltm.types import Batch, State

Fit = Callable[[Batch, State, Noise], tuple[State, Tensor]]
"""From a batch, first local parameters and noise to the last parameters and the history; all that it asks of the device
depends on their shapes alone."""

Capture = Callable[[Callable[[], tuple[State, Tensor]]], tuple[tuple[State, Tensor], Callable[[], object]]]
"""Records work: what it made, which is filled in with each call of what else is given back."""

Asked = tuple[torch.Size, int, torch.dtype]
"""A draw of noise: its shape, how many of its dimensions are the event's, and its type."""

CAPACITY = 4
"""Most recordings in memory, those used last, and most kinds of fits known: of training, and of validation, whose last
batch has another size."""


def cuda_graph() -> Capture:
    """Recording by CUDA graphs that share their memory, of which one is replayed at a time."""
    graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def capture(work: Callable[[], tuple[State, Tensor]]) -> tuple[tuple[State, Tensor], Callable[[], object]]:
        pool = next((graph.pool() for graph in graphs), None)  # that of a graph that lives: it goes with the last one
        graph = torch.cuda.CUDAGraph()
        # Where it fails, torch leaves its own stream behind; this goes back from it.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool):
            made = work()
        graphs.add(graph)
        return made, graph.replay

    return capture


def cache_key(
    batch: Batch, model: nn.Module, guide: Guide, objective: Objective, optimizer: Any, *more: Any
) -> Hashable:
    """Cache key of a recorded fit; None if it cannot be recorded.

    Weights are known by their addresses, and may change in place.
    """
    checks = torch.distributions.Distribution._validate_args  # by values
    fused = any(getattr(module, "_fused_users", 0) for module in model.modules())  # by a caller, who may drop them
    reads_host = not guide.is_recorded or not getattr(getattr(model, "prior", None), "is_recorded", True)
    if reads_host or checks or fused or batch.token_slice is not None or am_i_wrapped():
        return None
    parts = (_plain(objective), _plain(optimizer))
    if None in parts:
        return None
    return (*parts, *map(_module, (model, guide)), *more)


def _module(module: nn.Module) -> Hashable:
    """A module, where its tensors lie, and the settings of all its parts."""
    lie = tuple(tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers()))
    parts = list(module.modules())
    compiled = tuple(part._compiled_call_impl is not None for part in parts)
    settings = tuple(item for part in parts for item in vars(part).items() if _is_plain(item[1]))
    return module, lie, compiled, settings


def _plain(part: Any) -> Hashable:
    """A class, its settings and what it learns, as a module is known; None where one of them is not plain."""
    part = part.elbo if isinstance(part, PyroObjective) else part
    settings = {name: value for name, value in vars(part).items() if name != Member.MADE_WITH}
    modules = [_module(settings.pop(name)) for name, value in vars(part).items() if isinstance(value, nn.Module)]
    kind: Any = type(part)
    return (kind, *settings.items(), *modules) if all(map(_is_plain, settings.values())) else None


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


class Recorder:
    """Runs fits: the first of its kind as it is, the second while it records it, and replays the others.

    Where that fails, because something asks for a value on the host, it says so and records nothing more.
    """

    def __init__(self, capture: Capture | None = None):
        self._capture = capture or cuda_graph()
        self._draws: dict[Hashable, list[Asked]] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._gave_up = False

    def run(self, fit: Fit, kind: Hashable, batch: Batch, start: State, noise: Noise) -> tuple[State, Tensor]:
        """`fit(batch, start, noise)`. `kind` tells apart fits that do not ask the same for batches of one shape."""
        key = (kind, _shapes({"inputs": batch.inputs, "targets": batch.targets, "mask": batch.mask}), _shapes(start))
        # A context is worked out within: it lies elsewhere in each batch, and is of the weights as they were.
        batch = dataclasses.replace(batch, context=None)
        if self._gave_up:
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
                self._gave_up = True
                self.forget()
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
        with left_at(lambda: 0):  # what is half recorded cannot be left
            (self._state, self._history), self._play = capture(
                lambda: fit(there, self._start, _Laid(iter(self._draws), device))
            )

    @torch.no_grad()
    def replay(self, batch: Batch, start: State, noise: Noise) -> tuple[State, Tensor]:
        """Results of the fit for these inputs. All work is queued in order on one stream, without a wait."""
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
    """`noise`, and what was asked of it; a fit asks for normals alone."""

    def __init__(self, noise: Noise):
        self._noise, self.device = noise, noise.device
        self.asked: list[Asked] = []

    def normal(self, shape: torch.Size, *, event_dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
        self.asked.append((shape, event_dims, dtype))
        return self._noise.normal(shape, event_dims=event_dims, dtype=dtype)


class _Laid(Noise):
    """Noise that lies in place, to be asked for as it was listened to."""

    def __init__(self, draws: Iterator[Tensor], device: torch.device):
        self._draws, self.device = draws, device

    def normal(self, shape: torch.Size, *, event_dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
        recorded = next(self._draws, None)
        if recorded is None or recorded.shape != shape or recorded.dtype != dtype:
            raise RuntimeError(f"noise of shape {tuple(shape)}, which it did not ask for before")
        return recorded


def _shorten(recorded: dict[Hashable, Any]) -> None:
    for oldest in list(recorded)[:-CAPACITY]:
        del recorded[oldest]


def _shapes(tensors: Mapping[str, Tensor | None]) -> Hashable:
    return tuple((name, value.shape, value.dtype) for name, value in tensors.items() if value is not None)
