"""L-BFGS, for a loss that does not change from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.optimizers.base import TINY, FastOptimizer
from pyro_ltm.registry import Card
from pyro_ltm.types import State


@dataclass(frozen=True, kw_only=True)
class LBFGS(FastOptimizer):
    """L-BFGS for each sequence by itself (Liu and Nocedal 1989), one gradient a step.

    There is no line search, which would cost gradients of its own: a step is no longer than `radius`; where the loss
    did not fall, the next one starts again from the best point with half the radius.

    Args:
        memory: pairs of steps and gradients kept. radius: the longest first step (Euclidean norm).
    """

    card: ClassVar[Card] = Card(
        summary="quasi-Newton on a loss that does not change",
        cost="two numbers kept for each parameter and pair",
        when="delta and laplace: the mode in few steps; or fixed noise",
        reference="Liu and Nocedal 1989",
    )
    arguments: ClassVar[tuple[str, ...]] = ("memory",)
    needs_fixed_loss: ClassVar[bool] = True
    memory: int = 8
    radius: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.memory <= 64 or not self.radius > 0:
            raise UserError(f"optimizer: memory = {self.memory}, radius = {self.radius}: 1 to 64, and above 0")

    def init(self, state: State) -> State:
        """Best point and its gradient [B, P], loss and radius [B], and the last pairs [B, memory, P]."""
        flat = _flatten(state)
        pairs = flat.new_zeros(len(flat), self.memory, flat.shape[1])
        best = flat.new_full((len(flat),), math.inf)
        radius = flat.new_full((len(flat),), self.radius)
        return {
            "point": flat, "gradient": flat * 0, "loss": best, "radius": radius, "moves": pairs, "turns": pairs.clone()
        }  # fmt: skip

    def step(
        self, state: State, grads: State, memory: State, *, losses: Tensor, step: int, steps: int
    ) -> tuple[State, State]:
        """From the better of the last two points, along the quasi-Newton direction."""
        point, gradient = _flatten(state), _flatten(grads)
        better = (losses < memory["loss"]) & losses.isfinite()
        move, turn = point - memory["point"], gradient - memory["gradient"]
        # A pair with negative curvature would make the inverse Hessian indefinite.
        curved = (move * turn).sum(-1) > 1e-10 * turn.square().sum(-1)
        learned = (curved & memory["loss"].isfinite() & gradient.isfinite().all(-1))[:, None, None]
        moves = torch.where(learned, _push(memory["moves"], move), memory["moves"])
        turns = torch.where(learned, _push(memory["turns"], turn), memory["turns"])
        point = torch.where(better[:, None], point, memory["point"])
        gradient = torch.where(better[:, None], gradient, memory["gradient"])
        radius = torch.where(better, (2 * memory["radius"]).clamp(max=self.radius), memory["radius"] / 2)
        direction = _two_loops(gradient, moves, turns)
        uphill = (direction * gradient).sum(-1, keepdim=True) >= 0
        direction = torch.where(uphill, -gradient, direction)
        length = direction.norm(dim=-1, keepdim=True)
        direction = direction * (radius[:, None] / length.clamp(min=TINY)).clamp(max=1.0)
        loss = torch.where(better, losses, memory["loss"])
        after = {
            "point": point,
            "gradient": gradient,
            "loss": loss,
            "radius": radius,
            "moves": moves,
            "turns": turns,
        }
        # The last step is not measured any more, so it is not taken.
        return _unflatten(point if step == steps - 1 else point + direction, state), after


def _flatten(state: State) -> Tensor:
    """[B, P] all parameters of each sequence."""
    return torch.cat([value.flatten(1) for value in state.values()], dim=1)


def _unflatten(flat: Tensor, like: State) -> State:
    sizes = [value[0].numel() for value in like.values()]
    parts = zip(like.items(), flat.split(sizes, dim=1), strict=True)
    return {name: part.view_as(value) for (name, value), part in parts}


def _push(rows: Tensor, new: Tensor) -> Tensor:
    """The last rows [B, M, P] with `new` [B, P] at the end."""
    return torch.cat([rows[:, 1:], new[:, None]], dim=1)


def _two_loops(gradient: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """Minus the inverse Hessian times `gradient` [B, P] (Nocedal 1980); empty pairs are zero and change nothing."""
    products = (moves * turns).sum(-1)
    inverse = torch.where(products > 0, 1 / products, torch.zeros_like(products))
    q, steps = gradient, []
    for index in reversed(range(moves.shape[1])):
        alpha = inverse[:, index] * (moves[:, index] * q).sum(-1)
        q = q - alpha[:, None] * turns[:, index]
        steps.append(alpha)
    last = turns[:, -1].square().sum(-1)
    scale = torch.where(last > 0, products[:, -1] / last, torch.ones_like(last))
    q = scale[:, None] * q
    for index, alpha in zip(range(moves.shape[1]), reversed(steps), strict=True):
        beta = inverse[:, index] * (turns[:, index] * q).sum(-1)
        q = q + (alpha - beta)[:, None] * moves[:, index]
    return -q
