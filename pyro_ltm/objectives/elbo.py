"""The evidence lower bound, with the KL estimated or exact."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from torch import Tensor

from pyro_ltm.objectives.base import Objective, Terms
from pyro_ltm.registry import Card


class _Estimated(Objective, ABC):
    """The mean log weight."""

    is_linear: ClassVar[bool] = True
    arguments: ClassVar[tuple[str, ...]] = ("particles",)

    def value(self, terms: Terms) -> Tensor:
        """[B] mean over particles."""
        return self.log_weight(terms).mean(0)


class MonteCarloELBO(_Estimated):
    """E_q[log p(x | z) + log p(z) - log q(z)], all of it estimated: works with every guide that has a density.

    Kingma and Welling, arXiv:1312.6114.
    """

    card: ClassVar[Card] = Card(
        summary="ELBO, the KL estimated from the same draws",
        cost="one decoder pass a particle; noisier than analytic-elbo",
        when="comparisons, and scores; a fit of few steps is better with stl",
        reference="arXiv:1312.6114",
    )


class AnalyticELBO(Objective):
    """E_q[log p(x | z)] - KL(q || p) with the KL in closed form: less noise, where the guide has one.

    Kingma and Welling, arXiv:1312.6114, appendix B.
    """

    card: ClassVar[Card] = Card(
        summary="ELBO, the KL in closed form",
        cost="one decoder pass a particle",
        when="the default, for every Gaussian guide",
        reference="arXiv:1312.6114",
    )
    arguments: ClassVar[tuple[str, ...]] = ("particles",)
    is_linear: ClassVar[bool] = True
    reads_kl: bool = True
    needs_analytic_kl: ClassVar[bool] = True

    def value(self, terms: Terms) -> Tensor:
        """[B] mean over particles."""
        assert terms.kl is not None  # `check` refused the guide otherwise
        return terms.log_likelihood.mean(0) - self.beta * terms.kl


class StickingTheLanding(_Estimated):
    """The estimated ELBO whose gradient to q flows through the draws alone: it has no noise where q is the posterior.

    What it leaves out, the gradient of log q to its parameters at the draw, is zero on average. Roeder et al.,
    arXiv:1703.09194.
    """

    card: ClassVar[Card] = Card(
        summary="ELBO, estimated; its gradient has no noise where q is the posterior",
        cost="as elbo, and log q a second time",
        when="the guide has no closed-form KL (mixtures, flows)",
        reference="arXiv:1703.09194",
    )

    def guide_loss(self, terms: Terms) -> Tensor:
        """[B] minus the value."""
        return -self.value(terms.pathwise)

    decoder_loss = guide_loss
