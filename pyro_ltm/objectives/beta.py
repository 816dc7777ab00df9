"""The ELBO with another weight of the KL: fixed, raised once, or raised in cycles."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from pyro_ltm.objectives.base import Objective, Terms, require
from pyro_ltm.registry import Card


class _Weighted(Objective, ABC):
    """Minus the distortion, less the weighted rate."""

    is_linear: ClassVar[bool] = True
    likelihood_alone: ClassVar[bool] = False
    reads_kl: bool = True

    def value(self, terms: Terms) -> Tensor:
        """[B] mean over particles."""
        return -terms.distortion - self.beta * terms.rate


class BetaELBO(_Weighted):
    """E_q[log p(x | z)] - beta KL(q || p); no bound on the evidence below beta = 1.

    The KL is `Terms.rate`: exact where the guide has a closed form, else estimated from the same draws. So it works
    with every guide that has a density. Higgins et al. 2017.

    Args:
        particles: draws K.
        beta: weight of the KL. The paper has 4 and more, for few and separate factors in images. Text collapses even
            at 1, and the default of 1/2 lets thoughts carry what costs up to two nats of KL for each nat it saves.
        warmup: share of training over which the weight rises to `beta`.
    """

    card: ClassVar[Card] = Card(
        summary="the KL weighted by beta (0.5 by default); no bound below 1",
        cost="one decoder pass a particle",
        when="below 1: thoughts that would collapse; above 1 (the paper: 4): few and separate factors",
        reference="Higgins et al. 2017",
    )
    arguments: ClassVar[tuple[str, ...]] = ("beta", "particles")

    def __init__(self, particles: int = 1, beta: float = 0.5, warmup: float = 0.0):
        super().__init__(particles, beta, warmup)


OVER = ("training", "fit")


class _Scheduled(_Weighted):
    """A weight of the KL that moves, over training (`at`) or over the fast steps of each fit (`within`).

    Over training every fit has one weight; over the fit the decoder always learns at the full weight.
    """

    def __init__(self, particles: int, beta: float, over: str):
        super().__init__(particles, beta)
        require(over in OVER, "over", over, f"choose from {', '.join(OVER)}")
        self.over = over
        self.moves_within_fit = over == "fit"

    @abstractmethod
    def share(self, progress: float) -> float:
        """Share of `beta` that counts when the share `progress` of the schedule is done; 1 at its end."""

    def at(self, progress: float) -> Objective:
        """This objective when the share `progress` of training is done; itself where it moves over the fit."""
        return self._standing(progress) if self.over == "training" else self

    def within(self, share: float) -> Objective:
        """This objective when the `share` of the fast steps is done; itself where it moves over training."""
        return self._standing(share) if self.over == "fit" else self

    def _standing(self, progress: float) -> Objective:
        standing = copy.copy(self)
        standing.beta = self.beta * self.share(progress)
        standing.over = ""  # it moves no more
        standing.moves_within_fit = False
        return standing


class KLAnnealing(_Scheduled):
    """The ELBO whose KL counts more and more: its weight rises on a line from 0 to `beta` (arXiv:1511.06349).

    Args:
        particles: draws K. beta: the last weight.
        warmup: share of the schedule over which it rises.
        over: "training", or "fit": the fast steps of each sequence.
    """

    card: ClassVar[Card] = Card(
        summary="ELBO, the KL's weight raised from 0 over training or over each fit",
        cost="one decoder pass a particle",
        when="thoughts that collapse early, before the decoder has learnt to read them",
        reference="arXiv:1511.06349",
    )
    arguments: ClassVar[tuple[str, ...]] = ("warmup", "over")

    def __init__(self, particles: int = 1, beta: float = 1.0, warmup: float = 0.5, over: str = "training"):
        super().__init__(particles, beta, over)
        require(0 <= warmup <= 1, "warmup", warmup, "from 0 to 1")
        self.rise = warmup  # not `warmup`, by which the base class anneals over training

    def share(self, progress: float) -> float:
        """A line up to 1 at `warmup`."""
        return progress / self.rise if progress < self.rise else 1.0


class Cyclical(_Scheduled):
    """The ELBO whose KL is taken back to nothing and raised again, several times (arXiv:1903.10145).

    Args:
        particles: draws K. beta: the full weight.
        cycles: how many times it rises.
        rise: share of each cycle over which it does; it stays for the rest.
        over: "training", or "fit": the fast steps of each sequence.
    """

    card: ClassVar[Card] = Card(
        summary="ELBO, the KL's weight raised from 0 several times",
        cost="one decoder pass a particle",
        when="one warm-up was not enough: each cycle starts from better thoughts",
        reference="arXiv:1903.10145",
    )
    arguments: ClassVar[tuple[str, ...]] = ("cycles", "over")

    def __init__(
        self, particles: int = 1, beta: float = 1.0, cycles: int = 4, rise: float = 0.5, over: str = "training"
    ):
        super().__init__(particles, beta, over)
        require(1 <= cycles <= 1 << 20, "cycles", cycles, f"from 1 to {1 << 20}")
        require(0 <= rise <= 1, "rise", rise, "from 0 to 1")
        self.cycles = cycles
        self.rise = rise

    def share(self, progress: float) -> float:
        """In each cycle a line up to 1 at `rise`."""
        done = progress * self.cycles % 1
        return done / self.rise if done < self.rise and progress < 1 else 1.0
