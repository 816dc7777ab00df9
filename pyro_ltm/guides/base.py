"""What a guide is: a family of posteriors over one sequence's thoughts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_ltm.types import Batch, State


class Guide(nn.Module, ABC):
    """A posterior family q(z), fitted to each sequence by its own local parameters.

    A plain module that owns only what all sequences share (often nothing). Local parameters are a `State` that goes in
    as an argument: they live for one batch, and no parameter store or optimizer of the decoder sees them.

    To add a family, give the two methods below and one line in the registry (CONTRIBUTING.md).

    Args:
        thoughts: thought vectors N. dim: width D of each.

    Attributes:
        has_analytic_kl: KL(q || N(0, I)) has a closed form registered with torch.
        reparameterized: draws carry gradients.
    """

    has_analytic_kl: ClassVar[bool] = False
    reparameterized: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int):
        super().__init__()
        self.thoughts = thoughts
        self.dim = dim

    @abstractmethod
    def init(self, batch: Batch) -> State:
        """Local parameters from which the fast steps start: tensors with leading dimension B."""

    @abstractmethod
    def distribution(self, state: State) -> TorchDistribution:
        """q(z): batch shape [B], event shape [N, D]."""

    def forward(self, batch: Batch, state: State) -> Tensor:
        """The Pyro program: draws the site `thoughts`, [..., B, N, D]."""
        with pyro.plate("sequences", batch.size, dim=-1):
            thoughts: Tensor = pyro.sample("thoughts", self.distribution(state))
        return thoughts
