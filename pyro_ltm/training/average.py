"""An exponential moving average of the weights along the slow loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

FIRST = 9
"""The average of the first steps is over about a tenth of them: as in TensorFlow's `ExponentialMovingAverage`."""


class Average:
    """Moving average of tensors that an optimizer changes in place.

    After slow step t, counted from 0, `average += (1 - d) (weights - average)` with d = min(decay, t / (t + 9)). The
    first step's weights are taken whole, so the initial ones have no share, and a short run forgets its first steps:
    with a constant decay both would still weigh decay^t. (`torch.optim.swa_utils.AveragedModel` asks the device at each
    update whether it is the first; this is its pass over all tensors.)

    Args:
        weights: what is averaged, by name; not copied.
        decay: share of the average that stays in a step, below 1.

    Attributes:
        tensors: the average, by the same names.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float):
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in weights.items()}
        self._weights = weights

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after slow step `step`."""
        share = 1 - min(self.decay, step / (step + FIRST))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._weights.values()), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the weights are the average; after it they are themselves again, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.tensors.items():
            held = average.clone()
            average.copy_(self._weights[name])
            self._weights[name].copy_(held)
