"""Stein variational gradient descent."""

from __future__ import annotations

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


class SVGD(ParticleGuide):
    """Stein variational gradient descent (arXiv:1608.04471): draws that climb log p(x, z) and push one another apart.

    Deterministic once its draws have started; the fast optimizer moves them.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        particles: draws C of each sequence. seed: of where they start.
    """

    card: ClassVar[Card] = Card(
        summary="Stein variational gradient descent: draws that repel one another",
        cost="one decoder pass a draw and step",
        when="a few draws that cover several modes; too narrow in many dimensions",
        reference="arXiv:1608.04471",
    )
    arguments: ClassVar[tuple[str, ...]] = ("particles",)

    def __init__(self, thoughts: int, dim: int, particles: int = 8, seed: int = 0):
        if particles < 2:
            raise UserError(f"guide: particles = {particles}: at least 2, which push one another apart")
        super().__init__(thoughts, dim, particles, seed)

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
        """See `ParticleGuide.run`."""
        moving = {"particles": state["particles"]}
        memory, history = optimizer.init(moving), [state["mean"].new_zeros(0, len(state["mean"]))]
        for step in range(steps):
            z = moving["particles"]
            log_joint, slope = value_and_gradient(target, z.transpose(0, 1))
            history.append(log_joint.mean(0))
            uphill = _stein(z.flatten(2), slope.transpose(0, 1).flatten(2)).view_as(z)
            moving, memory = optimizer.step(
                moving, {"particles": -uphill}, memory, losses=-log_joint.mean(0), step=step, steps=steps
            )
            z = moving["particles"]
            state = {"particles": z, "mean": z.mean(1), "variance": z.var(1, correction=0)}
            if watch:
                watch(step + 1, state)
        return state, torch.stack(history[1:]) if steps else history[0]


def _stein(z: Tensor, slope: Tensor) -> Tensor:
    """The direction [B, C, P] in which the kernelized KL falls fastest, for draws and gradients [B, C, P]."""
    count = z.shape[1]
    distances = torch.cdist(z, z).square()
    above = torch.triu_indices(count, count, offset=1)
    median = distances[:, above[0], above[1]].median(dim=1).values
    width = (median / (2 * torch.log(torch.tensor(count + 1.0, dtype=z.dtype)))).clamp(min=1e-12)[:, None, None]
    kernel = torch.exp(-distances / (2 * width))
    apart = (kernel.sum(-1, keepdim=True) * z - kernel @ z) / width
    return (kernel @ slope + apart) / count
