"""Natural gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_ltm.errors import UserError
from pyro_ltm.optimizers.base import TINY
from pyro_ltm.optimizers.sgd import Momentum
from pyro_ltm.registry import Card
from pyro_ltm.types import State


@dataclass(frozen=True, kw_only=True)
class Natural(Momentum):
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
