"""Fast optimizers: one file each, one line each in the registry."""

from pyro_ltm.optimizers.adam import Adam
from pyro_ltm.optimizers.base import FastOptimizer, schedule
from pyro_ltm.optimizers.lbfgs import LBFGS
from pyro_ltm.optimizers.natural import Natural
from pyro_ltm.optimizers.sgd import SGD
from pyro_ltm.registry import Registry

OPTIMIZERS: Registry[FastOptimizer] = Registry(
    "optimizer", {"adam": Adam, "sgd": SGD, "natural": Natural, "lbfgs": LBFGS}, base=FastOptimizer
)

__all__ = ["LBFGS", "OPTIMIZERS", "SGD", "Adam", "FastOptimizer", "Natural", "schedule"]
