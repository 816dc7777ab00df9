"""The best distortion at a given rate."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from pyro_ltm.objectives.base import Objective, Terms, require
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State


class TargetRate(Objective):
    """-distortion - lambda (rate - nats): as much KL as asked for, and the least distortion that it buys (GECO).

    Each sequence has a multiplier lambda of its own, the local parameter `log_multiplier`, which the fast optimizer
    moves along with q: up while the rate is above the target, down while it is below. At the solution the second term
    vanishes, and the value is minus the distortion at the target rate (the ELBO lies `nats` below it); before that it
    is no bound. Outside of a fit, where the state has no multiplier, lambda is 1.

    Its gradient is the rate's error as a share of the target, so that one learning rate suits every target. The rate is
    exact where the guide has a closed form, else estimated from the same draws. Rezende and Viola, arXiv:1810.00597,
    who hold the distortion and not the rate; Alemi et al., arXiv:1711.00464, for the rate.

    Args:
        nats: the KL that each sequence is to have.
        particles: draws K.
    """

    card: ClassVar[Card] = Card(
        summary="least distortion at a given KL a sequence, by a multiplier",
        cost="one decoder pass a particle; needs some tens of fast steps to settle",
        when="the KL a sequence is given: rate-distortion curves, thoughts that would collapse",
        reference="arXiv:1810.00597",
    )
    arguments: ClassVar[tuple[str, ...]] = ("nats", "particles")
    moves_within_fit: bool = True
    is_linear: ClassVar[bool] = True
    likelihood_alone: ClassVar[bool] = False
    reads_kl: bool = True

    def __init__(self, nats: float = 4.0, particles: int = 1):
        super().__init__(particles)
        require(0 < nats < math.inf, "nats", nats, "a number above 0")
        self.nats = nats

    def local(self, batch: Batch) -> State:
        """`log_multiplier` [B], zero: the ELBO's own weight."""
        return {"log_multiplier": torch.zeros(batch.size, device=batch.device)}

    def value(self, terms: Terms) -> Tensor:
        """[B] minus the distortion, less the multiplied excess of the rate."""
        excess = terms.rate - self.nats
        log_multiplier = terms.state.get("log_multiplier", torch.zeros_like(excess))
        # Zero, with the gradient by which an optimizer that raises the bound moves the multiplier the other way.
        ascent = (log_multiplier - log_multiplier.detach()) * (excess / self.nats).detach()
        return -terms.distortion - log_multiplier.detach().exp() * excess + ascent
