"""Every tensor that is made, while it lives, as a part of something."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watch(TorchDispatchMode):
    """Bytes of all storages that live, by the part that they were made in, and the peaks of each phase.

    Storages that are there already are to be held (`hold`) before anything is done. A value that the host asks for is
    1, and places that it asks for are `places`: FakeTensors have none.

    Args:
        part, phase: what is made at first. heads: parts by the name of the autograd node that makes them.

    Attributes:
        peaks: by phase, bytes by part when the phase held most.
        places: how many elements of a tensor `nonzero` finds.
    """

    def __init__(self, part: str, phase: str, heads: Mapping[str, str]):
        super().__init__()
        self.part, self.phase, self.heads = part, phase, heads
        self.live: Counter[str] = Counter()
        self.peaks: dict[str, dict[str, int]] = {}
        self.places = 0
        self._highest: Counter[str] = Counter()
        self._known: dict[int, tuple[str, weakref.ref[Any]]] = {}

    def enter(self, phase: str, part: str) -> None:
        """Counts what is made from here on to this phase and part."""
        self.phase, self.part = phase, part
        self._look()

    @contextmanager
    def during(self, phase: str, part: str) -> Iterator[None]:
        """`enter`, and back at the end."""
        before = self.phase, self.part
        self.enter(phase, part)
        try:
            yield
        finally:
            self.enter(*before)

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Counts what is made within to this part."""
        with self.during(self.phase, part):
            yield

    def hold(self, tensors: Iterable[Tensor | None], part: str) -> None:
        """These are of this part, whatever they were made as."""
        for tensor in tensors:
            if tensor is not None:
                storage = tensor.untyped_storage()
                self._forget(storage._cdata, storage.nbytes())
                self._see(storage, part)

    def begin(self) -> None:
        """Forgets the peaks so far."""
        self.peaks.clear()
        self._highest.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((self.places, args[0].dim()), dtype=torch.int64)
        result = func(*args, **(kwargs or {}))
        node = torch._C._current_autograd_node()
        part = self.part if node is None else self.heads.get(node.name(), self.part)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._see(storage, part)
        return result

    def _see(self, storage: Any, part: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known[key] = part, weakref.ref(storage, lambda _: self._forget(key, size))
        self.live[part] += size
        self._look()

    def _look(self) -> None:
        total = self.live.total()
        if total > self._highest[self.phase]:
            self._highest[self.phase] = total
            self.peaks[self.phase] = dict(self.live)

    def _forget(self, key: int, size: int) -> None:
        if key in self._known:
            self.live[self._known.pop(key)[0]] -= size


@contextmanager
def norms_of_a_gpu() -> Iterator[None]:
    """RMSNorm as a GPU has it, one kernel that keeps its input and a number a row; a processor keeps what it normed."""
    # The function itself is replaced: a TorchFunctionMode is off in the backward pass, where layers are computed again.
    before = F.rms_norm
    F.rms_norm = _rms_norm
    try:
        yield
    finally:
        F.rms_norm = before


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """With the arguments of torch's. Only a norm that has a weight is one kernel here."""
    return torch.rms_norm(input, normalized_shape, weight, eps) if weight is None else _RMSNorm.apply(input, weight)


class _RMSNorm(torch.autograd.Function):
    """Shapes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)
