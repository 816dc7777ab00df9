"""Which device's kernels are asked for: those of a tensor's own device, or of one that a training is planned for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_planned: str | None = None


def device_type(x: Tensor) -> str:
    """The type of device whose kernels `x` goes through."""
    return _planned or x.device.type


@contextmanager
def planned_for(kind: str) -> Iterator[None]:
    """Within it every choice of a kernel is that of a device of this type, wherever the tensors lie.

    For tensors without numbers (`profiling.simulation`): kernels of another device would not run.
    """
    global _planned
    before, _planned = _planned, kind
    try:
        yield
    finally:
        _planned = before
