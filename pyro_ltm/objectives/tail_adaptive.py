"""The divergence that adapts to the tail of the weights."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from pyro_ltm.objectives.base import MultiSample, Terms, raise_draws
from pyro_ltm.registry import Card


class TailAdaptive(MultiSample):
    """The ELBO's value; for q, draw k counts 1 / (number of draws that weigh at least as much): by rank, not weight.

    So the best draws lead, as under a divergence that covers the posterior, but no single weight can run away with the
    gradient. To q it is that of sum_k gamma_k log w_k with log q's parameters and the gamma_k stopped; to the decoder,
    that of the ELBO. Wang, Liu and Liu, arXiv:1810.11943, with their exponent of -1.
    """

    card: ClassVar[Card] = Card(
        summary="draws counted by the rank of their weight: a q that covers the posterior",
        cost="K decoder passes, and log q a second time",
        when="heavy tails, where chi and renyi are at the mercy of one weight",
        reference="arXiv:1810.11943",
    )
    fewest_particles: ClassVar[int] = 2
    likelihood_alone: ClassVar[bool] = False

    def value(self, terms: Terms) -> Tensor:
        """[B] mean over particles."""
        return self.log_weight(terms).mean(0)

    def guide_loss(self, terms: Terms) -> Tensor:
        """[B] minus the value; by its gradient draw k counts gamma_k."""
        log_weight = self.log_weight(terms.pathwise)
        return raise_draws(-self.value(terms), rank_weights(log_weight), log_weight)


def rank_weights(log_weight: Tensor) -> Tensor:
    """[K, B] gamma, which sum to 1: the inverse of how many draws weigh as much or more, for log weights [K, B]."""
    above = (log_weight[:, None] <= log_weight).sum(1)
    inverse = above.to(log_weight.dtype).reciprocal()
    return inverse / inverse.sum(0)
