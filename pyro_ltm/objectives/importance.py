"""The importance-weighted bound, with its plain gradient and with the doubly reparameterized one."""

from __future__ import annotations

import math
from abc import ABC
from typing import ClassVar

from torch import Tensor

from pyro_ltm.objectives.base import MultiSample, Terms, raise_draws
from pyro_ltm.registry import Card


class _Weighted(MultiSample, ABC):
    """The log of the mean weight."""

    def value(self, terms: Terms) -> Tensor:
        """[B] log of the mean weight."""
        return self.log_weight(terms).logsumexp(0) - math.log(self.num_particles)


class IWAE(_Weighted):
    """log (1/K) sum_k w_k with w = p(x, z) / q(z): the ELBO at K = 1, the evidence as K grows.

    Burda, Grosse and Salakhutdinov, arXiv:1509.00519.
    """

    card: ClassVar[Card] = Card(
        summary="importance-weighted bound of K draws, tighter than the ELBO",
        cost="K decoder passes; the signal in q's gradient shrinks as K grows (arXiv:1802.04537)",
        when="a tighter bound for the decoder; for q, dreg has the better gradient",
        reference="arXiv:1509.00519",
    )


class DReG(_Weighted):
    """The importance-weighted bound with the doubly reparameterized gradient to q; the decoder's stays IWAE's.

    With log q's parameters stopped and v = w / sum w, the gradient through draw k counts v_k^2 instead of v_k. That has
    the same mean as IWAE's gradient, no noise where q is the posterior, and a signal that grows with K. With a weight
    beta of the KL the factor v_k becomes 1 - beta + beta v_k, by the same identity. Tucker et al., arXiv:1810.04152.
    """

    card: ClassVar[Card] = Card(
        summary="importance-weighted bound, doubly reparameterized gradient",
        cost="as iwae, and log q a second time",
        when="iwae's bound for decoder and q alike",
        reference="arXiv:1810.04152",
    )
    needs_independent_draws: ClassVar[bool] = True

    def guide_loss(self, terms: Terms) -> Tensor:
        """[B] minus the value; by its gradient draw k counts v_k (1 - beta + beta v_k)."""
        log_weight = self.log_weight(terms.pathwise)
        share = log_weight.softmax(0)
        return raise_draws(-self.value(terms), share * (1 - self.beta + self.beta * share), log_weight)
