"""Posterior families: one file each, one line each in the registry."""

from pyro_ltm.guides.base import Guide
from pyro_ltm.guides.mean_field import MeanField
from pyro_ltm.types import Registry

GUIDES: Registry[Guide] = Registry("guide", {"mean-field": MeanField})

__all__ = ["GUIDES", "Guide", "MeanField"]
