"""Independent Normals: N(0, I), or with a mean and a width that are learned."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ltm.priors.base import Prior, bounded, unbounded
from pyro_ltm.registry import Card


class Gaussian(Prior):
    """N(0, I) over all thoughts, the paper's prior (arXiv:2502.01567); or a Normal of its own for each number.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        learned: mean and width of each number are learned.
    """

    card: ClassVar[Card] = Card(
        summary="N(0, I), the paper's; learned: a Normal of its own for each latent dimension",
        cost="none; learned: 2 N D numbers",
        when="the default, and for every guide and objective",
        reference="arXiv:2502.01567",
    )
    arguments: ClassVar[tuple[str, ...]] = ("learned",)
    has_analytic_kl: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int, learned: bool = False):
        super().__init__(thoughts, dim)
        self.learned = learned
        self.loc: Tensor
        if learned:
            self.loc = nn.Parameter(torch.zeros(thoughts, dim))
            self.log_scale = nn.Parameter(torch.zeros(thoughts, dim))
        else:
            self.register_buffer("loc", torch.zeros(thoughts, dim), persistent=False)

    @torch.no_grad()
    def begin_at(self, thoughts: Tensor) -> None:
        """Where it learns, at their mean and standard deviation."""
        if self.learned:
            self.loc.copy_(thoughts.mean(0))
            self.log_scale.copy_(unbounded(thoughts.std(0, correction=0).log()))

    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence: event shape [N, D]."""
        scale = bounded(self.log_scale).exp() if self.learned else torch.ones_like(self.loc)
        # Unchecked: one sequence whose thoughts have run away must not stop the others.
        return dist.Normal(self.loc, scale, validate_args=False).to_event(2)
