"""A point: the mode of log p(x, z)."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.guides.base import Guide
from pyro_ltm.noise import Noise, Normals, fold, rsample_from
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State


class Delta(Guide):
    """One point for each sequence (maximum a posteriori). It has no width, its KL is infinite, and no bound scores it.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        init_loc: standard deviation of the first points. seed: of those, keyed by each sequence's id.
    """

    card: ClassVar[Card] = Card(
        summary="one point: the mode of log p(x, z)",
        cost="N D numbers a sequence; no noise",
        when="a quick code for a text; it says nothing of its certainty, and no bound scores it",
        reference="maximum a posteriori",
    )
    has_density: ClassVar[bool] = False

    def __init__(self, thoughts: int, dim: int, init_loc: float = 0.0, seed: int = 0):
        super().__init__(thoughts, dim)
        if not 0 <= init_loc <= 100:
            raise UserError(f"guide: init_loc = {init_loc}: from 0 to 100")
        self.init_loc = init_loc
        self.seed = seed

    def init(self, batch: Batch) -> State:
        """`loc`, [B, N, D]."""
        shape = torch.Size([batch.size, self.thoughts, self.dim])
        loc = torch.zeros(shape, device=batch.device)
        if self.init_loc:
            loc = loc + self.init_loc * Noise(batch.ids, device=batch.device, seed=fold(self.seed, "init")).normal(
                shape, event_dims=2
            )
        return {"loc": loc}

    def distribution(self, state: State) -> dist.TorchDistribution:
        """The point `loc`; Pyro's convention gives it the log density 0."""
        return dist.Delta(state["loc"], event_dim=2)


@rsample_from.register
def _(distribution: dist.Delta, normals: Normals) -> Tensor:
    point: Tensor = distribution.v
    return point
