"""Fast optimizers: they move the local parameters of each sequence's posterior, and keep no state of their own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.types import Card, Registry, State

SCHEDULES = ("cosine", "linear", "exponential", "constant")


def schedule(name: str, step: int, steps: int, final: float) -> float:
    """Share of the first learning rate at `step` of `steps`: from 1 towards `final`."""
    share = step / max(steps, 1)
    if name == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
    if name == "linear":
        return 1 + (final - 1) * share
    return float(final**share) if name == "exponential" else 1.0


class FastOptimizer(ABC):
    """`init(state) -> memory`, `step(state, grads, memory, ...) -> (state, memory)`; each sequence by itself.

    Attributes:
        card: one line each on what it is and when to use it.
        wants_natural_gradient: `grads` are the guide's natural gradients; fits only guides that have them.
        needs_fixed_loss: the loss must be the same function in every step: fixed noise, or a guide without noise.
    """

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
class _Scheduled(FastOptimizer):
    """What has a learning rate that falls.

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


@dataclass(frozen=True, kw_only=True)
class Adam(_Scheduled):
    """Adam (arXiv:1412.6980), or AdamW (arXiv:1711.05101) with weight decay.

    With the usual eps of 1e-8 every latent dimension moves by the learning rate in each step, also those about which
    the text says nothing: they wander in the noise and cost KL. The prior pulls a mean back with a gradient of its own
    size, so an eps of 1 lets such dimensions fall back to it, and the others move as ever (figures: docs/decisions.md).

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
        moved, kept = {}, {}
        for name, value in state.items():
            mean = torch.lerp(memory[f"mean.{name}"], grads[name], 1 - self.beta1)
            square = memory[f"square.{name}"] * self.beta2 + (1 - self.beta2) * grads[name] ** 2
            # TINY: the root has no derivative at zero, and the unrolled fast loop asks for one.
            unbiased = (square / (1 - self.beta2 ** (step + 1)) + TINY).sqrt() + self.eps
            decayed = value * (1 - lr * self.weight_decay)
            moved[name] = decayed - (lr / (1 - self.beta1 ** (step + 1))) * mean / unbiased
            kept[f"mean.{name}"], kept[f"square.{name}"] = mean, square
        return moved, kept


TINY = 1e-30
"""Far below the square of any gradient that matters, and above the smallest float32."""


@dataclass(frozen=True, kw_only=True)
class _Momentum(_Scheduled):
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
        moved, kept = {}, {}
        for name, value in state.items():
            velocity = self.momentum * memory[f"velocity.{name}"] + grads[name]
            ahead = grads[name] + self.momentum * velocity if self.nesterov else velocity
            moved[name], kept[f"velocity.{name}"] = value - lr * ahead, velocity
        return moved, kept


@dataclass(frozen=True, kw_only=True)
class SGD(_Momentum):
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


@dataclass(frozen=True, kw_only=True)
class Natural(_Momentum):
    """Natural gradient descent (Amari 1998): each step is as long as it moves q, not as it moves q's numbers.

    Where q is certain, its mean takes short steps; where it is wide, long ones. With an exact gradient on a Gaussian
    posterior the mean is reached in one step of lr 1. Far from there, and with the noise of few particles, such steps
    can be far too long: none moves q further than `radius` times the learning rate, in the norm that its Fisher
    information gives (half the square of that is the KL in nats between q before and after).

    Args:
        lr, lr_final, schedule, momentum, nesterov: as in gradient descent.
        radius: longest natural gradient.
    """

    card: ClassVar[Card] = Card(
        summary="natural gradient descent, for Gaussian families",
        cost="as sgd; small products of the covariance's factors besides",
        when="mean-field in few fast steps; noisy for families with many correlations",
        reference="arXiv:1206.7051",
    )
    wants_natural_gradient: ClassVar[bool] = True
    lr: float = 0.3
    radius: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius > 0:
            raise UserError(f"optimizer: radius = {self.radius}: above 0")

    def shortened(self, gradients: State, natural: State) -> State:
        """`natural`, of each sequence no longer than the radius in the Fisher norm."""
        squares = [(gradients[name] * value).flatten(1).sum(1) for name, value in natural.items()]
        length = torch.stack(squares).sum(0).clamp(min=TINY).sqrt()
        share = (self.radius / length).clamp(max=1.0)
        return {name: value * share.view(-1, *[1] * (value.dim() - 1)) for name, value in natural.items()}


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
        kept = {"point": point, "gradient": gradient, "loss": loss, "radius": radius, "moves": moves, "turns": turns}
        # The last step is not measured any more, so it is not taken.
        return _unflatten(point if step == steps - 1 else point + direction, state), kept


def _flatten(state: State) -> Tensor:
    """[B, P] all parameters of each sequence."""
    return torch.cat([value.flatten(1) for value in state.values()], dim=1)


def _unflatten(flat: Tensor, like: State) -> State:
    sizes = [value[0].numel() for value in like.values()]
    parts = zip(like.items(), flat.split(sizes, dim=1), strict=True)
    return {name: part.view_as(value) for (name, value), part in parts}


def _push(kept: Tensor, new: Tensor) -> Tensor:
    """The last rows [B, M, P] with `new` [B, P] at the end."""
    return torch.cat([kept[:, 1:], new[:, None]], dim=1)


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


OPTIMIZERS: Registry[FastOptimizer] = Registry(
    "optimizer", {"adam": Adam, "sgd": SGD, "natural": Natural, "lbfgs": LBFGS}
)
