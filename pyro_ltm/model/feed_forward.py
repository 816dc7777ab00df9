"""The feed-forward layer of the decoder: SwiGLU, or squared ReLU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyro_ltm.model.linear import Linear


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x) (arXiv:2002.05202).

    Attributes:
        fused_weight: the weights of `w1` and `w3` as one matrix (`Decoder.fused_weights`); None: each by itself.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fused_weight: Tensor | None = None
        self.w1 = Linear(dim, hidden)
        self.w2 = Linear(hidden, dim)
        self.w3 = Linear(dim, hidden)

    @property
    def inward(self) -> list[Linear]:
        """Layers that read the input, under one another in `fused_weight`."""
        return [self.w1, self.w3]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        fused = self.fused_weight  # read once: another thread may drop it
        gate, up = (self.w1(x), self.w3(x)) if fused is None else F.linear(x, fused).chunk(2, dim=-1)
        gated: Tensor = self.w2(F.silu(gate) * up)
        return gated


class ReLU2(nn.Module):
    """w2(relu(w1 x)^2) (Primer, arXiv:2109.08668). Attributes as of `SwiGLU`, of `w1` alone."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fused_weight: Tensor | None = None
        self.w1 = Linear(dim, hidden)
        self.w2 = Linear(hidden, dim)

    @property
    def inward(self) -> list[Linear]:
        """The layer that reads the input, in `fused_weight`."""
        return [self.w1]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        fused = self.fused_weight
        squared: Tensor = self.w2(F.relu(self.w1(x) if fused is None else F.linear(x, fused)).square())
        return squared


FEED_FORWARD: dict[str, type[SwiGLU] | type[ReLU2]] = {"swiglu": SwiGLU, "relu2": ReLU2}
"""By `ModelConfig.feed_forward`."""
