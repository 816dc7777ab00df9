"""A linear map without bias, with an optional copy of its weight in another precision."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x W^T.

    Attributes:
        cast_weight: the weight in the precision of the product (`Decoder.fused_weights`); None: the weight itself.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)
        self.cast_weight: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        weight = self.cast_weight  # read once: another thread may drop it
        return F.linear(x, self.weight if weight is None else weight)
