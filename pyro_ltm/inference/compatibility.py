"""Checks that guide, objective, fast optimizer and noise fit one another, with an error that lists what does fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pyro_ltm.divergence import analytic_kl, kind
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference.families import FAMILIES
from pyro_ltm.inference.samplers import ParticleGuide
from pyro_ltm.noise import KINDS
from pyro_ltm.objectives import OBJECTIVES, Objective
from pyro_ltm.optimizers import OPTIMIZERS, FastOptimizer
from pyro_ltm.priors import PRIORS, Prior
from pyro_ltm.types import State


def check_fit(
    guide: Guide,
    objective: Objective,
    optimizer: FastOptimizer,
    noise: str = "fresh",
    *,
    tolerance: float = 0.0,
    subsample: int = 1,
) -> None:
    """Raises UserError when these do not fit one another."""
    if reason := objective.refusal(guide):
        fitting = [name for name, kind in OBJECTIVES.items() if not kind().refusal(guide)]
        raise UserError(f"{reason}: use {_either('objective', fitting)}, or {_either('guide', _guides(objective))}")
    if noise not in KINDS:
        raise UserError(f"noise = {noise!r}: choose from {', '.join(KINDS)}")
    if isinstance(guide, ParticleGuide) and noise != "fresh":
        raise UserError(f"noise = {noise!r}: chains of {type(guide).__name__} need new noise each step: use 'fresh'")
    _check_fixed_noise(guide, objective, noise)
    _check_mirrored_noise(guide, objective, noise)
    _check_optimizer(guide, objective, optimizer, noise)
    if tolerance:
        _check_stopping(guide, objective, optimizer, tolerance)
    if subsample > 1:
        _check_subsample(guide, objective, optimizer, noise, tolerance, subsample)


def _check_optimizer(guide: Guide, objective: Objective, optimizer: FastOptimizer, noise: str) -> None:
    """The optimizer has the gradients that it wants, and one loss for all steps where it needs that."""
    kind = type(optimizer).__name__
    if optimizer.wants_natural_gradient and not guide.has_natural_gradient:
        fitting = [name for name, family in FAMILIES.items() if family.has_natural_gradient]
        raise UserError(
            f"{type(guide).__name__} has no natural gradient, which {kind} needs: use {_either('guide', fitting)}"
        )
    if optimizer.needs_fixed_loss and objective.moves_within_fit:
        raise UserError(f"{kind} needs a loss that does not change from step to step; {objective.name} does")
    if optimizer.needs_fixed_loss and noise != "fixed" and guide.has_density:
        fitting = [name for name, other in OPTIMIZERS.items() if not other.needs_fixed_loss]
        raise UserError(
            f"{kind} needs a loss that does not change from step to step: noise = 'fixed', or a guide without noise "
            f"(delta, laplace), or {_either('optimizer', fitting)}"
        )


def _check_stopping(guide: Guide, objective: Objective, optimizer: FastOptimizer, tolerance: float) -> None:
    """Each sequence has a bound by itself, which means the same in all steps."""
    if optimizer.needs_fixed_loss:
        raise UserError(
            f"tolerance = {tolerance}: {type(optimizer).__name__} goes back from steps that failed; leave it at 0, or "
            "use 'adam'"
        )
    by_itself = objective.is_per_sequence and not objective.couples_batch and not isinstance(guide, ParticleGuide)
    if objective.moves_within_fit or not by_itself:
        raise UserError(
            f"tolerance = {tolerance}: {objective.name} with {type(guide).__name__} gives no bound for each "
            "sequence by itself that stays the same over the fast steps, so none can stop: leave it at 0"
        )


def _check_fixed_noise(guide: Guide, objective: Objective, noise: str) -> None:
    """On one fixed draw z is a number, and an estimated KL there falls without bound as q widens around it."""
    if noise != "fixed" or not objective.needs_density:
        return
    if not (objective.reads_kl and guide.has_analytic_kl):
        raise UserError(
            f"noise = 'fixed' with {objective.name} and {type(guide).__name__}: one draw cannot estimate "
            "a KL; use the objective 'analytic-elbo' and a guide whose KL has a closed form, or noise = 'fresh'"
        )


def _check_mirrored_noise(guide: Guide, objective: Objective, noise: str) -> None:
    """A gradient that takes draws for independent is another one where each is the mirror image of the one before."""
    if noise == "antithetic" and objective.needs_independent_draws and objective.num_particles > 1:
        others = [(name, kind()) for name, kind in OBJECTIVES.items()]
        fitting = [name for name, one in others if not one.needs_independent_draws and not one.refusal(guide)]
        raise UserError(
            f"noise = 'antithetic' with {objective.name}: its gradient takes the draws of a sequence for independent, "
            f"and mirrored ones are not: use noise = 'fresh', or {_either('objective', fitting)}"
        )


def check_precision(model: nn.Module, guide: Guide) -> None:
    """Raises UserError where model and guide are not of one floating type, single or double."""
    kinds = [{weight.dtype for weight in module.parameters()} for module in (model, guide)]
    if low := {kind for kind in kinds[0] | kinds[1] if kind.itemsize < 4}:
        raise UserError(
            f"weights in {str(low.pop()).removeprefix('torch.')}: the fast loop needs them in float32 or float64; for "
            "products in bfloat16 make the model with compute_dtype=torch.bfloat16"
        )
    if all(kinds) and torch.float64 in kinds[0] ^ kinds[1]:
        name = type(guide).__name__
        raise UserError(f"the model or {name} is in double precision and the other is not: use guide.to(dtype) as well")


def check_prior(prior: Any, guide: Guide, objective: Objective, noise: str = "fresh") -> None:
    """Raises UserError where guide and objective ask of the model's `prior` what it has not.

    Of a prior that is no `Prior`, nothing is known before it is asked: see `Objective.terms`.
    """
    if not isinstance(prior, Prior):
        return
    name = type(prior).__name__
    if objective.is_joint and not prior.has_exact_density:
        fitting = [name for name, family in FAMILIES.items() if family.has_density]
        raise UserError(
            f"{type(guide).__name__} follows log p(x, z), of which the prior {name} has estimates alone: use "
            f"{_either('guide', fitting)}"
        )
    if prior.has_analytic_kl:
        return
    closed = [name for name, kind in PRIORS.items() if kind.has_analytic_kl]
    if objective.needs_closed_form:
        known: Any = OBJECTIVES
        fitting = [name for name, kind in known.items() if not kind().refusal(guide) and not kind().needs_closed_form]
        raise UserError(
            f"{objective.name} needs what only a closed form of the KL to the prior gives, and {name} has none: use "
            f"{_either('objective', fitting)}, or {_either('prior', closed)}"
        )
    if noise == "fixed" and objective.needs_density:
        raise UserError(
            f"noise = 'fixed': one draw cannot estimate the KL to the prior {name}: use noise = 'fresh', or "
            f"{_either('prior', closed)}"
        )


def check_fixed_noise(guide: Guide, objective: Objective, prior: Any, state: State) -> None:
    """Raises UserError where the KL to the model's own `prior` (a module; None: not known) would be an estimate."""
    if prior is None or not objective.needs_density:
        return
    its = prior()
    if analytic_kl(guide.distribution(state), its) is None:
        raise UserError(
            f"noise = 'fixed' with {type(guide).__name__} and the model's prior, {kind(its)}: one draw cannot estimate "
            "their KL, and no closed form is known: use noise = 'fresh'"
        )


