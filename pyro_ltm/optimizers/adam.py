"""Adam with a falling learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.optimizers.base import TINY, Scheduled
from pyro_ltm.registry import Card
from pyro_ltm.types import State


@dataclass(frozen=True, kw_only=True)
class Adam(Scheduled):
    """Adam (arXiv:1412.6980), or AdamW (arXiv:1711.05101) with weight decay.

    With the usual eps of 1e-8 every latent dimension moves by the learning rate in each step, also those about which
    the text says nothing: they wander in the noise and cost KL. The prior pulls a mean back with a gradient of its own
    size, so an eps of 1 lets such dimensions fall back to it, and the others move as ever (docs/decisions.md).

    Args:
        lr, lr_final, schedule: the learning rate and how it falls.
        beta1, beta2: decay of the mean and of the square of the gradients.
        eps: added to the root of the square (the reference implementation has 1e-8).
        weight_decay: decoupled decay of the parameters (the reference implementation has 0.01).
    """

    card: ClassVar[Card] = Card(
        summary="Adam with a falling learning rate",
        cost="two numbers kept for each parameter",
        when="the default",
        reference="arXiv:1412.6980",
    )
    beta1: float = 0.5
    beta2: float = 0.999
    eps: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError(f"optimizer: beta1 = {self.beta1}, beta2 = {self.beta2}: from 0 to below 1")
        if not self.eps > 0 or not self.weight_decay >= 0:
            raise UserError(f"optimizer: eps = {self.eps}, weight_decay = {self.weight_decay}: above 0, and at least 0")

    def init(self, state: State) -> State:
        """Mean and square of the gradients of each parameter, all zero."""
        return {
            f"{kind}.{name}": torch.zeros_like(value) for kind in ("mean", "square") for name, value in state.items()
        }

    def step(
        self, state: State, grads: State, memory: State, *, losses: Tensor, step: int, steps: int
    ) -> tuple[State, State]:
        """One update at the learning rate of this step."""
        lr = self.rate(step, steps)
        moved, remembered = {}, {}
        for name, value in state.items():
            mean = torch.lerp(memory[f"mean.{name}"], grads[name], 1 - self.beta1)
            square = memory[f"square.{name}"] * self.beta2 + (1 - self.beta2) * grads[name] ** 2
            # TINY: the root has no derivative at zero, and the unrolled fast loop asks for one.
            unbiased = (square / (1 - self.beta2 ** (step + 1)) + TINY).sqrt() + self.eps
            decayed = value * (1 - lr * self.weight_decay)
            moved[name] = decayed - (lr / (1 - self.beta1 ** (step + 1))) * mean / unbiased
            remembered[f"mean.{name}"], remembered[f"square.{name}"] = mean, square
        return moved, remembered
