"""The fast loop: posteriors fitted to sequences, and what they are good for."""

from pyro_ltm.inference.generation import Generated, Reconstruction, generate, infer_thoughts, reconstruct
from pyro_ltm.inference.optimizers import OPTIMIZERS, Adam, FastOptimizer
from pyro_ltm.inference.parts import Parts
from pyro_ltm.inference.posterior import Posterior, fit_posterior, frozen, sequence_bounds

__all__ = [
    "OPTIMIZERS",
    "Adam",
    "FastOptimizer",
    "Generated",
    "Parts",
    "Posterior",
    "Reconstruction",
    "fit_posterior",
    "frozen",
    "generate",
    "infer_thoughts",
    "reconstruct",
    "sequence_bounds",
]
