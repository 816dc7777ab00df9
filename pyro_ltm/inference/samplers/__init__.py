"""Samplers: they follow log p(x, z) itself and leave draws, not a density. They share the guides' face."""

from pyro_ltm.inference.samplers.base import Draws, KeptChains, ParticleGuide
from pyro_ltm.inference.samplers.hmc import HMC
from pyro_ltm.inference.samplers.langevin import MALA, Langevin
from pyro_ltm.inference.samplers.svgd import SVGD
from pyro_ltm.registry import Registry

SAMPLERS: Registry[ParticleGuide] = Registry(
    "guide", {"langevin": Langevin, "mala": MALA, "hmc": HMC, "svgd": SVGD}, base=ParticleGuide
)

__all__ = ["HMC", "MALA", "SAMPLERS", "SVGD", "Draws", "KeptChains", "Langevin", "ParticleGuide"]
