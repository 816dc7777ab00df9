"""A sampler: draws that follow log p(x, z) itself and leave no density. It shares the guides' face."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference.fit import Watch
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.noise import Noise, Normals, fold, rsample_from
from pyro_ltm.optimizers import FastOptimizer
from pyro_ltm.types import Batch, State


class Draws(dist.TorchDistribution):
    """One of C draws, each as likely as the others. It has no density: `log_prob` is 0 by convention, as `Delta`'s.

    Shapes:
        values: [..., B, C, N, D]. Batch shape [..., B], event shape [N, D].
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.independent(dist.constraints.real, 2)
    has_rsample = True

    def __init__(self, values: Tensor, validate_args: bool | None = None):
        self.values = values
        super().__init__(values.shape[:-3], values.shape[-2:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """[..., B, N, D]."""
        return self.values.mean(-3)

    @property
    def variance(self) -> Tensor:
        """[..., B, N, D]."""
        return self.values.var(-3, correction=0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Draws:
        """The same draws over more sequences."""
        return Draws(self.values.expand(*batch_shape, *self.values.shape[-3:]))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws [*sample_shape, ..., B, N, D], picked by torch's generator."""
        whole = self.expand(torch.Size(sample_shape) + self.batch_shape)
        return rsample_from(whole, lambda shape: torch.randn(shape, device=self.values.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Zeros [..., B]."""
        return value.new_zeros(torch.broadcast_shapes(self.batch_shape, value.shape[:-2]))


@rsample_from.register
def _(distribution: Draws, normals: Normals) -> Tensor:
    values = distribution.values
    count = values.shape[-3]
    # A standard normal through its own distribution function is uniform.
    share = torch.special.ndtr(normals(distribution.batch_shape))
    index = (share * count).long().clamp(max=count - 1)[..., None, None, None]
    return values.take_along_dim(index, dim=-3).squeeze(-3)


class KeptChains:
    """A watch that keeps the draws of a sampler's second half; the first is its warm-up."""

    def __init__(self, guide: ParticleGuide, steps: int, watch: Watch | None = None):
        self._guide, self._steps, self._watch = guide, steps, watch
        self._seen: list[Tensor] = []

    def __call__(self, step: int, state: State) -> None:
        """Sees the state after `step` transitions."""
        if step > self._steps // 2:
            self._seen.append(state["particles"].detach())
        if self._watch:
            self._watch(step, state)

    @property
    def chains(self) -> Tensor:
        """[C, S, B, N, D] the draws. Raises UserError where no transition was made."""
        if not self._seen:
            raise UserError("a sampler that takes no steps has no chains: give it fast steps")
        return self._guide.chains_of(self._seen)


class ParticleGuide(Guide):
    """Draws that follow log p(x, z), the objective `map`; no family, no density.

    A bound judges them through the Normal that has the draws' mean and variance in each dimension.
    """

    has_density: ClassVar[bool] = False
    follows_joint: ClassVar[bool] = True
    has_analytic_kl: ClassVar[bool] = True  # that Normal's

    def __init__(self, thoughts: int, dim: int, chains: int, seed: int):
        super().__init__(thoughts, dim)
        if not 1 <= chains <= 1024:
            raise UserError(f"guide: chains = {chains}: from 1 to 1024")
        self.chains = chains
        self.seed = seed

    def chains_of(self, seen: list[Tensor]) -> Tensor:
        """[C, S, B, N, D] draws of each chain in order, from `particles` after each transition of the second half."""
        return torch.stack(seen).transpose(0, 2).transpose(1, 2)

    @abstractmethod
    def run(
        self,
        target: LogJoint,
        state: State,
        *,
        optimizer: FastOptimizer,
        noise: Noise,
        steps: int,
        watch: Watch | None,
    ) -> tuple[State, Tensor]:
        """The state after `steps` transitions, and the history [steps, B] of log p(x, z), the mean over chains."""

    def init(self, batch: Batch) -> State:
        """Draws from N(0, I) `particles` [B, C, N, D], and their moments `mean` and `variance` [B, N, D]."""
        shape = torch.Size([self.chains, batch.size, self.thoughts, self.dim])
        dtype = torch.get_default_dtype()
        noise = Noise(batch.ids, device=batch.device, seed=fold(self.seed, "chains"))
        particles = noise.normal(shape, event_dims=2, dtype=dtype).to(batch.device).transpose(0, 1)
        return {"particles": particles, "mean": torch.zeros_like(particles[:, 0])} | {
            "variance": torch.ones_like(particles[:, 0])  # one chain has no variance of its own yet: the prior's
        }

    def distribution(self, state: State) -> dist.TorchDistribution:
        """One of the chains' last draws."""
        return Draws(state["particles"])

    def scored_distribution(self, state: State) -> dist.TorchDistribution | None:
        """The Normal with the mean and variance of the draws."""
        return dist.Normal(state["mean"], state["variance"].clamp(min=LEAST_VARIANCE).sqrt()).to_event(2)


LEAST_VARIANCE = 1e-6


def value_and_gradient(target: LogJoint, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log p(x, z) [C, B] of draws z [C, B, N, D], and its gradient [C, B, N, D]."""
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        log_joint = target(leaf)
        (slope,) = torch.autograd.grad(log_joint.sum(), leaf)
    return log_joint.detach(), slope
