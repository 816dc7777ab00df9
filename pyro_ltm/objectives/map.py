"""The joint log density, for posteriors that are points or draws."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from pyro_ltm.objectives.base import Objective, Terms
from pyro_ltm.registry import Card


class MAP(Objective):
    """log p(x | z) + log p(z) at a point: maximum a posteriori. No bound on the evidence.

    Samplers follow it; `delta` and `laplace` climb it. A family with a width has no maximum under it.
    """

    card: ClassVar[Card] = Card(
        summary="log p(x, z) at a point; no bound",
        cost="one decoder pass",
        when="delta, laplace and the samplers",
        reference="maximum a posteriori",
    )
    is_linear: ClassVar[bool] = True
    likelihood_alone: ClassVar[bool] = False
    is_joint: ClassVar[bool] = True
    needs_density: bool = False

    def value(self, terms: Terms) -> Tensor:
        """[B] mean over particles."""
        return (terms.log_likelihood + self.beta * terms.log_prior).mean(0)
