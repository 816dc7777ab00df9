"""Base class of objectives: bounds on the evidence, made of the terms that a model and a guide give."""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ltm.divergence import analytic_kl, kind
from pyro_ltm.errors import UserError
from pyro_ltm.registry import Card, Member
from pyro_ltm.types import Batch, State, frozen


@dataclass(frozen=True)
class Terms:
    """The parts of a bound for K particles of B sequences, in nats, summed over tokens and latent dimensions.

    Shapes:
        log_likelihood: [K, B] log p(x | z). log_prior: [K, B] log p(z). log_guide: [K, B] log q(z).
        kl: [B] KL(q || p) to the model's own prior in closed form; None unless the objective reads it and there is one.
        kl_by_thought: [B, N] the same for each thought; None unless the objective asks for it.
        thoughts: [K, B, N, D] the draws, as the model read them.
        state: the local parameters, the objective's own among them.
        prior: p(z), of event shape [N, D].
        stopped_log_guide: computes log_guide again, with no gradient to the guide's parameters but through the draws.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor
    kl: Tensor | None = None
    kl_by_thought: Tensor | None = None
    thoughts: Tensor | None = None
    state: State = field(default_factory=dict)
    prior: Distribution | None = None
    stopped_log_guide: Callable[[], Tensor] | None = field(default=None, repr=False)

    @cached_property
    def pathwise(self) -> Terms:
        """The same numbers; gradients to q flow through the draws alone, not through log q's own parameters."""
        assert self.stopped_log_guide is not None  # `Objective.terms` gives it
        return dataclasses.replace(self, log_guide=self.stopped_log_guide())

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


def require(good: bool, name: str, value: object, needs: str) -> None:
    """Raises UserError, naming the option and what it needs, unless its value is `good`."""
    if not good:
        raise UserError(f"objective: {name} = {value!r}: {needs}")


def raise_draws(loss: Tensor, counts: Tensor, log_weight: Tensor) -> Tensor:
    """The number of `loss` [B], by whose descent draw k's log weight [K, B] is raised `counts` [K, B] times."""
    gain = (counts.detach() * log_weight).sum(0)
    return loss.detach() - (gain - gain.detach())


