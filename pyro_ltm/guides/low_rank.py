"""A Gaussian with a few directions of correlation."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch

from pyro_ltm.errors import UserError
from pyro_ltm.guides.base import Guide, check_size
from pyro_ltm.guides.gaussian import OverThoughts, entry_scale
from pyro_ltm.noise import Noise, fold
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State


class LowRank(Guide):
    """A Gaussian over all thoughts with covariance W W^T + diag(d), W of `rank` columns (arXiv:1701.03208).

    At W = 0 nothing would move W, so it starts with random columns of length `init_factor`: about
    `rank * init_factor**4 / 4` nats from the prior (0.008 by default).

    Args:
        thoughts: thought vectors N. dim: width D of each.
        rank: columns R of W, from 1 to N D.
        init_factor: length of each column of W at the start.
        seed: of those columns, keyed by each sequence's id.
    """

    card: ClassVar[Card] = Card(
        summary="a Gaussian with covariance W W^T + diagonal",
        cost="(R + 2) N D numbers a sequence, and R^2 N D products a step",
        when="thoughts that matter together along a few directions",
        reference="arXiv:1701.03208",
    )
    arguments: ClassVar[tuple[str, ...]] = ("rank",)
    has_analytic_kl: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int, rank: int = 4, init_factor: float = 0.3, seed: int = 0):
        super().__init__(thoughts, dim)
        size = thoughts * dim
        if not 1 <= rank <= size:
            raise UserError(f"guide: rank = {rank}: from 1 to {size}, the numbers in the thoughts of a sequence")
        if not 0 < init_factor <= 1:
            raise UserError(f"guide: init_factor = {init_factor}: above 0 (W would never move), at most 1")
        check_size(f"low-rank of rank = {rank}", (rank + 2) * size, "choose a smaller rank")
        self.rank = rank
        self.init_factor = init_factor
        self.seed = seed

    def init(self, batch: Batch) -> State:
        """`loc`, `log_variance` of the diagonal, each [B, N, D]; `factor` [B, N, D, R], W times `entry_scale(N D)`."""
        shape = torch.Size([batch.size, self.thoughts, self.dim, self.rank])
        noise = Noise(batch.ids, device=batch.device, seed=fold(self.seed, "init"))
        columns = noise.normal(shape, event_dims=3, dtype=torch.get_default_dtype())
        zeros = torch.zeros_like(columns[..., 0])
        lengths = columns.square().sum((1, 2), keepdim=True).sqrt()
        factor = self.init_factor * entry_scale(self.thoughts * self.dim) * columns / lengths
        return {"loc": zeros, "log_variance": zeros.clone(), "factor": factor}

    def distribution(self, state: State) -> dist.TorchDistribution:
        """N(loc, W W^T + diag(exp(log_variance))) over [N, D]."""
        loc, log_variance, columns = (state[name].flatten(1, 2) for name in ("loc", "log_variance", "factor"))
        # torch's Cholesky would raise for all where one sequence has run away: that one becomes NaN by itself.
        variance = log_variance.exp()
        sound = (1 / variance + variance + columns.square().sum(-1)).sum(-1).isfinite()[:, None]
        loc = torch.where(sound, loc, torch.nan)
        variance = torch.where(sound, variance, 1.0)
        columns = torch.where(sound[..., None], columns, 0.0)
        columns = columns / entry_scale(self.thoughts * self.dim)
        normal = dist.LowRankMultivariateNormal(loc, columns, variance, validate_args=False)
        return OverThoughts(normal, (self.thoughts, self.dim))
