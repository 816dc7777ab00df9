"""A mixture of Gaussians."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ltm.errors import UserError
from pyro_ltm.priors.base import Prior, bounded, check_range, unbounded
from pyro_ltm.registry import Card

PER = ("total", "thought")


class Mixture(Prior):
    """A mixture of Gaussians with diagonal covariances and learned weights, means and widths.

    Either over all thoughts together, or one for each thought by itself, whose components combine freely. Equal
    components would stay equal, so their first means lie `spread` from 0 in each dimension, root mean square.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        components: Gaussians K. per: `total`, one mixture over [N, D], or `thought`, N mixtures over [D].
        spread: of the first means.
    """

    card: ClassVar[Card] = Card(
        summary="a mixture of Gaussians with diagonal covariances, over all thoughts or for each",
        cost="2 K N D numbers",
        when="texts of several kinds; per = thought where each thought chooses among a few",
        reference="arXiv:1611.05013",
    )
    arguments: ClassVar[tuple[str, ...]] = ("components", "per")

    def __init__(self, thoughts: int, dim: int, components: int = 32, per: str = "total", spread: float = 0.1):
        super().__init__(thoughts, dim)
        check_range("components", components, 2, 1 << 16)
        if per not in PER:
            raise UserError(f"prior: per = {per!r}: choose from {', '.join(PER)}")
        if not 0 < spread <= 100:
            raise UserError(f"prior: spread = {spread}: above 0 (equal components stay equal), at most 100")
        self.per = per
        shape = (components, thoughts, dim) if per == "total" else (thoughts, components, dim)
        self.logits = nn.Parameter(torch.zeros(components if per == "total" else (thoughts, components)))
        self.loc = nn.Parameter(spread * torch.randn(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))

    @torch.no_grad()
    def begin_at(self, thoughts: Tensor) -> None:
        """Means at some of them, drawn at random, and all as wide as they all are."""
        count = self.loc.shape[0 if self.per == "total" else 1]
        some = thoughts[torch.randint(len(thoughts), (count,), device=thoughts.device)]
        width = unbounded(thoughts.std(0, correction=0).log())
        self.loc.copy_(some if self.per == "total" else some.transpose(0, 1))
        self.log_scale.copy_(width.expand_as(some) if self.per == "total" else width[:, None].expand_as(self.loc))

    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence: event shape [N, D]."""
        weights = dist.Categorical(logits=self.logits, validate_args=False)
        each = dist.Normal(self.loc, bounded(self.log_scale).exp(), validate_args=False)
        if self.per == "total":
            return dist.MixtureSameFamily(weights, each.to_event(2), validate_args=False)
        return dist.MixtureSameFamily(weights, each.to_event(1), validate_args=False).to_event(1)
