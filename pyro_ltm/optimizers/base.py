"""Base classes of fast optimizers: they move the local parameters of each sequence's posterior and keep no state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.registry import Card, Member
from pyro_ltm.types import State

TINY = 1e-30
"""Far below the square of any gradient that matters, and above the smallest float32."""

SCHEDULES = ("cosine", "linear", "exponential", "constant")


def schedule(name: str, step: int, steps: int, final: float) -> float:
    """Share of the first learning rate at `step` of `steps`: from 1 towards `final`."""
    share = step / max(steps, 1)
    if name == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
    if name == "linear":
        return 1 + (final - 1) * share
    return float(final**share) if name == "exponential" else 1.0


class FastOptimizer(Member, ABC):
    """`init(state) -> memory`, `step(state, grads, memory, ...) -> (state, memory)`; each sequence by itself.

    Attributes:
        card: one line each on what it is and when to use it.
        wants_natural_gradient: `grads` are the guide's natural gradients; fits only guides that have them.
        needs_fixed_loss: the loss must be the same function in every step: fixed noise, or a guide without noise.
    """

    has_fields: ClassVar[bool] = True
    card: ClassVar[Card]
    arguments: ClassVar[tuple[str, ...]] = ("lr",)
    wants_natural_gradient: ClassVar[bool] = False
    needs_fixed_loss: ClassVar[bool] = False

    def shortened(self, gradients: State, natural: State) -> State:
        """The natural gradient as this optimizer wants it; only of one that `wants_natural_gradient`."""
        raise NotImplementedError(f"{type(self).__name__} takes plain gradients")

    @abstractmethod
    def init(self, state: State) -> State:
        """The optimizer's memory for these parameters: tensors with leading dimension B."""

    @abstractmethod
    def step(
        self, state: State, grads: State, memory: State, *, losses: Tensor, step: int, steps: int
    ) -> tuple[State, State]:
        """State and memory after fast step `step` (from 0) of `steps`, given the `losses` [B] at `state` in nats."""


@dataclass(frozen=True, kw_only=True)
class Scheduled(FastOptimizer):
    """Base of optimizers whose learning rate falls.

    Args:
        lr: first learning rate.
        lr_final: share of it towards which it falls; 1 keeps it constant.
        schedule: how it falls: cosine, linear, exponential or constant.
    """

    lr: float = 0.5
    lr_final: float = 0.1
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.lr_final <= 1:
            raise UserError(f"optimizer: lr = {self.lr}, lr_final = {self.lr_final}: lr above 0, lr_final from 0 to 1")
        if self.schedule not in SCHEDULES:
            raise UserError(f"optimizer: schedule = {self.schedule!r}: choose from {', '.join(SCHEDULES)}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at `step` of `steps`."""
        return self.lr * schedule(self.schedule, step, steps, self.lr_final)
