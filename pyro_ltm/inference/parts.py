"""The parts that a configuration names, built: model, guide, objective, fast optimizer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from pyro_ltm.config import Component, Config, FastConfig, ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide, MeanField
from pyro_ltm.inference.compatibility import check_fit
from pyro_ltm.inference.cuda_graph import Recorder
from pyro_ltm.inference.families import FAMILIES
from pyro_ltm.inference.fast_loop import fit_to_score
from pyro_ltm.inference.posterior import Posterior
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.model.precision import DTYPES, resolve_dtype
from pyro_ltm.noise import fold
from pyro_ltm.objectives import OBJECTIVES, AnalyticELBO, Objective, Terms
from pyro_ltm.optimizers import OPTIMIZERS, Adam, FastOptimizer
from pyro_ltm.types import Batch


@dataclass(frozen=True)
class Parts:
    """Everything that fits a posterior, as one run has chosen it."""

    model: LatentThoughtModel
    guide: Guide
    objective: Objective
    optimizer: FastOptimizer
    fast: FastConfig
    recorder: Recorder | None = None

    @classmethod
    def build(cls, config: Config, *, device: torch.device | str = "cpu") -> Parts:
        """New parts with the weights that `config.seed` gives.

        Raises:
            UserError: an unknown name or option, or an objective that does not fit the guide.
        """
        config = resolve_dtype(config, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold(config.seed, "weights"))
            model = LatentThoughtModel(config.model, DTYPES[config.dtype]).to(device)
            # Without thoughts there is nothing to fit, and one guide is as good as another.
            nothing = not config.model.thoughts
            guide_name = Component(name="mean-field") if nothing else config.guide
            guide = build_guide(guide_name, config.model, seed=config.seed).to(device)
        objective_name = Component(name="analytic-elbo") if nothing else config.objective
        objective = OBJECTIVES.build(objective_name, layers=config.model.layers)
        optimizer = _fast_optimizer(config, guide, objective)
        model.decoder.recompute = config.slow.recompute
        if config.compile:
            if guide.needs_double_backward:
                raise UserError(
                    f"compile = true: {type(guide).__name__} takes gradients of gradients, which a compiled decoder "
                    "does not have: leave it at false"
                )
            model.decoder.compile()
        fast = FastConfig(steps=0) if nothing else config.fast
        return cls(model, guide, objective, optimizer, fast, _recorder(config, torch.device(device)))

    def with_fast_loop(self, config: Config) -> Parts:
        """These parts with the fast loop of another configuration. Raises UserError where it does not fit."""
        if not self.model.config.thoughts:
            return self
        optimizer = _fast_optimizer(config, self.guide, self.objective)
        recorder = (self.recorder or _recorder(config, self.device)) if config.fast.record else None
        return dataclasses.replace(self, optimizer=optimizer, fast=config.fast, recorder=recorder)

    @staticmethod
    def check(config: Config) -> None:
        """Raises UserError for whatever `build` would refuse; costs no memory, whatever the size of the model."""
        with torch.device("meta"):
            Parts.build(config, device="meta")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.decoder.tok_embeddings.weight.device

    @property
    def fitting(self) -> dict[str, Any]:
        """How training fits: what `fit_posterior` takes besides guide, objective, optimizer, steps and seed."""
        fast = self.fast
        return {
            "noise": fast.noise,
            "tolerance": fast.tolerance,
            "patience": fast.patience,
            "subsample": fast.subsample,
            "recorder": self.recorder,
        }

    def fit(self, batch: Batch, *, steps: int | None = None, seed: int = 0) -> Posterior:
        """`fit_to_score` with these parts, on the bound itself, not its annealed form, and on all tokens."""
        return fit_to_score(
            self.model,
            batch,
            guide=self.guide,
            objective=self.objective.at(1.0),
            optimizer=self.optimizer,
            steps=self.steps(steps),
            seed=seed,
            **{**self.fitting, "subsample": 1},
        )

    def score(self, batch: Batch, posterior: Posterior, *, particles: int = 1, seed: int = 0) -> Terms:
        """The parts of the bound on fresh noise keyed by `seed`, which no fit has seen; KL exact where it can be."""
        return posterior.with_noise(fold(seed, "score")).score(self.model, batch, particles=particles)

    def judge(self) -> Parts:
        """Parts that can bound this decoder's evidence: these, or a mean-field fit where the guide has no density."""
        if self.guide.has_density:
            return self
        guide = MeanField(self.guide.thoughts, self.guide.dim)
        fast = dataclasses.replace(self.fast, noise="fresh")
        return dataclasses.replace(self, guide=guide, objective=AnalyticELBO(), optimizer=Adam(), fast=fast)

    def steps(self, asked: int | None) -> int:
        """Fast steps to take: those asked for, else the run's own; none for the twin."""
        return self.fast.steps if asked is None or not self.model.config.thoughts else asked


def _recorder(config: Config, device: torch.device) -> Recorder | None:
    return Recorder() if config.fast.record and device.type == "cuda" else None


def _fast_optimizer(config: Config, guide: Guide, objective: Objective) -> FastOptimizer:
    optimizer, fast = OPTIMIZERS.build(config.optimizer), config.fast
    check_fit(guide, objective, optimizer, fast.noise, tolerance=fast.tolerance, subsample=fast.subsample)
    return optimizer


def build_guide(component: Component, model: ModelConfig, *, seed: int = 0) -> Guide:
    """The posterior family that `component` names, for a decoder of this shape."""
    shape = {"thoughts": model.thoughts, "dim": model.dim, "layers": model.layers}
    return FAMILIES.build(component, **shape, vocab_size=model.vocab_size, max_length=model.max_length, seed=seed)
