"""Stand-ins for tests: a model whose posterior and evidence are known, and a guide that has no closed-form KL."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_ltm.guides import Guide
from pyro_ltm.types import Batch


class NormalWithoutRule(dist.Normal):
    """A Normal that no rule of `kl_divergence` is meant for."""


class NoClosedForm(Guide):
    """Independent Normals that do not claim a closed-form KL."""

    has_analytic_kl: ClassVar[bool] = False

    def init(self, batch):
        loc = torch.zeros(batch.size, self.thoughts, self.dim)
        return {"loc": loc, "log_scale": loc.clone()}

    def distribution(self, state):
        return NormalWithoutRule(state["loc"], state["log_scale"].exp()).to_event(2)


class LinearGaussian(nn.Module):
    """z ~ N(0, I) [N, D], tokens ~ N(A z + b, s^2 I) [T]: the sites of a latent-thought model, in closed form.

    The columns of A are orthogonal: the posterior has independent dimensions, and a mean-field guide contains it.
    """

    def __init__(self, length: int = 8, thoughts: int = 2, dim: int = 2, noise: float = 0.5, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.thoughts, self.dim, self.noise = thoughts, dim, noise
        columns, _ = torch.linalg.qr(torch.randn(length, thoughts * dim, generator=generator))
        sizes = torch.linspace(0.3, 1.2, thoughts * dim)
        self.loading = nn.Parameter(columns * sizes)  # [T, N * D]
        self.offset = nn.Parameter(torch.randn(length, generator=generator))

    def forward(self, batch, state=None):
        with pyro.plate("sequences", batch.size, dim=-1):
            prior = dist.Normal(torch.zeros(self.thoughts, self.dim), 1.0).to_event(2)
            z = pyro.sample("thoughts", prior)
            mean = z.flatten(-2) @ self.loading.T + self.offset
            return pyro.sample("tokens", dist.Normal(mean, self.noise).to_event(1), obs=batch.targets)

    def data(self, size: int, *, copies: bool = False) -> Batch:
        """Sequences from the model (targets are real numbers); `copies`: all the same, under different names."""
        z = torch.randn(size, self.thoughts * self.dim)
        mean = z @ self.loading.T.detach() + self.offset.detach()
        targets = mean + self.noise * torch.randn_like(mean)
        targets = targets[:1].expand(size, -1).contiguous() if copies else targets
        length = targets.shape[1]
        return Batch(
            inputs=torch.zeros(size, length, dtype=torch.int64),
            targets=targets,
            mask=torch.ones(size, length, dtype=torch.bool),
            ids=torch.arange(size),
        )

    @torch.no_grad()
    def posterior(self, batch: Batch) -> dist.Normal:
        """Mean and standard deviation [B, N, D] of p(z | tokens)."""
        precision = 1 + self.loading.square().sum(0) / self.noise**2
        mean = (batch.targets - self.offset) @ self.loading / self.noise**2 / precision
        mean = mean.unflatten(-1, (self.thoughts, self.dim))
        return dist.Normal(mean, precision.rsqrt().view(self.thoughts, self.dim).expand_as(mean))

    @torch.no_grad()
    def log_evidence(self, batch: Batch) -> torch.Tensor:
        """[B] log p(tokens)."""
        covariance = self.loading @ self.loading.T + self.noise**2 * torch.eye(len(self.offset))
        return dist.MultivariateNormal(self.offset, covariance).log_prob(batch.targets)
