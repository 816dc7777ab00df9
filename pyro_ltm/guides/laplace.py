"""The Laplace approximation: the mode, then the curvature there."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_ltm.errors import UserError
from pyro_ltm.guides.base import Guide, LogJoint
from pyro_ltm.guides.delta import Delta
from pyro_ltm.guides.gaussian import OverThoughts
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State

MOST = 1024
"""Latent dimensions N * D of a full covariance: each sequence has the square of that."""


class Laplace(Guide):
    """A Gaussian at the mode of log p(x, z), as wide as the curvature there says (MacKay 1992).

    While it is fitted it is a point, moved by the objective `map`; after the last fast step `finish` takes the Hessian,
    one product for each latent dimension. A decoder's log-likelihood is not concave everywhere: no direction is given
    more than the prior's width.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        covariance: `full` over all N * D dimensions (at most 1024), or `diagonal`: the inverse of the Hessian's
            diagonal, which is the best that independent Normals can do for a Gaussian posterior.
    """

    card: ClassVar[Card] = Card(
        summary="a Gaussian at the mode, as wide as the curvature there",
        cost="as delta, then N D Hessian products once",
        when="a covariance without noise; short texts, small N D",
        reference="MacKay 1992",
    )
    arguments: ClassVar[tuple[str, ...]] = ("covariance",)
    has_density: ClassVar[bool] = False  # while it is fitted
    follows_joint: ClassVar[bool] = True
    has_analytic_kl: ClassVar[bool] = True
    needs_double_backward: bool = True

    def __init__(self, thoughts: int, dim: int, covariance: str = "full"):
        super().__init__(thoughts, dim)
        if covariance not in ("full", "diagonal"):
            raise UserError(f"guide: covariance = {covariance!r}: choose full or diagonal")
        if covariance == "full" and thoughts * dim > MOST:
            raise UserError(
                f"guide: covariance = 'full' over {thoughts} x {dim} = {thoughts * dim} dimensions; at most {MOST}: "
                "use covariance = 'diagonal'"
            )
        self.covariance = covariance
        self.point = Delta(thoughts, dim)

    def init(self, batch: Batch) -> State:
        """`loc`, [B, N, D]."""
        return self.point.init(batch)

    def distribution(self, state: State) -> dist.TorchDistribution:
        """The point, until `finish` gave it a width (`scale_tril` [B, N D, N D] or `scale` [B, N, D])."""
        if "scale_tril" in state:
            return OverThoughts(
                dist.MultivariateNormal(state["loc"].flatten(1), scale_tril=state["scale_tril"]),
                state["loc"].shape[-2:],
            )
        if "scale" in state:
            return dist.Normal(state["loc"], state["scale"]).to_event(2)
        return self.point.distribution(state)

    def finish(self, state: State, log_joint: LogJoint, width: Tensor) -> State:
        """`state` with the width that the curvature at `loc` gives, where the prior's own is one."""
        scale = width.flatten().to(state["loc"])
        precision = -hessian(log_joint, state["loc"]) * scale[:, None] * scale
        if self.covariance == "diagonal":
            diagonal = precision.diagonal(dim1=-2, dim2=-1).clamp(min=1.0)
            return state | {"scale": (diagonal.rsqrt() * scale).view_as(state["loc"])}
        values, vectors = torch.linalg.eigh(precision)
        covariance = (vectors / values.clamp(min=1.0)[:, None]) @ vectors.mT
        return state | {"scale_tril": scale[:, None] * torch.linalg.cholesky(covariance)}

    def scored_distribution(self, state: State) -> dist.TorchDistribution | None:
        """The Gaussian, once it has its width."""
        return self.distribution(state) if state.keys() & {"scale_tril", "scale"} else None


def hessian(log_joint: LogJoint, loc: Tensor) -> Tensor:
    """Second derivatives [B, N D, N D] of log p(x, z) at z = `loc` [B, N, D], made symmetric."""
    leaf = loc.detach().requires_grad_()
    # torch's fused attention has no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        (slope,) = torch.autograd.grad(log_joint(leaf).sum(), leaf, create_graph=True)
        columns = slope.flatten(1).unbind(1)
        rows = [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0].flatten(1) for column in columns]
    whole = torch.stack(rows, dim=1)
    return (whole + whole.mT) / 2
