"""Base class of guides: families of posteriors over one sequence's thoughts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ltm.errors import UserError
from pyro_ltm.registry import Card, Member
from pyro_ltm.types import Batch, State

LogJoint = Callable[[Tensor], Tensor]
"""log p(x, z) in nats, [..., B], of thoughts z [..., B, N, D]."""

MOST_NUMBERS = 1 << 22
"""Local parameters of one sequence: 16 MiB in float32, of which the fast loop has a few copies for each sequence."""

Learning = Literal["none", "shared", "amortized", "semi-amortized", "unrolled"]
"""The parameters that all sequences share, and how the slow steps move them.

"none": there are none. "shared": of the family itself; they learn after the fast steps. The others are those of an
encoder, which `init` runs. "amortized": no fast steps follow. "semi-amortized": it learns at its proposal, which the
fast steps refine. "unrolled": it learns through the fast steps.
"""


class Guide(Member, nn.Module, ABC):
    """A posterior family q(z), fitted to each sequence by its own local parameters.

    A plain module that owns only what all sequences share (often nothing). Local parameters are a `State` that goes in
    as an argument: they live for one batch, and no parameter store or optimizer of the decoder sees them.

    To add a family, give the two abstract methods below and one line in the registry (CONTRIBUTING.md).

    Args:
        thoughts: thought vectors N. dim: width D of each.

    Attributes:
        card: what `pyro-ltm guides` says of it.
        arguments: its options that may follow its name, as in `low-rank:8`.
        has_analytic_kl: KL(q || p) has a closed form registered with torch for a prior p of independent Normals; for
            the model's own it is looked for.
        has_kl_by_thought: `kl_by_thought` gives that KL for each thought vector by itself.
        has_density: False for a point or a set of draws: no bound scores it, and only objectives that need no density
            fit it.
        follows_joint: what fits it is log p(x, z) itself (the objective `map`), and no other.
        has_natural_gradient: `natural_gradient` is there.
        learning: see `Learning`.
        needs_double_backward: its fit takes gradients of the decoder's gradients, which a compiled decoder has not.
        has_chains: it is a sampler whose draws are Markov chains, so that R-hat can be asked for.
        is_recorded: its fast steps ask the host for no value, so that a GPU can record them (`inference.recorder`).
    """

    card: ClassVar[Card]
    arguments: ClassVar[tuple[str, ...]] = ()
    has_analytic_kl: ClassVar[bool] = False
    has_kl_by_thought: bool = False
    has_density: ClassVar[bool] = True
    follows_joint: ClassVar[bool] = False
    has_natural_gradient: ClassVar[bool] = False
    learning: Learning = "none"
    needs_double_backward: bool = False
    is_recorded: ClassVar[bool] = False
    has_chains: ClassVar[bool] = False

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

    @property
    def keeps_graph(self) -> bool:
        """Whether the slow step's gradient goes back through the fit to `init`."""
        return self.learning in ("amortized", "unrolled")

    def forward(self, batch: Batch, state: State) -> Tensor:
        """The Pyro program: draws the site `thoughts`, [..., B, N, D]."""
        with pyro.plate("sequences", batch.size, dim=-1):
            thoughts: Tensor = pyro.sample("thoughts", self.distribution(state))
        return thoughts

    def finish(self, state: State, log_joint: LogJoint, width: Tensor) -> State:
        """The state after what is done once, behind the last fast step; most families have nothing left to do.

        Args:
            width: standard deviation of each number under the prior, [N, D].
        """
        return state

    def scored_distribution(self, state: State) -> TorchDistribution | None:
        """The density by which this posterior is scored; None where there is none (a point)."""
        return self.distribution(state) if self.has_density else None

    def kl_by_thought(self, state: State, prior: Distribution) -> Tensor | None:
        """KL of each thought vector to its prior in nats, [..., B, N]; only of families whose thoughts are independent.

        None where no closed form is known for such a prior.
        """
        raise NotImplementedError(f"{type(self).__name__} has no KL by thought")

    def natural_gradient(self, state: State, gradients: State) -> State:
        """The inverse Fisher information of q times `gradients`, for the parameters in `state` that are q's."""
        raise NotImplementedError(f"{type(self).__name__} has no natural gradient")


def check_size(family: str, numbers: int, instead: str) -> None:
    """Raises UserError when a sequence's posterior would have more than `MOST_NUMBERS` local parameters."""
    if numbers > MOST_NUMBERS:
        raise UserError(
            f"guide: {family} keeps {numbers:,} numbers for each sequence, at most {MOST_NUMBERS:,} go: {instead}"
        )
