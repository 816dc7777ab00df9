"""From a configuration to a model and the fast loop that fits its posteriors."""

from __future__ import annotations

import dataclasses

import torch

from pyro_ltm.config import GAUSSIAN, Component, Config, ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference.compatibility import check_prior
from pyro_ltm.inference.contract import (
    check_density,
    check_guide,
    check_objective,
    check_optimizer,
    check_shape,
    check_slow_optimizer,
    is_foreign,
)
from pyro_ltm.inference.cuda_graph import Recorder
from pyro_ltm.inference.families import FAMILIES
from pyro_ltm.inference.fast_loop import FastLoop
from pyro_ltm.inference.fit import Plateau
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.model.grafting import open_graft
from pyro_ltm.model.masked_diffusion import MaskedDiffusion
from pyro_ltm.model.precision import DTYPES, resolve_dtype
from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.noise import fold
from pyro_ltm.objectives import OBJECTIVES, Objective, PyroObjective
from pyro_ltm.optimizers import OPTIMIZERS, FastOptimizer
from pyro_ltm.optimizers.slow import SLOW_OPTIMIZERS
from pyro_ltm.priors import PRIORS, Prior


def build(config: Config, *, device: torch.device | str = "cpu") -> tuple[LatentThoughtModel, FastLoop]:
    """A new model with the weights that `config.seed` gives, and its fast loop.

    Raises:
        UserError: an unknown name or option, or what does not fit together.
    """
    config = resolve_dtype(config, device)
    # Without thoughts there is nothing to fit, and one guide is as good as another.
    is_twin = not config.model.thoughts
    dtype = DTYPES[config.dtype]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(config.seed, "weights"))
        decoder, prior = _grafted(config, dtype, device), build_prior(config)
        kind = MaskedDiffusion if config.model.is_diffusion else LatentThoughtModel
        model = kind(config.model, dtype, prior=prior, decoder=decoder).to(device)
        component = Component(name="mean-field") if is_twin else config.guide
        guide = build_guide(component, config.model, seed=config.seed).to(device)
        model.prior.join(guide)
    objective = Component(name="analytic-elbo") if is_twin else config.objective
    bound = build_objective(objective, config.model, model.device)
    loop = build_loop(config, guide, bound, model.device)
    if not is_twin:
        check_prior(model.prior, guide, loop.objective, loop.noise)
    if model.device.type != "meta":
        check_guide(guide)
        check_density(model.prior)
    model.decoder.recompute = config.slow.recompute
    if config.compile:
        if guide.needs_double_backward:
            raise UserError(
                f"compile = true: {type(guide).__name__} takes gradients of gradients, which a compiled decoder "
                "does not have: leave it at false"
            )
        model.decoder.compile()
    return model, FastLoop(guide, loop.objective, steps=0) if is_twin else loop


def _grafted(config: Config, dtype: torch.dtype, device: torch.device | str) -> TokenDecoder | None:
    """The decoder of a graft; None where the decoder is our own."""
    if not config.graft.base:
        return None
    return open_graft(config.graft, config.model, dtype, torch.device(device))


def build_loop(
    config: Config, guide: Guide, objective: Objective, device: torch.device, recorder: Recorder | None = None
) -> FastLoop:
    """The fast loop of `config` with this guide and this objective; with `recorder`, or a new one, if it records."""
    fast, records = config.fast, config.fast.record and device.type == "cuda" and not config.graft.base
    return FastLoop(
        guide,
        objective,
        build_optimizer(config.optimizer),
        steps=fast.steps,
        noise=fast.noise,
        stopping=Plateau.of(fast.tolerance, fast.patience),
        subsample=fast.subsample,
        recorder=(recorder or Recorder()) if records else None,
    )


def check_config(config: Config) -> None:
    """Raises UserError for whatever `build` or training would refuse; costs no memory, whatever the model's size."""
    check_slow_optimizer(SLOW_OPTIMIZERS.build(config.slow_optimizer), config.slow)
    with torch.device("meta"):
        model, loop = build(config, device="meta")
    if isinstance(loop.objective, PyroObjective):
        raise UserError(
            f"objective: Pyro's {loop.objective.name} gives one loss for a batch, by which posteriors are fitted, no "
            "decoder is trained: use 'elbo', or give it to the fits of a run"
        )
    if loop.objective.couples_batch and config.slow.batch_size == 1:
        raise UserError(
            f"slow.batch_size = 1: objective {config.objective.name} compares the sequences of a micro-batch, and has "
            "none to compare: set 2 or more"
        )
    # Those from outside are tried where their tensors have values.
    known = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or 1)
    if is_foreign(loop.guide):
        new_guide(config.guide, dataclasses.replace(config, model=known), torch.device("cpu"))
    if is_foreign(model.prior):
        check_density(build_prior(config))


def build_prior(config: Config) -> Prior:
    """The prior that `config` names, for a decoder of this shape; N(0, I) for a twin.

    Its first weights have a seed of their own, so that those of decoder and guide are the same under every prior.
    """
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(config.seed, "prior"))
        component = config.prior if model.thoughts else GAUSSIAN
        shape = {"thoughts": model.thoughts, "dim": model.thought_width, "layers": model.layers}
        prior = PRIORS.build(component, **shape, decoder_dim=model.dim)
    check_shape("prior", prior, model)
    return prior


def build_guide(component: Component, model: ModelConfig, *, seed: int = 0) -> Guide:
    """The posterior family that `component` names, for a decoder of this shape.

    Raises:
        UserError: an unknown name or option, or an object of another shape.
    """
    shape = {"thoughts": model.thoughts, "dim": model.thought_width, "layers": model.layers}
    more = {"vocab_size": model.vocab_size, "max_length": model.max_length, "seed": seed}
    guide = FAMILIES.build(component, **shape, **more)
    check_shape("guide", guide, model)
    return guide


def build_objective(component: Component, model: ModelConfig, device: torch.device | str = "cpu") -> Objective:
    """The objective that `component` names, for a decoder of this shape."""
    objective = OBJECTIVES.build(component, layers=model.layers)
    if objective.learned is not None:
        objective.learned.to(device)
    check_objective(objective)
    return objective


def build_optimizer(component: Component) -> FastOptimizer:
    """The fast optimizer that `component` names."""
    optimizer = OPTIMIZERS.build(component)
    check_optimizer(optimizer)
    return optimizer


def new_guide(component: Component, config: Config, device: torch.device) -> Guide:
    """The posterior family that `component` names, with its first weights, for the decoder of a run of `config`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(config.seed, "weights"))
        guide = build_guide(component, config.model, seed=config.seed).to(device)
    check_guide(guide)
    return guide
