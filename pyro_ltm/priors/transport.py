"""N(0, I) over a variable that a learned map carries to the thoughts."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ltm.priors.base import Prior
from pyro_ltm.priors.mixer import Mixer
from pyro_ltm.registry import Card


class Transport(Prior):
    """z = U(z0) with z0 from N(0, I): the posterior is fitted over z0, and the layers read z (arXiv:2602.06584).

    The site `thoughts` is z0, as are the thoughts of posteriors, files and figures; the decoder applies U to whatever
    thoughts it is given. So every guide and every objective fits, with the KL in closed form, and U need not be
    invertible. It begins as the identity.

    Args:
        thoughts: thought vectors N. dim: width D of each. depth: blocks of the map. hidden: width of their networks.
    """

    card: ClassVar[Card] = Card(
        summary="z = U(z0): N(0, I) over z0, and a learned map that the decoder applies",
        cost="a small network, in each pass of the decoder",
        when="a prior of any shape with the KL still in closed form",
        reference="arXiv:2602.06584",
    )
    arguments: ClassVar[tuple[str, ...]] = ("depth",)
    has_analytic_kl: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int, depth: int = 2, hidden: int = 128):
        super().__init__(thoughts, dim)
        self._transports = (Mixer(thoughts, dim, depth, hidden),)  # a part of the decoder, and not of this module
        self.loc: Tensor
        self.register_buffer("loc", torch.zeros(thoughts, dim), persistent=False)

    @property
    def transport(self) -> nn.Module | None:
        """U: from z0 to what the decoder's layers read, [..., N, D] each."""
        return self._transports[0]

    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence's z0: event shape [N, D]."""
        return dist.Normal(self.loc, torch.ones_like(self.loc), validate_args=False).to_event(2)
