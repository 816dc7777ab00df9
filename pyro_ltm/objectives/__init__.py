"""Variational bounds: one file each, one line each in the registry."""

from pyro_ltm.objectives.base import Objective, Terms
from pyro_ltm.objectives.elbo import AnalyticELBO, MonteCarloELBO
from pyro_ltm.types import Registry

OBJECTIVES: Registry[Objective] = Registry("objective", {"elbo": MonteCarloELBO, "analytic-elbo": AnalyticELBO})

__all__ = ["OBJECTIVES", "AnalyticELBO", "MonteCarloELBO", "Objective", "Terms"]
