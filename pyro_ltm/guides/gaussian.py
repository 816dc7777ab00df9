"""Common to the Gaussian families: a Gaussian over thoughts [N, D], its KL to the prior, and Cholesky factors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, constraints, register_kl

from pyro_ltm.noise import Normals, rsample_from


class OverThoughts(dist.TorchDistribution):
    """A Gaussian over thoughts [N, D] made of one over the same N D numbers in another shape, in the same order.

    Args:
        base_dist: a Gaussian with `mean`, `variance` and `entropy`, and an event of N D numbers.
        shape: [N, D].
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, base_dist: Any, shape: Iterable[int]):
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, torch.Size(shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """[..., N, D]."""
        return self._shaped(self.base_dist.mean)

    @property
    def variance(self) -> Tensor:
        """[..., N, D] of each dimension by itself."""
        return self._shaped(self.base_dist.variance)

    def entropy(self) -> Tensor:
        """[...] in nats."""
        entropy: Tensor = self.base_dist.entropy()
        return entropy

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] of thoughts [..., N, D], in nats."""
        log_prob: Tensor = self.base_dist.log_prob(value.reshape(value.shape[:-2] + self.base_dist.event_shape))
        return log_prob

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws [*sample_shape, ..., N, D] from torch's global generator."""
        return self._shaped(self.base_dist.rsample(torch.Size(sample_shape)))

    def expand(self, batch_shape: Any, _instance: Any = None) -> OverThoughts:
        """The same Gaussian with another batch shape; matrices are not copied."""
        return OverThoughts(self.base_dist.expand(torch.Size(batch_shape)), self.event_shape)

    def _shaped(self, value: Tensor) -> Tensor:
        return value.reshape(value.shape[: value.dim() - len(self.base_dist.event_shape)] + self.event_shape)


@register_kl(OverThoughts, Independent)  # type: ignore[untyped-decorator]
def _kl(q: OverThoughts, p: Any) -> Tensor:
    """KL(q || p) = -E_q[log p] - H(q), in closed form where the dimensions of p are independent Normals."""
    each = p.base_dist
    if not isinstance(each, Normal) or p.event_shape != q.event_shape:
        raise NotImplementedError("the closed form is for independent Normals over [N, D]")
    spread = (q.variance + (q.mean - each.loc).square()) / each.scale.square()
    # Both less the entropy of N(0, I), whose many nats would round off the few that remain.
    cross = (0.5 * (spread - 1) + each.scale.log()).sum((-2, -1))
    return cross - (q.entropy() - 0.5 * q.event_shape.numel() * (1 + math.log(2 * math.pi)))


@rsample_from.register
def _(distribution: OverThoughts, normals: Normals) -> Tensor:
    return distribution._shaped(rsample_from(distribution.base_dist, normals))


@rsample_from.register
def _(distribution: dist.MultivariateNormal, normals: Normals) -> Tensor:
    loc: Tensor = distribution.loc
    return loc + times(distribution._unbroadcasted_scale_tril, normals(loc.shape))


@rsample_from.register
def _(distribution: dist.LowRankMultivariateNormal, normals: Normals) -> Tensor:
    loc, factor = distribution.loc, distribution._unbroadcasted_cov_factor
    size, rank = factor.shape[-2:]
    own, shared = normals(torch.Size([*loc.shape[:-1], size + rank])).split([size, rank], dim=-1)
    drawn: Tensor = loc + times(factor, shared) + distribution._unbroadcasted_cov_diag.sqrt() * own
    return drawn


def times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """The product [*K, *B, P] of one matrix [*B, P, Q] for each sequence and its vectors [*K, *B, Q].

    Particles become columns: `@` would copy the matrix for each of them.
    """
    particles = vectors.shape[: vectors.dim() - matrix.dim() + 1]
    product = torch.einsum("...ij,k...j->k...i", matrix, vectors.reshape(-1, *vectors.shape[len(particles) :]))
    return product.reshape(particles + product.shape[1:])


def entry_scale(size: int) -> float:
    """2 sqrt(size): a state holds this many times the entries of a matrix with so many in a row.

    All the entries of a row add the noise of a fast step to a draw. With this scale a step of some length turns the
    matrix by half that length, as it does the diagonal by way of a log variance; without it their noise widens q faster
    than their signal narrows it.
    """
    return 2 * math.sqrt(size)


def triangle(log_variance: Tensor, lower: Tensor) -> Tensor:
    """The Cholesky factor C [..., P, P] of a covariance.

    Args:
        log_variance: [..., P] of each number given those before it: the logs of the squared diagonal, which fast steps
            move as they move independent Normals.
        lower: [..., P (P - 1) / 2] the entries below it, times `entry_scale(P)`.
    """
    factor = torch.diag_embed((log_variance / 2).exp())
    rows, columns = _below(factor)
    factor[..., rows, columns] = lower / entry_scale(factor.shape[-1])
    return factor


def to_relative(factor: Tensor, log_variance: Tensor, lower: Tensor) -> Tensor:
    """The gradient with respect to X [..., P, P] at 0, the factor being C (I + X) with X lower triangular.

    Of the gradients with respect to `triangle`'s arguments. In X the Fisher information of N(0, C C^T) is diagonal: 1
    below the diagonal and 2 on it (Salimbeni and others, arXiv:1803.09151, section 4).
    """
    gradient = torch.diag_embed(2 * log_variance / factor.diagonal(dim1=-2, dim2=-1))
    rows, columns = _below(factor)
    gradient[..., rows, columns] = lower * entry_scale(factor.shape[-1])
    return (factor.mT @ gradient).tril()


def from_relative(factor: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """How `triangle`'s arguments move as the factor C [..., P, P] moves to C (I + `step`), to first order."""
    rows, columns = _below(factor)
    entries = (factor @ step)[..., rows, columns]
    return 2 * step.diagonal(dim1=-2, dim2=-1), entries * entry_scale(factor.shape[-1])


def _below(factor: Tensor) -> Tensor:
    """Rows and columns [2, P (P - 1) / 2] of the entries below the diagonal."""
    return torch.tril_indices(factor.shape[-1], factor.shape[-1], offset=-1, device=factor.device)
