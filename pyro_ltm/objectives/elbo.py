"""The evidence lower bound, with the KL estimated or exact."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from pyro_ltm.objectives.base import Objective, Terms


class MonteCarloELBO(Objective):
    """E_q[log p(x | z) + log p(z) - log q(z)], all of it estimated: works with every guide that has a density.

    Kingma and Welling, arXiv:1312.6114.
    """

    def bound(self, terms: Terms) -> Tensor:
        """[B] mean over particles."""
        return (terms.log_likelihood - self.beta * (terms.log_guide - terms.log_prior)).mean(0)


class AnalyticELBO(Objective):
    """E_q[log p(x | z)] - KL(q || p) with the KL in closed form: less noise, where the guide has one.

    Kingma and Welling, arXiv:1312.6114, appendix B.
    """

    needs_analytic_kl: ClassVar[bool] = True

    def bound(self, terms: Terms) -> Tensor:
        """[B] mean over particles."""
        assert terms.kl is not None  # `check` refused the guide otherwise
        return terms.log_likelihood.mean(0) - self.beta * terms.kl
