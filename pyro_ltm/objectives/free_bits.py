"""The ELBO with some nats of KL for free."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from pyro_ltm.objectives.base import Objective, Terms, require
from pyro_ltm.registry import Card

GROUPS = ("total", "layer", "thought")


class FreeBits(Objective):
    """E_q[log p(x | z)] - sum over groups of max(KL of the group, nats): below the floor the KL has no gradient.

    Groups are those of one sequence (the paper takes the mean over the batch first). A group below the floor is charged
    the floor, so the value is still a bound. Kingma et al., arXiv:1606.04934.

    Args:
        nats: the floor of each group.
        per: "total", one group, works with every guide that has a density; "layer" and "thought" need a guide whose
            thoughts are independent.
        particles, beta, warmup: as everywhere; beta weighs the charged KL.
        layers: L of the decoder, whose thoughts are consecutive groups of N / L; given by whoever builds the model.
    """

    card: ClassVar[Card] = Card(
        summary="ELBO with a floor under the KL, in all or for each layer or thought",
        cost="one decoder pass a particle",
        when="thoughts that collapse: up to the floor they cost nothing",
        reference="arXiv:1606.04934",
    )
    arguments: ClassVar[tuple[str, ...]] = ("nats", "per")
    is_linear: ClassVar[bool] = True
    likelihood_alone: ClassVar[bool] = False
    reads_kl: bool = True

    def __init__(
        self,
        nats: float = 2.0,
        per: str = "total",
        particles: int = 1,
        beta: float = 1.0,
        warmup: float = 0.0,
        layers: int = 1,
    ):
        super().__init__(particles, beta, warmup)
        require(0 <= nats < math.inf, "nats", nats, "a number of at least 0")
        require(per in GROUPS, "per", per, f"choose from {', '.join(GROUPS)}")
        require(layers >= 1, "layers", layers, "at least 1")
        self.nats = nats
        self.per = per
        self.layers = layers
        self.needs_kl_by_thought = per != "total"

    def refusal(self, guide: Any) -> str:
        """Why this objective does not fit `guide`; empty where it does."""
        if self.per == "layer" and not isinstance(guide, type) and guide.thoughts % self.layers:
            kind = type(guide).__name__
            return f"{kind} has {guide.thoughts} thoughts, which {self.layers} layers do not share evenly"
        return super().refusal(guide)

    def value(self, terms: Terms) -> Tensor:
        """[B] mean over particles, less what the groups are charged."""
        return -terms.distortion - self.beta * self._groups(terms).clamp(min=self.nats).sum(-1)

    def _groups(self, terms: Terms) -> Tensor:
        """[B, groups] KL of each."""
        if self.per == "total":
            return terms.rate[:, None]
        assert terms.kl_by_thought is not None  # `check` refused the guide otherwise
        if self.per == "layer":
            return terms.kl_by_thought.unflatten(-1, (self.layers, -1)).sum(-1)
        return terms.kl_by_thought
