"""The fast loop: posteriors fitted to sequences, and what they are good for."""

from pyro_ltm.inference.ais import Annealing
from pyro_ltm.inference.build import build
from pyro_ltm.inference.codec import continuation
from pyro_ltm.inference.compatibility import check_fit
from pyro_ltm.inference.families import FAMILIES
from pyro_ltm.inference.fast_loop import FastLoop
from pyro_ltm.inference.fit import Plateau
from pyro_ltm.inference.generation import Generated, Reconstruction, generate, infer_thoughts, reconstruct
from pyro_ltm.inference.posterior import Posterior
from pyro_ltm.inference.writing import Rethinking

__all__ = [
    "FAMILIES",
    "Annealing",
    "FastLoop",
    "Generated",
    "Plateau",
    "Posterior",
    "Reconstruction",
    "Rethinking",
    "build",
    "check_fit",
    "continuation",
    "generate",
    "infer_thoughts",
    "reconstruct",
]
