"""A Student-t distribution for each latent dimension by itself."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.guides.base import Guide
from pyro_ltm.noise import Normals, rsample_from
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State


class StudentT(Guide):
    """Independent Student-t distributions: mean-field with tails that no Gaussian posterior outweighs.

    Where q is a Normal narrower than the posterior, weights p(x, z) / q(z) grow without end along z; under a t their
    tail falls instead. Domke and Sheldon, arXiv:1808.09034, section 5, for importance-weighted bounds.

    Starts with the prior's mean and variance, as near to the prior as a t comes: 0.015 nats from it for each latent
    dimension at `df = 8`, 0.19 at 3, 0.0002 at 64.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        df: degrees of freedom, from 3 (below, there is no variance) to 64; the fewer, the heavier the tails.

    Raises:
        UserError: `df` out of its range.
    """

    card: ClassVar[Card] = Card(
        summary="a Student-t distribution for each latent dimension: mean-field with heavy tails",
        cost="2 N D numbers a sequence; df + 1 normals for each number drawn",
        when="bounds of several draws (iwae, dreg, renyi), whose weights a narrow Normal leaves unbounded",
        reference="arXiv:1808.09034",
    )
    arguments: ClassVar[tuple[str, ...]] = ("df",)

    def __init__(self, thoughts: int, dim: int, df: int = 8):
        super().__init__(thoughts, dim)
        if not 3 <= df <= 64:
            raise UserError(f"guide: df = {df}: from 3 (below, there is no variance) to 64")
        self.df = df

    def init(self, batch: Batch) -> State:
        """`loc` and `log_scale`, each [B, N, D]: mean 0 and variance 1."""
        loc = torch.zeros(batch.size, self.thoughts, self.dim, device=batch.device)
        return {"loc": loc, "log_scale": torch.full_like(loc, math.log((self.df - 2) / self.df) / 2)}

    def distribution(self, state: State) -> dist.TorchDistribution:
        """StudentT(df, loc, exp(log_scale)) over [N, D]."""
        return dist.StudentT(self.df, state["loc"], state["log_scale"].exp()).to_event(2)


@rsample_from.register
def _(distribution: dist.StudentT, normals: Normals) -> Tensor:
    """A normal over the root mean square of df others. Only for one whole df, the same throughout."""
    loc, df = distribution.loc, int(distribution.df.flatten()[0])
    if not (distribution.df == df).all():
        raise NotImplementedError(
            "a StudentT is drawn from normals only where its degrees of freedom are one whole number"
        )
    own, others = normals(torch.Size([*loc.shape, df + 1])).split([1, df], dim=-1)
    t = own.squeeze(-1) * others.square().mean(-1).rsqrt()
    drawn: Tensor = loc + distribution.scale * t
    return drawn
