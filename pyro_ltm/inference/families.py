"""Every posterior family by name: guides, and the samplers."""

from pyro_ltm.guides import GUIDES, Guide
from pyro_ltm.inference.samplers import SAMPLERS
from pyro_ltm.registry import Registry

FAMILIES: Registry[Guide] = Registry("guide", {**GUIDES, **SAMPLERS}, base=Guide)
