"""Fast optimizers: they move the local parameters of each sequence's posterior, and keep no state of their own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from pyro_ltm.errors import UserError
from pyro_ltm.types import Registry, State


def cosine(step: int, steps: int, final: float) -> float:
    """Share of the first learning rate at `step` of `steps`: from 1 along half a cosine towards `final`."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))


class FastOptimizer(ABC):
    """`init(state) -> memory`, `step(state, grads, memory, ...) -> (state, memory)`; everything elementwise in B."""

    @abstractmethod
    def init(self, state: State) -> State:
        """The optimizer's memory for these parameters."""

    @abstractmethod
    def step(self, state: State, grads: State, memory: State, *, step: int, steps: int) -> tuple[State, State]:
        """State and memory after fast step `step` (from 0) of `steps`."""


@dataclass(frozen=True, kw_only=True)
class Adam(FastOptimizer):
    """Adam (arXiv:1412.6980), or AdamW (arXiv:1711.05101) with weight decay.

    With the usual eps of 1e-8 every latent dimension moves by the learning rate in each step, also those about which
    the text says nothing: they wander in the noise and cost KL. The prior pulls a mean back with a gradient of its own
    size, so an eps of 1 lets such dimensions fall back to it, and the others move as ever (figures: docs/recipe.md).

    Args:
        lr: first learning rate.
        lr_final: share of it towards which it falls along a cosine; 1 keeps it constant.
        beta1, beta2: decay of the mean and of the square of the gradients.
        eps: added to the root of the square (the reference implementation has 1e-8).
        weight_decay: decoupled decay of the parameters (the reference implementation has 0.01).
    """

    lr: float = 0.5
    lr_final: float = 0.1
    beta1: float = 0.5
    beta2: float = 0.999
    eps: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.lr_final <= 1:
            raise UserError(f"optimizer: lr = {self.lr}, lr_final = {self.lr_final}: lr above 0, lr_final from 0 to 1")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError(f"optimizer: beta1 = {self.beta1}, beta2 = {self.beta2}: from 0 to below 1")
        if not self.eps > 0 or not self.weight_decay >= 0:
            raise UserError(f"optimizer: eps = {self.eps}, weight_decay = {self.weight_decay}: above 0, and at least 0")

    def init(self, state: State) -> State:
        """Mean and square of the gradients of each parameter, all zero."""
        zeros = {f"mean.{name}": torch.zeros_like(value) for name, value in state.items()}
        return zeros | {f"square.{name}": torch.zeros_like(value) for name, value in state.items()}

    @torch.no_grad()
    def step(self, state: State, grads: State, memory: State, *, step: int, steps: int) -> tuple[State, State]:
        """One update at the learning rate of this step."""
        lr = self.lr * cosine(step, steps, self.lr_final)
        moved, kept = {}, {}
        for name, value in state.items():
            mean = torch.lerp(memory[f"mean.{name}"], grads[name], 1 - self.beta1)
            square = memory[f"square.{name}"] * self.beta2 + (1 - self.beta2) * grads[name] ** 2
            unbiased = (square / (1 - self.beta2 ** (step + 1))).sqrt() + self.eps
            decayed = value * (1 - lr * self.weight_decay)
            moved[name] = decayed - (lr / (1 - self.beta1 ** (step + 1))) * mean / unbiased
            kept[f"mean.{name}"], kept[f"square.{name}"] = mean, square
        return moved, kept


OPTIMIZERS: Registry[FastOptimizer] = Registry("optimizer", {"adam": Adam})
