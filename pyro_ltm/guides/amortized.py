"""Posteriors that an encoder proposes: taken as they are, or refined by fast steps."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyro_ltm.guides.base import Guide, Learning
from pyro_ltm.guides.encoder import Encoder
from pyro_ltm.guides.mean_field import independent_normals, normal_kl_by_thought, normal_natural_gradient
from pyro_ltm.types import Batch, Card, State


class _Encoded(Guide, ABC):
    """Independent Normals whose first means and variances an encoder reads off the sequence."""

    has_analytic_kl: ClassVar[bool] = True
    has_kl_by_thought: bool = True
    has_natural_gradient: ClassVar[bool] = True

    def __init__(
        self, thoughts: int, dim: int, vocab_size: int, max_length: int, width: int, encoder_layers: int, heads: int
    ):
        super().__init__(thoughts, dim)
        self.encoder = Encoder(
            thoughts,
            dim,
            vocab_size=vocab_size,
            max_length=max_length,
            width=width,
            layers=encoder_layers,
            heads=heads,
        )

    def init(self, batch: Batch) -> State:
        """`loc` and `log_variance`, each [B, N, D], as the encoder says."""
        state: State = self.encoder(batch)
        return state

    def distribution(self, state: State) -> dist.TorchDistribution:
        """Normal(loc, exp(log_variance / 2)) over [N, D]."""
        return independent_normals(state)

    def kl_by_thought(self, state: State, prior: Distribution) -> Tensor | None:
        """KL of each thought vector to N(0, I) in nats, [B, N]."""
        return normal_kl_by_thought(state, prior)

    def natural_gradient(self, state: State, gradients: State) -> State:
        """As of `MeanField`."""
        return normal_natural_gradient(state, gradients)


class Amortized(_Encoded):
    """What the encoder says, with no fast steps: a variational autoencoder, the paper's collapsing baseline.

    The encoder learns in the slow steps, together with the decoder. Kingma and Welling, arXiv:1312.6114.

    Args:
        thoughts: thought vectors N. dim: width D of each. vocab_size, max_length: of the decoder.
        width: of the encoder. encoder_layers: of it. heads: of its attention.
    """

    card: ClassVar[Card] = Card(
        summary="an encoder's Normals, no fast steps: the VAE",
        cost="one encoder pass; an encoder to train",
        when="speed after training; watch for collapse, and compare with semi-amortized",
        reference="arXiv:1312.6114",
    )
    learning: Learning = "amortized"

    def __init__(
        self,
        thoughts: int,
        dim: int,
        vocab_size: int,
        max_length: int,
        width: int = 128,
        encoder_layers: int = 2,
        heads: int = 4,
    ):
        super().__init__(thoughts, dim, vocab_size, max_length, width, encoder_layers, heads)


class SemiAmortized(_Encoded):
    """The encoder starts, fast steps refine.

    Detached (the default), the encoder learns from the bound at its own proposal, the decoder from the refined
    posterior (Krishnan et al., arXiv:1710.06085). Unrolled, the gradient of the refined bound goes back through the
    fast steps to encoder and decoder, with second-order derivatives (Kim et al., arXiv:1802.02550): the encoder learns
    to start well rather than to end well.

    Args:
        thoughts: thought vectors N. dim: width D of each. vocab_size, max_length: of the decoder.
        unrolled: second order, through the fast steps.
        width: of the encoder. encoder_layers: of it. heads: of its attention.
    """

    card: ClassVar[Card] = Card(
        summary="an encoder starts, fast steps refine",
        cost="as mean-field, and an encoder; unrolled: memory and time of a graph through all fast steps",
        when="fewer fast steps for the same bound",
        reference="arXiv:1802.02550",
    )
    arguments: ClassVar[tuple[str, ...]] = ("unrolled",)
    learning: Learning = "semi-amortized"

    def __init__(
        self,
        thoughts: int,
        dim: int,
        vocab_size: int,
        max_length: int,
        unrolled: bool = False,
        width: int = 128,
        encoder_layers: int = 2,
        heads: int = 4,
    ):
        super().__init__(thoughts, dim, vocab_size, max_length, width, encoder_layers, heads)
        self.unrolled = unrolled
        if unrolled:
            self.learning, self.needs_double_backward = "unrolled", True
