"""The VampPrior: the aggregate of the posteriors of texts that are learned."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ltm.priors.base import Prior, bounded, check_range
from pyro_ltm.registry import Card


class Vamp(Prior):
    """(1/K) sum_k q(z | u_k) over K learned pseudo-texts u_k (Tomczak and Welling, arXiv:1705.07120).

    Where an encoder gives q, a pseudo-text is a row of learned embeddings [M, W] in the place of those of M tokens,
    which the guide's own encoder reads. Elsewhere q(z | u) is the end of a fast loop, which each evaluation of the
    prior would have to run and to differentiate; there the K posteriors themselves are learned, as means and widths: a
    mixture with equal weights.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        components: K. length: M pseudo-tokens of a text.
        spread: of the first means where posteriors are learned, root mean square.
    """

    card: ClassVar[Card] = Card(
        summary="the mean of the posteriors of learned pseudo-texts; without an encoder, of learned posteriors",
        cost="2 K N D numbers; with an encoder, K short texts that it reads in each step",
        when="guides with an encoder; else mixture does the same and learns its weights",
        reference="arXiv:1705.07120",
    )
    arguments: ClassVar[tuple[str, ...]] = ("components",)

    def __init__(self, thoughts: int, dim: int, components: int = 32, length: int = 16, spread: float = 0.1):
        super().__init__(thoughts, dim)
        check_range("components", components, 2, 1 << 16)
        check_range("length", length, 1, 1 << 16)
        self.components, self.length = components, length
        self.loc: nn.Parameter | None = nn.Parameter(spread * torch.randn(components, thoughts, dim))
        self.log_scale: nn.Parameter | None = nn.Parameter(torch.zeros(components, thoughts, dim))
        self.texts: nn.Parameter | None = None
        self._encoders: tuple[Any, ...] = ()  # the guide's own, and no part of this module

    def join(self, guide: nn.Module) -> None:
        """Pseudo-texts in place of pseudo-posteriors, where `guide` has an encoder."""
        encoder: Any = getattr(guide, "encoder", None)
        if encoder is not None:
            length = min(self.length, encoder.positions.shape[0])
            weight = encoder.tokens.weight.detach()
            self.texts = nn.Parameter(weight.new_empty(self.components, length, weight.shape[1]).normal_())
            self.loc = self.log_scale = None
            self._encoders = (encoder,)

    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence: event shape [N, D]."""
        loc, scale = self._components()
        weights = dist.Categorical(logits=loc.new_zeros(self.components), validate_args=False)
        each = dist.Normal(loc, scale, validate_args=False).to_event(2)
        return dist.MixtureSameFamily(weights, each, validate_args=False)

    def _components(self) -> tuple[Tensor, Tensor]:
        """Means and widths, [K, N, D] each."""
        if self.loc is not None and self.log_scale is not None:
            return self.loc, bounded(self.log_scale).exp()
        state = self._encoders[0].read(self.texts)
        return state["loc"], (state["log_variance"] / 2).exp()
