"""A linear map without bias, whose weight may lie ready in another precision."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x W^T.

    Attributes:
        ready: the weight in the precision of the product, while it does not learn (`Decoder.held`); None: the weight.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)
        self.ready: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        ready = self.ready  # read once: another thread may let go of it
        return F.linear(x, self.weight if ready is None else ready)
