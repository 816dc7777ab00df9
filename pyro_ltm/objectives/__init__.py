"""Variational bounds: one file for each family, one line each in the registry."""

from pyro.infer import ELBO

from pyro_ltm.objectives.base import Objective, Terms
from pyro_ltm.objectives.beta import BetaELBO, Cyclical, KLAnnealing
from pyro_ltm.objectives.chi import Chi
from pyro_ltm.objectives.elbo import AnalyticELBO, MonteCarloELBO, StickingTheLanding
from pyro_ltm.objectives.free_bits import FreeBits
from pyro_ltm.objectives.importance import IWAE, DReG
from pyro_ltm.objectives.jackknife import Jackknife
from pyro_ltm.objectives.map import MAP
from pyro_ltm.objectives.mean_rate import MeanRate
from pyro_ltm.objectives.mmd import MMD
from pyro_ltm.objectives.pyro import PyroObjective, as_objective
from pyro_ltm.objectives.renyi import Renyi, VRMax
from pyro_ltm.objectives.tail_adaptive import TailAdaptive
from pyro_ltm.objectives.target_rate import TargetRate
from pyro_ltm.registry import Registry

OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    {
        "elbo": MonteCarloELBO,
        "analytic-elbo": AnalyticELBO,
        "stl": StickingTheLanding,
        "iwae": IWAE,
        "dreg": DReG,
        "jackknife": Jackknife,
        "renyi": Renyi,
        "vr-max": VRMax,
        "beta": BetaELBO,
        "annealed": KLAnnealing,
        "cyclical": Cyclical,
        "free-bits": FreeBits,
        "target-rate": TargetRate,
        "mean-rate": MeanRate,
        "tail-adaptive": TailAdaptive,
        "mmd": MMD,
        "chi": Chi,
        "map": MAP,
    },
    base=ELBO,
    adapt=as_objective,
)

__all__ = [
    "IWAE",
    "MAP",
    "MMD",
    "OBJECTIVES",
    "AnalyticELBO",
    "BetaELBO",
    "Chi",
    "Cyclical",
    "DReG",
    "FreeBits",
    "Jackknife",
    "KLAnnealing",
    "MeanRate",
    "MonteCarloELBO",
    "Objective",
    "PyroObjective",
    "Renyi",
    "StickingTheLanding",
    "TailAdaptive",
    "TargetRate",
    "Terms",
    "VRMax",
    "as_objective",
]
