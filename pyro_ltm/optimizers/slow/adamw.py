"""AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from pyro_ltm.config import SlowConfig
from pyro_ltm.optimizers.slow.base import SlowOptimizer, adamw
from pyro_ltm.registry import Card


@dataclass(frozen=True, kw_only=True)
class AdamW(SlowOptimizer):
    """Torch's AdamW (arXiv:1711.05101) for all parameters, with `slow.beta1` and `slow.beta2`."""

    card: ClassVar[Card] = Card(
        summary="AdamW for all parameters",
        cost="two numbers kept for each parameter",
        when="the default, and the paper's",
        reference="arXiv:1711.05101",
    )
    takes_shares: ClassVar[bool] = True

    def build(self, module: nn.Module, slow: SlowConfig) -> torch.optim.Optimizer:
        """Two groups: matrices, which decay, and vectors, which do not."""
        return adamw(module, slow)

    def decaying(self, slow: SlowConfig) -> dict[str, float]:
        """The one that there is."""
        return {"slow.lr": slow.lr}
