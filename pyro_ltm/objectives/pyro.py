"""Pyro's own ELBOs as objectives."""

from __future__ import annotations

from typing import Any, ClassVar

from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_ltm.errors import UserError
from pyro_ltm.objectives.base import Objective, Terms
from pyro_ltm.types import Batch, State


class PyroObjective(Objective):
    """An ELBO of Pyro's or a user's own, which gives one loss for the whole batch and no terms.

    Args:
        elbo: any with `differentiable_loss`.

    Raises:
        UserError: it has none.
    """

    needs_density: bool = False  # it asks for what it needs itself
    is_per_sequence: ClassVar[bool] = False

    def __init__(self, elbo: ELBO):
        if not hasattr(elbo, "differentiable_loss"):
            ours = "'renyi:ALPHA:K' (Renyi)" if isinstance(elbo, RenyiELBO) else "'elbo' or 'iwae'"
            raise UserError(
                f"Pyro's {type(elbo).__name__} has no differentiable_loss, which the fast loop needs: use the "
                f"objective {ours}, or Pyro's Trace_ELBO"
            )
        super().__init__()
        self.elbo: Any = elbo
        self.couples_batch = type(elbo) not in (Trace_ELBO, TraceMeanField_ELBO)  # of others nobody knows

    @property
    def name(self) -> str:
        """The ELBO's class."""
        return type(self.elbo).__name__

    def value(self, terms: Terms) -> Tensor:
        """Not to be had: the ELBO runs model and guide itself."""
        raise NotImplementedError(f"{self.name} does not read terms")

    def at(self, progress: float) -> Objective:
        """Itself: it is not annealed."""
        return self

    def refusal(self, guide: Any) -> str:
        """Empty: it says itself what it cannot do."""
        return ""

    def loss_and_value(self, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> tuple[Tensor, Tensor]:
        """The loss and minus that in nats, [1] each: of the whole batch."""
        loss = self.differentiable_loss(model, guide, batch, state).reshape(1)
        return loss, -loss.detach()

    def differentiable_loss(self, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> Tensor:
        """The ELBO's own, in nats."""
        loss: Tensor = self.elbo.differentiable_loss(model, guide, batch, state)
        return loss


def as_objective(elbo: ELBO) -> Objective:
    """`elbo` itself if it is an objective of this library, else a `PyroObjective`."""
    return elbo if isinstance(elbo, Objective) else PyroObjective(elbo)
