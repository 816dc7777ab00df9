"""A Gaussian whose covariance is one between thoughts times one across the width."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ltm.guides.base import Guide, check_size
from pyro_ltm.guides.gaussian import OverThoughts, from_relative, to_relative, triangle
from pyro_ltm.noise import Normals, rsample_from
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State


class Kronecker(Guide):
    """A matrix normal: z = loc + A eps B^T, A [N, N] between thoughts and B [D, D] across the width.

    Both are lower triangular (`triangle`): their diagonals as log variances, and the entries below. Starts at the
    prior. The covariance is (A A^T) x (B B^T), as in K-FAC's Laplace posteriors (Ritter and others, ICLR 2018) and
    arXiv:1603.04733.

    Args:
        thoughts: thought vectors N. dim: width D of each.
    """

    card: ClassVar[Card] = Card(
        summary="a matrix normal: correlations between thoughts times correlations across the width",
        cost="N D + (N^2 + D^2) / 2 numbers a sequence",
        when="correlations in models too large for full-rank",
        reference="arXiv:1603.04733",
    )
    has_analytic_kl: ClassVar[bool] = True
    has_natural_gradient: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int):
        super().__init__(thoughts, dim)
        numbers = thoughts * dim + sum(size * (size + 1) // 2 for size in (thoughts, dim))
        check_size("kronecker", numbers, "choose low-rank or mean-field")
        self.repeats = {"row": dim, "column": thoughts}

    def init(self, batch: Batch) -> State:
        """`loc` [B, N, D]; of A and B (`row_`, `column_`) `log_variance` [B, P] and `lower` [B, P (P - 1) / 2].

        These are times the root of the columns or rows on which A or B acts, which all add to its gradient: with it, a
        fast step follows their mean.
        """
        loc = torch.zeros(batch.size, self.thoughts, self.dim, device=batch.device)
        state = {"loc": loc}
        for side, size in (("row", self.thoughts), ("column", self.dim)):
            state[f"{side}_log_variance"] = loc.new_zeros(batch.size, size)
            state[f"{side}_lower"] = loc.new_zeros(batch.size, size * (size - 1) // 2)
        return state

    def distribution(self, state: State) -> dist.TorchDistribution:
        """N(loc, (A A^T) x (B B^T)) over [N, D]."""
        normal = MatrixNormal(state["loc"], self._factor(state, "row"), self._factor(state, "column"))
        return OverThoughts(normal, (self.thoughts, self.dim))

    def natural_gradient(self, state: State, gradients: State) -> State:
        """See `to_relative`. A and B share their scale: each takes half of its step."""
        factors: State = {}
        natural: State = {}
        for side, repeats in self.repeats.items():
            factor, root = self._factor(state, side), math.sqrt(repeats)
            step = root * to_relative(factor, gradients[f"{side}_log_variance"], gradients[f"{side}_lower"])
            diagonal = step.diagonal(dim1=-2, dim2=-1)
            mean = diagonal.mean(-1, keepdim=True)
            # A acts on D columns, and B on N rows: the information on each entry is so many times as large. The scale
            # moves both at once: its gradient is N D times its step, and A and B share the step in log determinants.
            shared = mean / (2 * (self.thoughts + self.dim))
            own = (diagonal - mean) / (2 * repeats)
            step = step.tril(-1) / repeats + (own + shared).diag_embed()
            log_variance, lower = from_relative(factor, step)
            natural |= {f"{side}_log_variance": root * log_variance, f"{side}_lower": root * lower}
            factors[side] = factor
        row, column = factors["row"], factors["column"]
        return {"loc": row @ (row.mT @ gradients["loc"] @ column) @ column.mT, **natural}

    def _factor(self, state: State, side: str) -> Tensor:
        root = math.sqrt(self.repeats[side])
        return triangle(state[f"{side}_log_variance"] / root, state[f"{side}_lower"] / root)


class MatrixNormal(dist.TorchDistribution):
    """z = loc + A eps B^T [..., N, D] for standard normals eps.

    Args:
        loc: [..., N, D]. row: A [B, N, N]. column: B [B, D, D]; both lower triangular with a positive diagonal.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"loc": constraints.independent(constraints.real, 2)}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, loc: Tensor, row: Tensor, column: Tensor):
        self.loc, self.row, self.column = loc, row, column
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """[..., N, D]."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """[..., N, D]."""
        rows, columns = (factor.square().sum(-1) for factor in (self.row, self.column))
        return (rows.unsqueeze(-1) * columns.unsqueeze(-2)).expand(self.loc.shape)

    def entropy(self) -> Tensor:
        """[...] in nats."""
        size = math.prod(self.event_shape)
        return (self._log_scale() + 0.5 * size * (1 + math.log(2 * math.pi))).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] in nats."""
        # The inverses are taken once for each sequence, not for each particle.
        eps = _between(_inverse(self.row), value - self.loc, _inverse(self.column))
        return -0.5 * (eps.square() + math.log(2 * math.pi)).sum((-2, -1)) - self._log_scale()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws [*sample_shape, ..., N, D] from torch's global generator."""
        eps = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + _between(self.row, eps, self.column)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MatrixNormal:
        """The same with another batch shape; A and B are not copied."""
        return MatrixNormal(self.loc.expand(torch.Size(batch_shape) + self.event_shape), self.row, self.column)

    def _log_scale(self) -> Tensor:
        """Half the log determinant of the covariance, [B]."""
        rows, columns = (f.diagonal(dim1=-2, dim2=-1).log().sum(-1) for f in (self.row, self.column))
        return self.event_shape[1] * rows + self.event_shape[0] * columns


def _inverse(factor: Tensor) -> Tensor:
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse


def _between(row: Tensor, middle: Tensor, column: Tensor) -> Tensor:
    """`row @ middle @ column.mT`, [*K, B, N, D], without a copy of the matrices for each particle."""
    folded = middle.reshape(-1, *middle.shape[middle.dim() - row.dim() :])
    return torch.einsum("...nm,k...me,...de->k...nd", row, folded, column).reshape(middle.shape)


@rsample_from.register
def _(distribution: MatrixNormal, normals: Normals) -> Tensor:
    return distribution.loc + _between(distribution.row, normals(distribution.loc.shape), distribution.column)
