"""Gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.optimizers.base import Scheduled
from pyro_ltm.registry import Card
from pyro_ltm.types import State


@dataclass(frozen=True, kw_only=True)
class Momentum(Scheduled):
    """Steps along the gradients, with momentum."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimizer: momentum = {self.momentum}: from 0 to below 1")

    def init(self, state: State) -> State:
        """The velocity of each parameter, zero."""
        return {f"velocity.{name}": torch.zeros_like(value) for name, value in state.items()}

    def step(
        self, state: State, grads: State, memory: State, *, losses: Tensor, step: int, steps: int
    ) -> tuple[State, State]:
        """One update at the learning rate of this step."""
        lr = self.rate(step, steps)
        moved, remembered = {}, {}
        for name, value in state.items():
            velocity = self.momentum * memory[f"velocity.{name}"] + grads[name]
            ahead = grads[name] + self.momentum * velocity if self.nesterov else velocity
            moved[name], remembered[f"velocity.{name}"] = value - lr * ahead, velocity
        return moved, remembered


@dataclass(frozen=True, kw_only=True)
class SGD(Momentum):
    """Gradient descent with momentum (Polyak 1964; Nesterov 1983).

    Args:
        lr, lr_final, schedule: the learning rate and how it falls.
        momentum: share of the last step that goes on. nesterov: look ahead along it.
    """

    card: ClassVar[Card] = Card(
        summary="gradient descent with momentum",
        cost="one number kept for each parameter",
        when="comparisons; a learning rate must be found for each decoder",
        reference="Polyak 1964",
    )
    lr: float = 0.1
    momentum: float = 0.5
