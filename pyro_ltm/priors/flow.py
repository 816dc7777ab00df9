"""A normalizing flow: invertible networks that bend N(0, I)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, cast

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineCoupling, Permute
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform

from pyro_ltm.errors import UserError
from pyro_ltm.priors.base import Prior, bounded, check_range, perceptron
from pyro_ltm.registry import Card
from pyro_ltm.weights import Weights


class Flow(Prior):
    """Pyro's affine couplings (RealNVP, arXiv:1605.08803), between which the order of the N D numbers is turned round.

    Starts at N(0, I).

    Args:
        thoughts: thought vectors N. dim: width D of each.
        depth: couplings; each moves one half of the numbers given the other. hidden: width of their networks.
    """

    card: ClassVar[Card] = Card(
        summary="a normalizing flow (RealNVP, by Pyro's affine couplings)",
        cost="a small network for each coupling",
        when="a prior of any shape, with an exact density; to fit one after training",
        reference="arXiv:1605.08803",
    )
    arguments: ClassVar[tuple[str, ...]] = ("depth",)

    def __init__(self, thoughts: int, dim: int, depth: int = 4, hidden: int = 128):
        super().__init__(thoughts, dim)
        if thoughts * dim < 2:
            raise UserError(f"prior: flow over {thoughts} thoughts of dim {dim}: at least 2 numbers, in two halves")
        check_range("depth", depth, 1, 64)
        check_range("hidden", hidden, 1, 1 << 14)
        self.fixed = thoughts * dim // 2
        moved = thoughts * dim - self.fixed
        self.networks = nn.ModuleDict({str(at): perceptron(self.fixed, hidden, 2 * moved) for at in range(depth)})
        self.loc: Tensor
        self.register_buffer("loc", torch.zeros(thoughts * dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence: event shape [N, D]."""
        weights, turned = Weights(self.networks), torch.arange(len(self.loc) - 1, -1, -1, device=self.loc.device)
        transforms: list[object] = []
        for at in self.networks:
            # New ones each time: they keep what they computed last, whatever the weights have become.
            transforms += [AffineCoupling(self.fixed, _network(weights, at)), Permute(turned)]
        transforms.append(ReshapeTransform(self.loc.shape, torch.Size([self.thoughts, self.dim])))
        base = dist.Normal(self.loc, torch.ones_like(self.loc), validate_args=False).to_event(1)
        return dist.TransformedDistribution(base, transforms, validate_args=False)


def _network(weights: Weights, at: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A coupling's shift and log scale from the half that is given, by the network of this name."""

    def read(given: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = cast(nn.ModuleDict, weights.module())[at](given).chunk(2, dim=-1)
        return shift, bounded(log_scale)

    return read
