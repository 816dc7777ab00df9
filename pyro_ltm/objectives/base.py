"""What an objective is: a bound on the evidence, made of the parts that a model and a guide give."""

from __future__ import annotations

import copy
from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_ltm.errors import UserError
from pyro_ltm.types import Batch, State


@dataclass(frozen=True)
class Terms:
    """The parts of a bound for K particles of B sequences, in nats, summed over tokens and latent dimensions.

    Shapes:
        log_likelihood: [K, B] log p(x | z). log_prior: [K, B] log p(z). log_guide: [K, B] log q(z).
        kl: [B] KL(q || p) in closed form; None unless the objective reads it (`needs_analytic_kl`).
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor
    kl: Tensor | None = None

    @property
    def log_weight(self) -> Tensor:
        """[K, B] log p(x, z) - log q(z)."""
        return self.log_likelihood + self.log_prior - self.log_guide

    @property
    def distortion(self) -> Tensor:
        """[B] E_q[-log p(x | z)]."""
        return -self.log_likelihood.mean(0)

    @property
    def rate(self) -> Tensor:
        """[B] KL(q || p), exact where it can be."""
        return self.kl if self.kl is not None else (self.log_guide - self.log_prior).mean(0)


MOST_PARTICLES = 1 << 12
"""Particles share one trace: more of them need memory that no machine has."""


class Objective(ELBO):
    """A variational bound: a `pyro.infer.ELBO`, so that `objective(model, guide)` is Pyro's own ELBOModule.

    Sums over tokens and latent dimensions, never means. To add a bound, give `bound` and one line in the registry.

    Args:
        particles: draws K of the thoughts for each sequence.
        beta: weight of the KL term; at 1 the objective bounds the evidence.
        warmup: share of training over which `at` raises the weight from 0 to `beta` (arXiv:1511.06349).

    Attributes:
        needs_analytic_kl: `bound` reads `Terms.kl`; such an objective refuses a guide without a closed form.
    """

    needs_analytic_kl: ClassVar[bool] = False

    def __init__(self, particles: int = 1, beta: float = 1.0, warmup: float = 0.0):
        if not 1 <= particles <= MOST_PARTICLES or not beta >= 0 or not 0 <= warmup <= 1:
            raise UserError(
                f"objective: particles = {particles}, beta = {beta}, warmup = {warmup}: "
                f"needs 1 to {MOST_PARTICLES} particles, beta at least 0, and warmup from 0 to 1"
            )
        super().__init__(num_particles=particles, max_plate_nesting=1, vectorize_particles=True)
        self.beta = beta
        self.warmup = warmup

    def check(self, guide: nn.Module) -> None:
        """Raises UserError when `guide` cannot give what this objective reads."""
        if self.needs_analytic_kl and not has_analytic_kl(guide):
            raise UserError(
                f"{type(guide).__name__} has no closed-form KL to the prior, which {type(self).__name__} needs: "
                "use the objective 'elbo', which estimates it"
            )

    @abstractmethod
    def bound(self, terms: Terms) -> Tensor:
        """The bound of each sequence in nats, [B], as the `terms` estimate it."""

    def at(self, progress: float) -> Objective:
        """This objective as it stands when the share `progress` (0 to 1) of training is done: its annealed form."""
        annealed = copy.copy(self)
        annealed.warmup = 0.0
        if progress < self.warmup:
            annealed.beta = self.beta * progress / self.warmup
        return annealed

    def terms(self, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> Terms:
        """Runs guide and model once, all particles together, and takes the parts from their traces.

        Raises:
            UserError: the guide has no closed-form KL and this objective needs one.
        """
        self.check(guide)
        particles = self.num_particles
        plate = pyro.plate("particles", particles, dim=-2) if particles > 1 else nullcontext()
        with plate:
            guide_trace = poutine.trace(guide).get_trace(batch, state)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch, state)
        guide_trace.compute_log_prob()  # and not the distributions' own log_prob: Pyro's scales and masks count
        model_trace.compute_log_prob()
        q: Any = guide_trace.nodes["thoughts"]
        p: Any = model_trace.nodes["thoughts"]
        shape = (particles, batch.size)
        kl = None
        if self.needs_analytic_kl:
            kl = scale_and_mask(kl_divergence(q["fn"], p["fn"]), scale=q["scale"], mask=q["mask"]).reshape(shape)[0]
        return Terms(
            log_likelihood=model_trace.nodes["tokens"]["log_prob"].reshape(shape),
            log_prior=p["log_prob"].reshape(shape),
            log_guide=q["log_prob"].reshape(shape),
            kl=kl,
        )

    def differentiable_loss(self, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> Tensor:
        """Minus the bound in nats, summed over the batch."""
        return -self.bound(self.terms(model, guide, batch, state)).sum()

    def loss(self, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> float:
        """`differentiable_loss` as a float."""
        return float(self.differentiable_loss(model, guide, batch, state).detach())

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("objectives take all particles from one vectorized trace (see `terms`)")


def has_analytic_kl(guide: nn.Module) -> bool:
    """Whether the guide's class says that its KL to the prior has a closed form."""
    return bool(getattr(guide, "has_analytic_kl", False))
