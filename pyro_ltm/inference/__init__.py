"""The fast loop: posteriors fitted to sequences."""

from pyro_ltm.inference.optimizers import OPTIMIZERS, Adam, FastOptimizer
from pyro_ltm.inference.posterior import Posterior, fit_posterior, frozen, sequence_bounds

__all__ = ["OPTIMIZERS", "Adam", "FastOptimizer", "Posterior", "fit_posterior", "frozen", "sequence_bounds"]
