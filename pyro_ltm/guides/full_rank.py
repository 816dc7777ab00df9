"""A Gaussian with every correlation."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ltm.divergence import normal_of
from pyro_ltm.errors import UserError
from pyro_ltm.guides.base import Guide, check_size
from pyro_ltm.guides.gaussian import OverThoughts, from_relative, times, to_relative, triangle
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State

BLOCKS = ("thought", "all")


class FullRank(Guide):
    """A Gaussian with one covariance C C^T for each thought vector, or one over all of them (arXiv:1603.00788).

    C is lower triangular (`triangle`): its diagonal as log variances, and the entries below. Starts at the prior. A
    sequence has N D (D + 3) / 2 numbers (3.2 million for 24 thoughts of 512), or with one block P (P + 3) / 2 where
    P = N D; at most `MOST_NUMBERS`.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        block: `thought`: each thought vector has a covariance of its own, independent of the others; `all`: one
            covariance over all N D numbers.
    """

    card: ClassVar[Card] = Card(
        summary="a Gaussian with every correlation, within each thought or over all",
        cost="N D^2 / 2 numbers a sequence, or N^2 D^2 / 2",
        when="small models, where mean-field is too narrow; the truth among Gaussians",
        reference="arXiv:1603.00788",
    )
    arguments: ClassVar[tuple[str, ...]] = ("block",)
    has_analytic_kl: ClassVar[bool] = True
    has_natural_gradient: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int, block: str = "thought"):
        super().__init__(thoughts, dim)
        if block not in BLOCKS:
            raise UserError(f"guide: block = {block!r}: choose from {', '.join(BLOCKS)}")
        self.blocks, self.size = (thoughts, dim) if block == "thought" else (1, thoughts * dim)
        self.block, self.has_kl_by_thought = block, block == "thought"
        smaller = "low-rank or kronecker" if block == "thought" else "block = 'thought', or low-rank or kronecker"
        numbers = self.blocks * self.size * (self.size + 3) // 2
        check_size(f"full-rank with block = '{block}'", numbers, f"choose {smaller}")

    def init(self, batch: Batch) -> State:
        """`loc` [B, N, D], and of G blocks of P numbers `log_variance` [B, G, P] and `lower` [B, G, P (P - 1) / 2]."""
        blank = torch.zeros(batch.size, self.blocks, self.size, device=batch.device)
        return {
            "loc": blank.reshape(-1, self.thoughts, self.dim),
            "log_variance": blank.clone(),
            "lower": blank.new_zeros(*blank.shape[:2], self.size * (self.size - 1) // 2),
        }

    def distribution(self, state: State) -> dist.TorchDistribution:
        """N(loc, C C^T) over [N, D]."""
        loc, factor = self._by_block(state["loc"]), _factor(state)
        blocks = dist.MultivariateNormal(loc, scale_tril=factor, validate_args=False).to_event(1)
        return OverThoughts(blocks, (self.thoughts, self.dim))

    def kl_by_thought(self, state: State, prior: Distribution) -> Tensor | None:
        """KL of each thought vector to its prior in nats, [..., B, N]; only where each has a covariance of its own.

        None where the prior is not of independent Normals.
        """
        if not self.has_kl_by_thought:
            return super().kl_by_thought(state, prior)
        normal = normal_of(prior)
        if normal is None:
            return None
        loc, scale = normal
        away, width = (state["loc"] - loc) / scale, _factor(state) / scale[..., None]
        spread = away.square().sum(-1) + width.square().sum((-2, -1))
        return 0.5 * (spread - self.dim - state["log_variance"].sum(-1)) + scale.log().sum(-1)

    def natural_gradient(self, state: State, gradients: State) -> State:
        """The covariance times the gradient of the mean; for C see `to_relative` (arXiv:1803.09151)."""
        factor = _factor(state)
        step = to_relative(factor, gradients["log_variance"], gradients["lower"])
        step = step - step.diagonal(dim1=-2, dim2=-1).diag_embed() / 2
        log_variance, lower = from_relative(factor, step)
        loc = times(factor, times(factor.mT, self._by_block(gradients["loc"])))
        return {"loc": loc.view_as(state["loc"]), "log_variance": log_variance, "lower": lower}

    def _by_block(self, value: Tensor) -> Tensor:
        return value.reshape(-1, self.blocks, self.size)


def _factor(state: State) -> Tensor:
    """C, [B, G, P, P]."""
    return triangle(state["log_variance"], state["lower"])
