"""Posteriors that an encoder proposes: taken as they are, or refined by fast steps."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from pyro_ltm.guides.base import Learning
from pyro_ltm.guides.encoder import Encoder
from pyro_ltm.guides.mean_field import IndependentNormals
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State


class _Encoded(IndependentNormals, ABC):
    """Independent Normals whose first means and variances an encoder reads off the sequence."""

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
        super().__init__(thoughts, dim)
        sizes = {"vocab_size": vocab_size, "max_length": max_length, "width": width, "heads": heads}
        self.encoder = Encoder(thoughts, dim, **sizes, layers=encoder_layers)

    def init(self, batch: Batch) -> State:
        """`loc` and `log_variance`, each [B, N, D], as the encoder proposes them."""
        state: State = self.encoder(batch)
        return state


class Amortized(_Encoded):
    """The encoder's proposal without fast steps: a variational autoencoder, the paper's collapsing baseline.

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
