"""Thoughts that are distributed as the prior over all sequences, not each by itself."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from pyro_ltm.divergence import kind, normal_of
from pyro_ltm.errors import UserError
from pyro_ltm.objectives.base import Objective, Terms, require
from pyro_ltm.registry import Card


class MMD(Objective):
    """E_q[log p(x | z)] - (1 - alpha) KL(q || p) - weight MMD^2 between all sequences' draws and the prior (InfoVAE).

    The maximum mean discrepancy compares the aggregate of the posteriors with the prior, so that a single posterior may
    be as narrow as it likes. It is taken for each thought vector [D] and summed over thoughts, with the kernel
    exp(-|x - y|^2 / 2D). The kernel's expectation under N(0, I) has a closed form, so no draws of the prior are needed;
    a prior of other independent Normals is moved and scaled to that, with the draws. The estimate is a U-statistic over
    pairs of different sequences (two draws of one sequence are no two draws of the aggregate), without bias for the
    corpus that the batch is drawn from; it may be below zero, and a batch of one has no pairs and pays nothing. A
    sequence is charged its own share, which sums to B MMD^2 over a batch of B.

    No bound on the evidence. At alpha = 1 no density is read, and points fit as well; and nothing keeps a posterior
    wide. Zhao, Song and Ermon, arXiv:1706.02262.

    Args:
        alpha: 1 leaves the KL out (the paper's MMD-VAE), 0 keeps it whole, below 0 it counts for more.
        weight: of the MMD, alpha + lambda - 1 in the paper. MMD^2 is below 2 for each thought, and the likelihood is in
            nats a sequence: longer sequences need a larger weight.
        particles: draws K.
    """

    card: ClassVar[Card] = Card(
        summary="all sequences' thoughts together drawn to the prior (InfoVAE); no bound",
        cost="one decoder pass a particle; batches of many sequences",
        when="codes that tell as much as they can; samples from the prior that still make sense",
        reference="arXiv:1706.02262",
    )
    arguments: ClassVar[tuple[str, ...]] = ("alpha", "weight")
    is_linear: ClassVar[bool] = True
    likelihood_alone: ClassVar[bool] = False
    couples_batch: bool = True
    needs_normal_prior: ClassVar[bool] = True

    def __init__(self, alpha: float = 1.0, weight: float = 100.0, particles: int = 1):
        super().__init__(particles)
        require(-math.inf < alpha <= 1, "alpha", alpha, "a number of at most 1")
        require(0 <= weight < math.inf, "weight", weight, "a number of at least 0")
        self.alpha = alpha
        self.weight = weight
        self.needs_density = self.reads_kl = alpha != 1

    def value(self, terms: Terms) -> Tensor:
        """[B] mean over particles, less each sequence's share of the discrepancy."""
        assert terms.thoughts is not None  # `terms` always gives draws and prior
        assert terms.prior is not None
        normal = normal_of(terms.prior)
        if normal is None:
            raise UserError(
                f"{type(self).__name__} needs a prior of independent Normals, not {kind(terms.prior)}: use 'stl'"
            )
        loc, scale = normal
        value = -terms.distortion - self.weight * discrepancy((terms.thoughts - loc) / scale)
        return value - (1 - self.alpha) * terms.rate if self.needs_density else value


def discrepancy(thoughts: Tensor) -> Tensor:
    """[B] each sequence's share of B MMD^2 to N(0, I), summed over thoughts, for draws [K, B, N, D]."""
    particles, size, _, dim = thoughts.shape
    if size == 1:
        return thoughts.new_zeros(1)
    draws = thoughts.permute(2, 1, 0, 3).flatten(1, 2)  # [N, B K, D]
    squares = draws.square().sum(-1)
    distances = squares[:, :, None] + squares[:, None] - 2 * draws @ draws.mT
    kernel = (-distances / (2 * dim)).exp()
    between = kernel.unflatten(2, (size, particles)).unflatten(1, (size, particles)).mean((2, 4))  # [N, B, B]
    pairs = (between.sum(-1) - between.diagonal(dim1=-2, dim2=-1)) / (size - 1)
    # A kernel of variance D under a normal of variance 1, and under the difference of two, of variance 2.
    to_prior = (dim / (dim + 1)) ** (dim / 2) * (-squares / (2 * (dim + 1))).exp().unflatten(1, (size, particles))
    in_prior = (dim / (dim + 2)) ** (dim / 2)
    return (pairs - 2 * to_prior.mean(-1) + in_prior).sum(0)
