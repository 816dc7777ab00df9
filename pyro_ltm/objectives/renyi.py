"""Variational Rényi bounds: from the ELBO to the importance-weighted bound, and their limit."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from pyro_ltm.objectives.base import MultiSample, Objective, Terms, require
from pyro_ltm.registry import Card


class Renyi(Objective):
    """1 / (1 - alpha) log (1/K) sum_k w_k^(1 - alpha): the ELBO at alpha = 1, the importance-weighted bound at 0.

    Above 1 it seeks modes harder than the ELBO does. Li and Turner, arXiv:1602.02311.

    Args:
        alpha: order of the divergence, at least 0. Close to 1, but not at it, the value loses digits: about 1e-7 /
            |1 - alpha| nats in single precision; the gradient loses none.
        particles, beta, warmup: as everywhere.
    """

    card: ClassVar[Card] = Card(
        summary="Rényi bound of order alpha: elbo at 1, iwae at 0",
        cost="K decoder passes",
        when="a q that covers more of the posterior (alpha below 1), or less (above)",
        reference="arXiv:1602.02311",
    )
    arguments: ClassVar[tuple[str, ...]] = ("alpha", "particles")

    def __init__(self, alpha: float = 0.5, particles: int = 8, beta: float = 1.0, warmup: float = 0.0):
        super().__init__(particles, beta, warmup)
        require(0 <= alpha < math.inf, "alpha", alpha, "a number of at least 0")
        self.alpha = alpha

    def value(self, terms: Terms) -> Tensor:
        """[B] mean of the weights' powers, on the scale of log weights."""
        log_weight, power = self.log_weight(terms), 1 - self.alpha
        if power == 0:
            return log_weight.mean(0)
        return ((power * log_weight).logsumexp(0) - math.log(self.num_particles)) / power


class VRMax(MultiSample):
    """max_k log w_k: the Rényi bound of order minus infinity, which learns from the best draw alone.

    No bound: with enough draws it exceeds the evidence, unless q is the posterior. Li and Turner, arXiv:1602.02311.
    """

    card: ClassVar[Card] = Card(
        summary="the best of K log weights; no bound",
        cost="K decoder passes",
        when="comparisons; iwae does as well and is a bound",
        reference="arXiv:1602.02311",
    )

    def value(self, terms: Terms) -> Tensor:
        """[B] the largest log weight."""
        return self.log_weight(terms).amax(0)
