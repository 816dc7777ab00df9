"""A Gaussian in which the thoughts of each layer lean on those of the layers before."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.guides.base import Guide, check_size
from pyro_ltm.guides.gaussian import OverThoughts, entry_scale, times
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State


class Layered(Guide):
    """The thoughts of each layer given those of the layers before: linear, with Gaussian noise (arXiv:1404.4114).

    z_l = m_l + sum_{j<l} W_lj (z_j - m_j) + s_l eps_l, where z_l are the N D / L numbers of layer l (thoughts are
    consecutive groups, one for each layer). Within a layer they are independent given the layers before. Starts at the
    prior; with one layer it is mean-field. A sequence has 2 N D + (N D)^2 (L - 1) / (2 L) numbers.

    Args:
        thoughts: thought vectors N over all layers. dim: width D of each. layers: groups L of thoughts.
    """

    card: ClassVar[Card] = Card(
        summary="a Gaussian in which each layer's thoughts lean on those of the layers before",
        cost="N^2 D^2 / 2 numbers a sequence, nearly",
        when="small models of several layers",
        reference="arXiv:1404.4114",
    )
    has_analytic_kl: ClassVar[bool] = True
    has_natural_gradient: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int, layers: int = 1):
        super().__init__(thoughts, dim)
        if layers < 1 or thoughts % layers:
            raise UserError(f"guide: layers = {layers}: at least 1, and a divisor of the {thoughts} thoughts")
        self.layers = layers
        self.size = thoughts // layers * dim
        self.pairs = layers * (layers - 1) // 2
        self.entry_scale = entry_scale(thoughts * dim)
        numbers = 2 * thoughts * dim + self.pairs * self.size**2
        check_size(f"layered over {layers} layers of {self.size} numbers", numbers, "choose low-rank or kronecker")

    def init(self, batch: Batch) -> State:
        """`loc` and `log_variance` [B, N, D]; `weight` [B, L (L - 1) / 2, P, P], W times `entry_scale(N D)`.

        P = N D / L. Pairs (l, j) are in the order (1, 0), (2, 0), (2, 1), ...; one layer has none, and no `weight`.
        """
        loc = torch.zeros(batch.size, self.thoughts, self.dim, device=batch.device)
        state = {"loc": loc, "log_variance": loc.clone()}
        if self.pairs:
            state["weight"] = loc.new_zeros(batch.size, self.pairs, self.size, self.size)
        return state

    def distribution(self, state: State) -> dist.TorchDistribution:
        """N(loc, C C^T) over [N, D], where C = (I - W)^-1 diag(s)."""
        if not self.pairs:
            return dist.Normal(state["loc"], (state["log_variance"] / 2).exp(), validate_args=False).to_event(2)
        normal = dist.MultivariateNormal(state["loc"].flatten(1), scale_tril=self._factor(state), validate_args=False)
        return OverThoughts(normal, (self.thoughts, self.dim))

    def natural_gradient(self, state: State, gradients: State) -> State:
        """The mean: times the covariance; row i of W_l: times s_i^2 and the precision of the layers before."""
        natural = {"log_variance": 2 * gradients["log_variance"]}
        if not self.pairs:
            return {"loc": state["log_variance"].exp() * gradients["loc"], **natural}
        factor = self._factor(state)
        loc = times(factor, times(factor.mT, gradients["loc"].flatten(1)))
        scale = (state["log_variance"] / 2).exp().flatten(1).unsqueeze(-1)
        whiten = self._residual(state) / scale  # whiten @ (z - m) = eps, and its leading part does so for z_<l
        gradient = self.entry_scale**2 * self._matrix(gradients["weight"])  # of W itself, which is smaller
        step = torch.zeros_like(factor)
        for start in range(self.size, self.layers * self.size, self.size):
            rows, before = slice(start, start + self.size), whiten[:, :start, :start]
            step[:, rows, :start] = scale[:, rows].square() * (gradient[:, rows, :start] @ before.mT @ before)
        blocks = step.unflatten(-1, (self.layers, self.size)).unflatten(1, (self.layers, self.size))
        later, earlier = self._pairs(step)
        weight = self.entry_scale * blocks.transpose(2, 3)[:, later, earlier]
        return {"loc": loc.view_as(state["loc"]), "weight": weight, **natural}

    def _factor(self, state: State) -> Tensor:
        """C, [B, N D, N D]."""
        scale = torch.diag_embed((state["log_variance"] / 2).exp().flatten(1))
        return torch.linalg.solve_triangular(self._residual(state), scale, upper=False, unitriangular=True)

    def _residual(self, state: State) -> Tensor:
        """I - W, [B, N D, N D]."""
        weight = self._matrix(state["weight"])
        return torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device) - weight

    def _matrix(self, weight: Tensor) -> Tensor:
        """W as one strictly lower triangular matrix [B, N D, N D]."""
        blocks = weight.new_zeros(len(weight), self.layers, self.layers, self.size, self.size)
        later, earlier = self._pairs(weight)
        blocks[:, later, earlier] = weight / self.entry_scale
        return blocks.transpose(2, 3).reshape(len(weight), self.layers * self.size, -1)

    def _pairs(self, like: Tensor) -> Tensor:
        """Layers l and j < l, [2, L (L - 1) / 2]."""
        return torch.tril_indices(self.layers, self.layers, offset=-1, device=like.device)
