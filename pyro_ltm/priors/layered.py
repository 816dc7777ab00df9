"""A prior in which the thoughts of each layer depend on those of the layers below."""

from __future__ import annotations

from typing import ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ltm.errors import UserError
from pyro_ltm.priors.base import Made, Prior, bounded, check_range, perceptron
from pyro_ltm.registry import Card
from pyro_ltm.weights import Weights


class Layered(Prior):
    """p(z_1) p(z_2 | z_1) ... p(z_L | z_<L): independent Normals whose means and widths a network reads off z_<l.

    z_l are the thoughts of layer l (consecutive groups). The lowest layer's are N(0, I); with one layer, all are.
    Sønderby et al., arXiv:1602.02282.

    Args:
        thoughts: thought vectors N over all layers. dim: width D of each. layers: groups L of thoughts.
        hidden: width of the networks.
    """

    card: ClassVar[Card] = Card(
        summary="each layer's thoughts given those of the layers below: Normals by a small network",
        cost="L - 1 small networks",
        when="several layers, whose thoughts repeat what lower ones say",
        reference="arXiv:1602.02282",
    )
    arguments: ClassVar[tuple[str, ...]] = ("hidden",)

    def __init__(self, thoughts: int, dim: int, layers: int = 1, hidden: int = 128):
        super().__init__(thoughts, dim)
        if layers < 1 or thoughts % layers:
            raise UserError(f"prior: layers = {layers}: at least 1, and a divisor of the {thoughts} thoughts")
        check_range("hidden", hidden, 1, 1 << 14)
        self.layers = layers
        size = thoughts // layers * dim
        self.networks = nn.ModuleDict(
            {str(layer): perceptron(layer * size, hidden, 2 * size) for layer in range(1, layers)}
        )
        self.like: Tensor
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence: event shape [N, D]."""
        return LayeredNormals(Weights(self.networks), self.layers, self.like, torch.Size([self.thoughts, self.dim]))


class LayeredNormals(Made):
    """Independent Normals for each of L layers, given the numbers of those below.

    Args:
        networks: with their weights of this moment, by layer. layers: L. like, event_shape: see `Made`.
    """

    def __init__(self, networks: Weights, layers: int, like: Tensor, event_shape: torch.Size):
        super().__init__(like, event_shape)
        self.networks, self.layers = networks, layers

    @property
    def normals(self) -> int:
        """N D."""
        return self.event_shape.numel()

    def make(self, normals: Tensor) -> Tensor:
        """See `Made`."""
        made: list[Tensor] = []
        for layer, eps in enumerate(normals.chunk(self.layers, dim=-1)):
            loc, log_scale = self._given(torch.cat(made, dim=-1) if made else eps, layer)
            made.append(loc + log_scale.exp() * eps)
        return torch.cat(made, dim=-1).unflatten(-1, self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] of thoughts [..., N, D], in nats."""
        flat = value.flatten(-2)
        size, total = flat.shape[-1] // self.layers, flat.new_zeros(())
        for layer in range(self.layers):
            loc, log_scale = self._given(flat[..., : max(layer, 1) * size], layer)
            each = dist.Normal(loc, log_scale.exp(), validate_args=False)
            total = total + each.log_prob(flat[..., layer * size : (layer + 1) * size]).sum(-1)
        return total

    def _given(self, below: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Mean and log scale of a layer's numbers given those `below`; zeros like them for the lowest."""
        if not layer:
            return torch.zeros_like(below), torch.zeros_like(below)
        loc, log_scale = cast(nn.ModuleDict, self.networks.module())[str(layer)](below).chunk(2, dim=-1)
        return loc, bounded(log_scale)