class Objective(Member, ELBO):
    """A variational bound: a `pyro.infer.ELBO`, so that `objective(model, guide)` is Pyro's own ELBOModule.

    Sums over tokens and latent dimensions, never means. To add a bound, give `value` and one line in the registry;
    where q or the decoder does not learn by the gradient of -value, `guide_loss` and `decoder_loss` as well.

    Args:
        particles: draws K of the thoughts for each sequence.
        beta: weight of the KL term; at 1 the objective bounds the evidence.
        warmup: share of training, from the first step with thoughts, over
            which `at` raises the weight from 0 to `beta` (arXiv:1511.06349).

    Attributes:
        card: what `pyro-ltm objectives` says of it.
        arguments: its options that may follow its name, as in `renyi:0.5:16`.
        reads_kl: `value` reads `Terms.kl`, or `Terms.rate`, which is the closed form where the guide has one.
        needs_analytic_kl: it cannot do without; such an objective refuses a guide without a closed form.
        needs_kl_by_thought: `value` reads `Terms.kl_by_thought`.
        needs_normal_prior: it reads the means and widths of a prior of independent Normals.
        needs_density: it reads log q, which a point does not have.
        is_joint: it is log p(x, z), which samplers follow, and which has no maximum over families with a width.
        moves_within_fit: what is to be raised changes from one fast step to the next.
        is_linear: `value` is linear in log p(x | z), so that an unbiased estimate of that, from a sample of the tokens,
            is one of the value and of its gradient.
        couples_batch: what a sequence gets depends on who shares its batch.
        is_per_sequence: it gives each sequence a value, and not the whole batch one.
        needs_independent_draws: its gradient to q is that of the value only where the draws of a sequence know nothing
            of one another: not in mirrored pairs.
        likelihood_alone: it bounds or estimates the evidence, and asks nothing more of thoughts.
        fewest_particles: draws below which it means nothing.
        learned: a number or more that training moves (`after_step`) and a run keeps; None: nothing.
    """

    card: ClassVar[Card]
    arguments: ClassVar[tuple[str, ...]] = ()
    reads_kl: bool = False
    needs_analytic_kl: ClassVar[bool] = False
    needs_kl_by_thought: bool = False
    needs_normal_prior: ClassVar[bool] = False
    needs_density: bool = True
    is_joint: ClassVar[bool] = False
    moves_within_fit: bool = False
    is_linear: ClassVar[bool] = False
    couples_batch: bool = False
    is_per_sequence: ClassVar[bool] = True
    needs_independent_draws: ClassVar[bool] = False
    likelihood_alone: ClassVar[bool] = True
    fewest_particles: ClassVar[int] = 1
    learned: nn.Module | None = None

    def __init__(self, particles: int = 1, beta: float = 1.0, warmup: float = 0.0):
        fewest = self.fewest_particles
        require(fewest <= particles <= MOST_PARTICLES, "particles", particles, f"from {fewest} to {MOST_PARTICLES}")
        require(0 <= beta < math.inf, "beta", beta, "a number of at least 0")
        require(0 <= warmup <= 1, "warmup", warmup, "from 0 to 1")
        super().__init__(num_particles=particles, max_plate_nesting=1, vectorize_particles=True)
        self.beta = beta
        self.warmup = warmup

    @property
    def name(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    @abstractmethod
    def value(self, terms: Terms) -> Tensor:
        """The bound of each sequence in nats, [B], as the `terms` estimate it."""

    def guide_loss(self, terms: Terms) -> Tensor:
        """[B] in nats, what q descends."""
        return -self.value(terms)

    def decoder_loss(self, terms: Terms) -> Tensor:
        """[B] in nats, what the decoder descends; minus the value, also where `guide_loss` is another."""
        return -self.value(terms)

    @property
    def descends_value(self) -> bool:
        """Whether q and decoder both descend -value itself."""
        own = type(self)
        return own.guide_loss is Objective.guide_loss and own.decoder_loss is Objective.decoder_loss

    @property
    def has_one_loss(self) -> bool:
        """Whether the gradient of `guide_loss` is right for q and decoder alike."""
        return self.descends_value or type(self).guide_loss is type(self).decoder_loss

    def log_weight(self, terms: Terms) -> Tensor:
        """[K, B] log p(x | z) + beta (log p(z) - log q(z))."""
        return terms.log_likelihood + self.beta * (terms.log_prior - terms.log_guide)

    def local(self, batch: Batch) -> State:
        """Local parameters of the objective's own, fitted with the guide's; most have none."""
        return {}

    def at(self, progress: float) -> Objective:
        """This objective when the share `progress` (0 to 1) of training with thoughts is done: its annealed form."""
        annealed = copy.copy(self)
        annealed.warmup = 0.0
        if progress < self.warmup:
            annealed.beta = self.beta * progress / self.warmup
        return annealed

    def within(self, share: float) -> Objective:
        """This objective as it stands when the `share` (0 to 1) of the fast steps is done; most do not change."""
        return self

    def after_step(self, rate: Tensor) -> None:
        """Called after each slow step with thoughts: with the mean rate of its sequences, nats, a scalar.

        It is NaN where the step was not taken, for something in it was not finite.
        """

    def refusal(self, guide: Any) -> str:
        """Why this objective does not fit `guide` (or all of a class of guides); empty where it does."""
        family, name = type(guide).__name__, self.name
        has_local = type(self).local is not Objective.local
        if self.needs_density and not guide.has_density:
            return f"{family} has no density, which {name} needs"
        if guide.follows_joint and not self.is_joint:
            return f"{family} follows log p(x, z), which {name} is not"
        if self.is_joint and guide.has_density:
            return f"{family} has a width, and {name} would shrink it without end"
        if self.needs_analytic_kl and not guide.has_analytic_kl:
            return f"{family} has no closed-form KL to the prior, which {name} needs"
        if self.needs_kl_by_thought and not guide.has_kl_by_thought:
            return f"{family} has no KL of single thoughts, which {name} needs"
        if guide.learning == "amortized" and has_local:
            return f"{family} takes no fast steps, which {name} needs for parameters of its own"
        if guide.learning == "unrolled" and (has_local or not self.descends_value):
            return f"{family} is unrolled through gradients that must be those of the bound, which {name}'s are not"
        return ""

    @property
    def needs_closed_form(self) -> bool:
        """Whether it reads something of guide and prior that a closed form alone gives."""
        return self.needs_analytic_kl or self.needs_kl_by_thought or self.needs_normal_prior

    def check(self, guide: Any) -> None:
        """Raises UserError when `guide` cannot give what this objective reads."""
        if reason := self.refusal(guide):
            raise UserError(reason)

    def terms(self, model: nn.Module, guide: Any, batch: Batch, state: State) -> Terms:
        """Runs guide and model once, all particles together, and takes the parts from their traces.

        Raises:
            UserError: the guide cannot give what this objective reads.
        """
        self.check(guide)
        particles = self.num_particles
        with self._plate():
            guide_trace = poutine.trace(guide).get_trace(batch, state)
        guide_trace.compute_log_prob()  # and not the distributions' own log_prob: Pyro's scales and masks count
        q: Any = guide_trace.nodes["thoughts"]
        shape = (particles, batch.size)
        with self._plate():
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch, state)
        model_trace.compute_log_prob()
        p: Any = model_trace.nodes["thoughts"]
        kl = analytic_kl(q["fn"], p["fn"]) if self.reads_kl and guide.has_analytic_kl else None
        if kl is not None:
            kl = scale_and_mask(kl, scale=q["scale"], mask=q["mask"]).reshape(shape)[0]
        elif self.needs_analytic_kl:
            raise UserError(self._needs("the KL of", guide, p["fn"], "the objective 'elbo' or 'stl'"))
        return Terms(
            log_likelihood=model_trace.nodes["tokens"]["log_prob"].reshape(shape),
            log_prior=p["log_prob"].reshape(shape),
            log_guide=q["log_prob"].reshape(shape),
            kl=kl,
            kl_by_thought=self._kl_by_thought(guide, state, p["fn"], shape) if self.needs_kl_by_thought else None,
            thoughts=q["value"].reshape(*shape, *q["value"].shape[-2:]),
            state=state,
            prior=p["fn"],
            stopped_log_guide=lambda: self._stopped_log_guide(guide, guide_trace, batch, state).reshape(shape),
        )

    def _kl_by_thought(self, guide: Any, state: State, prior: Distribution, shape: tuple[int, int]) -> Tensor:
        kl: Tensor | None = guide.kl_by_thought(state, prior)
        if kl is None:
            raise UserError(self._needs("the KL of single thoughts of", guide, prior, "the KL of all: per = 'total'"))
        return kl.expand(*shape, -1)[0]

    def _needs(self, what: str, guide: nn.Module, prior: Distribution, instead: str) -> str:
        kinds = f"{type(guide).__name__} to the model's prior, {kind(prior)}"
        return f"{type(self).__name__} needs {what} {kinds}, in closed form, and none is known: use {instead}"

    def _stopped_log_guide(self, guide: nn.Module, trace: Any, batch: Batch, state: State) -> Tensor:
        """Log q of the trace's draws, its parameters without gradients (arXiv:1703.09194)."""
        stopped = {name: value.detach() for name, value in state.items()}
        with self._plate(), frozen(guide):
            again = poutine.trace(poutine.replay(guide, trace=trace)).get_trace(batch, stopped)
            again.compute_log_prob()
        log_prob: Tensor = again.nodes["thoughts"]["log_prob"]
        return log_prob

    def _plate(self) -> Any:
        return pyro.plate("particles", self.num_particles, dim=-2) if self.num_particles > 1 else nullcontext()

    def loss_and_value(self, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> tuple[Tensor, Tensor]:
        """The loss of q and the value of each sequence in nats, [B] each, from one pass; the value has no gradient."""
        terms = self.terms(model, guide, batch, state)
        loss = self.guide_loss(terms)
        with torch.no_grad():
            return loss, self.value(terms)

    def differentiable_loss(self, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of q in nats, summed over the batch; no gradient to the model where that learns by another."""
        with nullcontext() if self.has_one_loss else frozen(model):
            return self.guide_loss(self.terms(model, guide, batch, state)).sum()

    def loss(self, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> float:
        """`differentiable_loss` as a float."""
        return float(self.differentiable_loss(model, guide, batch, state).detach())

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("objectives take all particles from one vectorized trace (see `terms`)")


class MultiSample(Objective, ABC):
    """Base of objectives that compare the weights of several draws: 8 where nothing is said."""

    arguments: ClassVar[tuple[str, ...]] = ("particles",)

    def __init__(self, particles: int = 8, beta: float = 1.0, warmup: float = 0.0):
        super().__init__(particles, beta, warmup)
