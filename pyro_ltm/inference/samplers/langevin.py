"""Langevin dynamics, as they are and with a Metropolis step."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.inference.fit import Watch
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.inference.samplers.base import ParticleGuide, value_and_gradient
from pyro_ltm.noise import Noise
from pyro_ltm.optimizers import FastOptimizer
from pyro_ltm.registry import Card
from pyro_ltm.types import State


class _Moments:
    """Mean and variance of the later draws of a run, at any time of it.

    Draws count from the last power of two but one: at step 2^k the second half of the run, at most three quarters of it
    in between. So a run that is scored on its way is scored as if it ended there.
    """

    def __init__(self) -> None:
        self._older: list[Tensor] = []
        self._newer: list[Tensor] = []
        self._next = 1

    def add(self, step: int, particles: Tensor) -> None:
        """`particles` [B, C, N, D] after transition `step` (from 0)."""
        if step == self._next:
            self._older, self._newer, self._next = self._newer, [], 2 * self._next
        count = particles.new_tensor(float(particles.shape[1]))
        new = [count, particles.sum(1), particles.square().sum(1)]
        self._newer = [a + b for a, b in zip(self._newer, new, strict=True)] if self._newer else new

    def into(self, state: State) -> State:
        """`state` with the moments."""
        parts = [self._older, self._newer] if self._older and self._newer else [self._older or self._newer]
        count, total, square = (sum(values[1:], values[0]) for values in zip(*parts, strict=True))
        mean = total / count
        return state | {"mean": mean, "variance": (square / count - mean.square()).clamp(min=0)}


class _Langevin(ParticleGuide):
    """Chains that step along the gradient of log p(x, z) and are shaken by noise, all of a batch at once."""

    has_chains: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int, chains: int, step_size: float, seed: int):
        super().__init__(thoughts, dim, chains, seed)
        if not 0 < step_size <= 1:
            raise UserError(f"guide: step_size = {step_size}: above 0, at most 1 (the prior's variance is 1)")
        self.step_size = step_size

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
        """See `ParticleGuide.run`. Moments are those of about the second half."""
        z = state["particles"].transpose(0, 1)
        moments, history = _Moments(), [z.new_zeros(0, z.shape[1])]
        log_joint, slope = value_and_gradient(target, z)
        size = z.new_full((z.shape[1],), self.step_size)
        for step in range(steps):
            history.append(log_joint.mean(0))
            normals = noise.normal(torch.Size([*z.shape[:2], z[0, 0].numel() + 1]), event_dims=1, dtype=z.dtype)
            shake, uniform = normals[..., :-1].view_as(z), torch.special.ndtr(normals[..., -1])
            across = size[:, None, None]
            proposed = z + across * slope + (2 * across).sqrt() * shake
            new_joint, new_slope = value_and_gradient(target, proposed)
            back = z - proposed - across * new_slope
            there = proposed - z - across * slope
            ratio = new_joint - log_joint + ((there.square() - back.square()).sum((-2, -1)) / (4 * size))
            accepted = self._accepts(uniform, ratio)
            z = torch.where(accepted[..., None, None], proposed, z)
            slope = torch.where(accepted[..., None, None], new_slope, slope)
            log_joint = torch.where(accepted, new_joint, log_joint)
            size = self._tuned(size, ratio, step, steps)
            moments.add(step, z.transpose(0, 1))
            state = moments.into(state | {"particles": z.transpose(0, 1)})
            if watch:
                watch(step + 1, state)
        return state, torch.stack(history[1:]) if steps else history[0]

    @abstractmethod
    def _accepts(self, uniform: Tensor, ratio: Tensor) -> Tensor:
        """[C, B] which proposals are taken, for the log acceptance `ratio` [C, B]."""

    @abstractmethod
    def _tuned(self, size: Tensor, ratio: Tensor, step: int, steps: int) -> Tensor:
        """The step size [B] of each sequence after transition `step`."""


class Langevin(_Langevin):
    """Unadjusted Langevin dynamics: no step is refused, so its draws are off by an error that falls with the step size.

    Each step follows the whole gradient, not that of a sample of the data (as SGLD does). Roberts and Tweedie 1996; for
    thoughts, the posterior sampler of Kong et al., arXiv:2502.01567.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        chains: chains C of each sequence. step_size: of each transition. seed: of the chains' starts.
    """

    card: ClassVar[Card] = Card(
        summary="unadjusted Langevin dynamics: draws that follow log p(x, z)",
        cost="one decoder pass a chain and step",
        when="draws without a family's shape; biased by its step size",
        reference="Roberts and Tweedie 1996",
    )
    arguments: ClassVar[tuple[str, ...]] = ("step_size", "chains")

    def __init__(self, thoughts: int, dim: int, step_size: float = 0.05, chains: int = 4, seed: int = 0):
        super().__init__(thoughts, dim, chains, step_size, seed)

    def _accepts(self, uniform: Tensor, ratio: Tensor) -> Tensor:
        return torch.ones_like(ratio, dtype=torch.bool)

    def _tuned(self, size: Tensor, ratio: Tensor, step: int, steps: int) -> Tensor:
        return size


class MALA(_Langevin):
    """Metropolis-adjusted Langevin: a step is taken or refused so that the draws are the posterior's own.

    In the first half the step size of each sequence is tuned to the best acceptance (Roberts and Rosenthal 1998).

    Args:
        thoughts: thought vectors N. dim: width D of each.
        chains: chains C of each sequence. step_size: of the first transition. seed: of the chains' starts.
    """

    card: ClassVar[Card] = Card(
        summary="Metropolis-adjusted Langevin dynamics",
        cost="one decoder pass a chain and step",
        when="draws that are the posterior's own in the limit of many steps",
        reference="Roberts and Tweedie 1996",
    )
    arguments: ClassVar[tuple[str, ...]] = ("step_size", "chains")

    def __init__(self, thoughts: int, dim: int, step_size: float = 0.05, chains: int = 4, seed: int = 0):
        super().__init__(thoughts, dim, chains, step_size, seed)

    def _accepts(self, uniform: Tensor, ratio: Tensor) -> Tensor:
        return uniform.log() < ratio  # a ratio that is not a number is refused

    def _tuned(self, size: Tensor, ratio: Tensor, step: int, steps: int) -> Tensor:
        if step >= steps // 2:
            return size  # chains that go on adapting do not keep their distribution
        acceptance = ratio.nan_to_num(nan=-torch.inf).clamp(max=0).exp().mean(0)
        return (size * torch.exp((acceptance - BEST_ACCEPTANCE) / (1 + step / 10) ** 0.5)).clamp(1e-6, 1.0)


BEST_ACCEPTANCE = 0.574
"""Of Langevin steps in many dimensions (Roberts and Rosenthal 1998)."""
