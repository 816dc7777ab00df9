"""Fast optimizers: they move the local parameters of each sequence's posterior."""

from pyro_ltm.optimizers.fast import LBFGS, OPTIMIZERS, SGD, Adam, FastOptimizer, Natural

__all__ = ["LBFGS", "OPTIMIZERS", "SGD", "Adam", "FastOptimizer", "Natural"]