def _check_subsample(
    guide: Guide, objective: Objective, optimizer: FastOptimizer, noise: str, tolerance: float, subsample: int
) -> None:
    """A stretch of the tokens is right on average for what is linear in their log-probabilities, and nothing else."""
    where, whole = f"subsample = {subsample}", "set it to 1 (fast.subsample=1)"
    if not objective.is_linear:
        linear = [name for name, kind in OBJECTIVES.items() if kind.is_linear]
        raise UserError(
            f"{where}: {objective.name} is not linear in log p(x | z), which a sample of the tokens would "
            f"bias: {whole}, or use {_either('objective', linear)}"
        )
    if isinstance(guide, ParticleGuide):
        raise UserError(f"{where}: chains of {type(guide).__name__} need the whole log p(x, z): {whole}")
    if optimizer.needs_fixed_loss or noise == "fixed":
        raise UserError(f"{where}: {type(optimizer).__name__} on {noise} noise needs one loss for all steps: {whole}")
    if tolerance:
        raise UserError(f"{where}: tolerance = {tolerance} needs each sequence's whole bound: leave one of them out")


def _guides(objective: Objective) -> list[str]:
    known: Any = objective  # of classes, too
    return [name for name, family in FAMILIES.items() if not known.refusal(family)]


def _either(axis: str, names: Iterable[str]) -> str:
    """`the guide 'a' or 'b'`."""
    return f"the {axis} " + " or ".join(f"'{name}'" for name in names)
