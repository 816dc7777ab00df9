"""What a guide's shared parameters learn from: encoders and flows."""

from __future__ import annotations

from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_ltm.inference.posterior import Posterior
from pyro_ltm.objectives import as_objective
from pyro_ltm.types import Batch, frozen


def guide_loss(model: nn.Module, batch: Batch, posterior: Posterior, objective: ELBO) -> Tensor:
    """The loss of the parameters that all sequences share, summed over the batch in nats; the decoder is held still.

    After the fast steps, where the graph reaches back through them; an encoder that they cut off learns where it starts
    them (arXiv:1710.06085).
    """
    guide, state = posterior.guide, posterior.state
    if guide.learning == "semi-amortized":
        state = state | guide.init(batch)
    with frozen(model):
        return as_objective(objective).differentiable_loss(model, guide, batch, state)
