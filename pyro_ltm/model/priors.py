"""Priors over the thoughts of a sequence."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """N(0, I) over all thoughts: the paper's prior (arXiv:2502.01567).

    Args:
        thoughts: thought vectors N; 0 is allowed, and then the event is empty and has probability one.
        dim: width D of each.
    """

    def __init__(self, thoughts: int, dim: int):
        super().__init__()
        self.loc: Tensor
        self.register_buffer("loc", torch.zeros(thoughts, dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence: event shape [N, D]."""
        # Unchecked: one sequence whose thoughts have run away must not stop the others.
        return dist.Normal(self.loc, torch.ones_like(self.loc), validate_args=False).to_event(2)
