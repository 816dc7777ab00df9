"""The least distortion at a given mean rate."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_ltm.objectives.base import Objective, Terms, require
from pyro_ltm.registry import Card

PACE = 0.2
"""By so much the log of the multiplier moves in a slow step, for each share of the target that the rate is off."""
LEAST, MOST = 1e-2, 1e2
"""Limits of the multiplier: while the decoder does not yet use its thoughts, it is not to fall without end."""


class MeanRate(Objective):
    """-distortion - lambda (rate - nats): as much KL as asked for on average over texts, and the least distortion.

    One multiplier lambda for all sequences, which training moves after each slow step: up while the mean rate of its
    sequences is above the target, down while it is below (dual ascent). It is saved with the weights, so other texts
    get about the same mean rate, and a text that has more to tell gets more: a nat of rate then saves equally much in
    all of them, which is the least distortion of a corpus at this rate. `target-rate` holds each sequence to its own.

    A fit sees the ELBO with the KL weighted by lambda, so that this is for every guide with a density, takes no more
    fast steps than the ELBO, and no sequence's posterior depends on its batch. No bound. Alemi et al.,
    arXiv:1711.00464.

    Args:
        nats: mean KL of a sequence.
        particles: draws K.
        multiplier: lambda as training begins; small, for thoughts have to be cheap until the decoder reads them.
    """

    card: ClassVar[Card] = Card(
        summary="least distortion at a given mean KL, by a multiplier that training moves",
        cost="one decoder pass a particle",
        when="how much thoughts are to carry is given (`train --rate`)",
        reference="arXiv:1711.00464",
    )
    arguments: ClassVar[tuple[str, ...]] = ("nats", "particles")
    is_linear: ClassVar[bool] = True
    likelihood_alone: ClassVar[bool] = False
    reads_kl: bool = True

    def __init__(self, nats: float = 4.0, particles: int = 1, multiplier: float = 0.1):
        super().__init__(particles)
        require(0 < nats < math.inf, "nats", nats, "a number above 0")
        require(LEAST <= multiplier <= MOST, "multiplier", multiplier, f"from {LEAST:g} to {MOST:g}")
        self.nats = nats
        self.multiplier = multiplier
        self.learned: Multiplier = Multiplier(multiplier)

    def value(self, terms: Terms) -> Tensor:
        """[B] minus the distortion, less the multiplied excess of the rate."""
        return -terms.distortion - self.learned() * (terms.rate - self.nats)

    def after_step(self, rate: Tensor) -> None:
        """Moves the multiplier by the mean rate of a slow step's sequences; not where that step was not taken."""
        self.learned.move(PACE * (rate / self.nats - 1).clamp(-1, 1).nan_to_num(0.0))


class Multiplier(nn.Module):
    """A positive number that is saved with the weights."""

    log: Tensor

    def __init__(self, first: float):
        super().__init__()
        self.register_buffer("log", torch.tensor(math.log(first)))

    def forward(self) -> Tensor:
        """The number, a scalar without gradient."""
        return self.log.exp()

    @torch.no_grad()
    def move(self, by: Tensor) -> None:
        """Adds to its log, within the limits."""
        self.log.add_(by.to(self.log)).clamp_(math.log(LEAST), math.log(MOST))
