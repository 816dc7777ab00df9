"""A model whose posterior is any Gaussian we like, and Gaussians written out as dense matrices."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ltm.noise import rsample_from
from pyro_ltm.types import Batch


class CorrelatedGaussian(nn.Module):
    """z ~ N(0, I) [N, D], tokens ~ N(A z + b, s^2 I) [N D]: A is chosen so that the posterior has a given covariance.

    The posterior's precision is I + A^T A / s^2, so A^T is s times a Cholesky factor of the precision wanted less I:
    every covariance smaller than the prior's can be had. Everything is in the default dtype.
    """

    def __init__(self, covariance: Tensor, thoughts: int, dim: int, noise: float = 0.5, seed: int = 0):
        super().__init__()
        assert torch.linalg.eigvalsh(covariance).max() < 1, "a posterior is narrower than the prior"
        self.thoughts, self.dim, self.noise, self.covariance = thoughts, dim, noise, covariance
        size = thoughts * dim
        excess = torch.linalg.inv(covariance) - torch.eye(size)
        self.loading = nn.Parameter(noise * torch.linalg.cholesky(excess).T)
        self.offset = nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(seed)))

    def forward(self, batch, state=None):
        with pyro.plate("sequences", batch.size, dim=-1):
            prior = dist.Normal(torch.zeros(self.thoughts, self.dim), 1.0).to_event(2)
            z = pyro.sample("thoughts", prior)
            mean = z.flatten(-2) @ self.loading.T + self.offset
            return pyro.sample("tokens", dist.Normal(mean, self.noise).to_event(1), obs=batch.targets)

    @torch.no_grad()
    def copies(self, size: int) -> Batch:
        """One sequence from the model (real numbers) under `size` names: replicates of a fit."""
        z = torch.randn(self.thoughts * self.dim)
        targets = self.loading @ z + self.offset + self.noise * torch.randn(len(self.offset))
        return Batch(
            inputs=torch.zeros(size, len(targets), dtype=torch.int64),
            targets=targets.expand(size, -1).contiguous(),
            mask=torch.ones(size, len(targets), dtype=torch.bool),
            ids=torch.arange(size),
        )

    @torch.no_grad()
    def posterior(self, batch: Batch) -> torch.distributions.MultivariateNormal:
        """p(z | tokens): batch shape [B], over N D numbers."""
        mean = (batch.targets - self.offset) @ self.loading @ self.covariance / self.noise**2
        return torch.distributions.MultivariateNormal(mean, self.covariance)

    @torch.no_grad()
    def log_evidence(self, batch: Batch) -> Tensor:
        """[B] log p(tokens)."""
        covariance = self.loading @ self.loading.T + self.noise**2 * torch.eye(len(self.offset))
        return torch.distributions.MultivariateNormal(self.offset, covariance).log_prob(batch.targets)


def dense_normal(q) -> torch.distributions.MultivariateNormal:
    """A Gaussian over [N, D] as one over N D numbers, whatever it says of itself.

    Its draws are linear in their normals: what they are at 0 and at each unit vector says it all. Differentiable.
    """
    asked: list[torch.Size] = []

    def nothing(shape):
        asked.append(shape)
        return torch.zeros(shape)

    mean = rsample_from(q, nothing)
    (batch, *event) = asked[0]
    size = math.prod(event)
    units = torch.eye(size).reshape(size, 1, *event).expand(size, batch, *event)
    columns = rsample_from(q.expand((size, batch)), lambda shape: units.reshape(shape)) - mean
    factor = columns.flatten(-2).permute(1, 2, 0)
    return torch.distributions.MultivariateNormal(mean.flatten(-2), factor @ factor.mT)


def random_covariance(size: int, *, seed: int = 0, largest: float = 0.8) -> Tensor:
    """Some covariance with strong correlations, its largest eigenvalue as given."""
    columns = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return narrowed(columns @ columns.T + torch.eye(size), largest)


def narrowed(covariance: Tensor, largest: float = 0.8) -> Tensor:
    """The same shape with its largest eigenvalue as given: below the prior's."""
    return covariance * (largest / torch.linalg.eigvalsh(covariance).max())
