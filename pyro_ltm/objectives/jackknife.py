"""The jackknife estimate of the evidence: the importance-weighted bound without the first order of its bias."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from pyro_ltm.objectives.base import MultiSample, Terms
from pyro_ltm.objectives.importance import DReG
from pyro_ltm.registry import Card


class Jackknife(MultiSample):
    """K L_K - (K - 1) mean_k L_(K-1) without draw k, where L_K is the importance-weighted bound of K draws.

    L_K falls short of the evidence by O(1/K), this by O(1/K^2): the jackknife of order 1. It is an estimate and NO
    lower bound: in expectation it may exceed the evidence. Nor has it a maximum over q: it gains by every nat that the
    best draw lies above the second, and a q that climbed it would widen without end. So q is fitted by `DReG` with as
    many draws, and the decoder learns by the jackknife. Nowozin, ICLR 2018.

    Args:
        particles: draws K, at least 2. The K means of the others take K^2 numbers a sequence.
        beta, warmup: as everywhere.

    Raises:
        UserError: an option out of its range.
    """

    card: ClassVar[Card] = Card(
        summary="estimate of the evidence from K draws, with less bias than iwae; no lower bound",
        cost="K decoder passes; more noise than iwae",
        when="a decoder that is to learn from less biased weights; q is fitted by dreg",
        reference="Nowozin 2018",
    )
    needs_independent_draws: ClassVar[bool] = True  # as that does
    fewest_particles: ClassVar[int] = 2

    def guide_loss(self, terms: Terms) -> Tensor:
        """[B] that of `DReG`."""
        return DReG(particles=self.num_particles, beta=self.beta).guide_loss(terms)

    def value(self, terms: Terms) -> Tensor:
        """[B] the estimate."""
        log_weight, count = self.log_weight(terms), self.num_particles
        whole = log_weight.logsumexp(0) - math.log(count)
        # Left out, and not subtracted: where one weight outweighs the others nothing would be left of them.
        own = torch.eye(count, dtype=torch.bool, device=log_weight.device).unsqueeze(-1)
        others = log_weight.masked_fill(own, -math.inf).logsumexp(1) - math.log(count - 1)
        # K L_K - (K - 1) mean, written so that it is exact where all are equal.
        return whole + (count - 1) * (whole - others.mean(0))
