"""The chi upper bound on the evidence."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from pyro_ltm.objectives.base import Objective, Terms, raise_draws, require
from pyro_ltm.registry import Card


class Chi(Objective):
    """(1/n) log E_q[w^n] with w = p(x, z) / q(z), n > 1: CUBO, an upper bound on the evidence, to be lowered.

    Its q covers the posterior, being charged for wherever it is too narrow. Two warnings. The estimate from K draws is
    biased low (the log of a mean), so no figure from finitely many draws is itself an upper bound. And w^n has heavy
    tails: where q is narrower than the posterior its variance can be infinite, and in many dimensions one draw takes
    all the weight (arXiv:2010.09541).

    So the gradient to q is the doubly reparameterized one: with log q's parameters stopped and v = w^n / sum w^n, it is
    (1 - n) sum_k v_k dlog w_k/dz dz/dphi. It is zero where q is the posterior, and with few draws it tends to (n - 1)
    times that of `stl`, where the plain one lowers an estimate that has no lower end. The decoder, whom a lower upper
    bound tells nothing, learns by the ELBO. Dieng et al., arXiv:1611.00328; the gradient is by the identity of
    arXiv:1810.04152.

    Args:
        order: n, above 1.
        particles: draws K.
    """

    card: ClassVar[Card] = Card(
        summary="upper bound on the evidence (CUBO); K draws estimate it too low, and noisily",
        cost="K decoder passes, and log q a second time",
        when="a q that covers the posterior; with an ELBO, a bracket of the evidence where q is close to it",
        reference="arXiv:1611.00328",
    )
    arguments: ClassVar[tuple[str, ...]] = ("order", "particles")
    fewest_particles: ClassVar[int] = 2
    likelihood_alone: ClassVar[bool] = False

    def __init__(self, order: float = 2.0, particles: int = 16):
        super().__init__(particles)  # no beta: below 1/n the bound would be lowered by leaving the posterior
        require(1 < order < math.inf, "order", order, "a number above 1")
        self.order = order

    def value(self, terms: Terms) -> Tensor:
        """[B] mean of the weights' powers, on the scale of log weights."""
        return ((self.order * terms.log_weight).logsumexp(0) - math.log(self.num_particles)) / self.order

    def guide_loss(self, terms: Terms) -> Tensor:
        """[B] the value, which is to fall; by its gradient draw k counts (n - 1) v_k."""
        log_weight = terms.pathwise.log_weight
        return raise_draws(self.value(terms), (self.order - 1) * (self.order * log_weight).softmax(0), log_weight)

    def decoder_loss(self, terms: Terms) -> Tensor:
        """[B] minus the ELBO."""
        return -self.log_weight(terms).mean(0)
