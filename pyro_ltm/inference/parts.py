"""The parts that a configuration names, built: model, guide, objective, fast optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyro_ltm.config import Config, FastConfig
from pyro_ltm.guides import GUIDES, Guide
from pyro_ltm.inference.optimizers import OPTIMIZERS, FastOptimizer
from pyro_ltm.inference.posterior import Posterior, check_noise, fit_posterior
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import DrawFrom, fold
from pyro_ltm.objectives import OBJECTIVES, AnalyticELBO, MonteCarloELBO, Objective, Terms
from pyro_ltm.types import Batch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Parts:
    """Everything that fits a posterior, as one run has chosen it."""

    model: LatentThoughtModel
    guide: Guide
    objective: Objective
    optimizer: FastOptimizer
    fast: FastConfig

    @classmethod
    def build(cls, config: Config, *, device: torch.device | str = "cpu") -> Parts:
        """New parts with the weights that `config.seed` gives.

        Raises:
            UserError: an unknown name or option, or an objective that does not fit the guide.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold(config.seed, "weights"))
            model = LatentThoughtModel(config.model, DTYPES[config.dtype]).to(device)
            guide = GUIDES.build(
                config.guide, thoughts=config.model.thoughts, dim=config.model.dim, seed=config.seed
            ).to(device)
        objective, optimizer = OBJECTIVES.build(config.objective), OPTIMIZERS.build(config.optimizer)
        objective.check(guide)
        check_noise(config.fast.noise, objective)
        # Without thoughts there is nothing to fit.
        fast = config.fast if config.model.thoughts else FastConfig(steps=0)
        return cls(model, guide, objective, optimizer, fast)

    @staticmethod
    def check(config: Config) -> None:
        """Raises UserError for whatever `build` would refuse; costs no memory, whatever the size of the model."""
        with torch.device("meta"):
            Parts.build(config, device="meta")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.decoder.tok_embeddings.weight.device

    def fit(self, batch: Batch, *, steps: int | None = None, seed: int = 0) -> Posterior:
        """`fit_posterior` with these parts, on the bound itself and not its annealed form."""
        return fit_posterior(
            self.model,
            batch,
            guide=self.guide,
            objective=self.objective.at(1.0),
            optimizer=self.optimizer,
            steps=self.steps(steps),
            noise=self.fast.noise,
            seed=seed,
        )

    @torch.no_grad()
    def score(self, batch: Batch, posterior: Posterior, *, particles: int = 1, seed: int = 0) -> Terms:
        """The parts of the bound on fresh noise keyed by `seed`, which no fit has seen; KL exact where it can be."""
        kind = AnalyticELBO if self.guide.has_analytic_kl else MonteCarloELBO
        with DrawFrom(posterior.with_noise(fold(seed, "score")).noise):
            return kind(particles=particles).terms(self.model, self.guide, batch, posterior.state)

    def steps(self, asked: int | None) -> int:
        """Fast steps to take: those asked for, else the run's own; none for the twin."""
        return self.fast.steps if asked is None or not self.model.config.thoughts else asked
