"""The fast loop: posteriors fitted to sequences, and what they are good for."""

from pyro_ltm.inference.build import build
from pyro_ltm.inference.compatibility import check_fit
from pyro_ltm.inference.families import FAMILIES
from pyro_ltm.inference.fast_loop import FastLoop
from pyro_ltm.inference.fit import Plateau
from pyro_ltm.inference.generation import Generated, Reconstruction, continuation, generate, infer_thoughts, reconstruct
from pyro_ltm.inference.posterior import Posterior

__all__ = [
    "FAMILIES",
    "FastLoop",
    "Generated",
    "Plateau",
    "Posterior",
    "Reconstruction",
    "build",
    "check_fit",
    "continuation",
    "generate",
    "infer_thoughts",
    "reconstruct",
]
