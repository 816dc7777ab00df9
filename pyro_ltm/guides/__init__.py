"""Posterior families: one file each, one line each in the registry."""

from pyro_ltm.guides.amortized import Amortized, SemiAmortized
from pyro_ltm.guides.base import Guide, LogJoint
from pyro_ltm.guides.delta import Delta
from pyro_ltm.guides.flow import Flow
from pyro_ltm.guides.full_rank import FullRank
from pyro_ltm.guides.kronecker import Kronecker
from pyro_ltm.guides.laplace import Laplace
from pyro_ltm.guides.layered import Layered
from pyro_ltm.guides.low_rank import LowRank
from pyro_ltm.guides.mean_field import MeanField
from pyro_ltm.guides.mixture import Mixture
from pyro_ltm.guides.student_t import StudentT
from pyro_ltm.registry import Registry

GUIDES: Registry[Guide] = Registry(
    "guide",
    {
        "delta": Delta,
        "mean-field": MeanField,
        "student-t": StudentT,
        "low-rank": LowRank,
        "full-rank": FullRank,
        "kronecker": Kronecker,
        "layered": Layered,
        "mixture": Mixture,
        "flow": Flow,
        "laplace": Laplace,
        "amortized": Amortized,
        "semi-amortized": SemiAmortized,
    },
    base=Guide,
)

__all__ = [
    "GUIDES",
    "Amortized",
    "Delta",
    "Flow",
    "FullRank",
    "Guide",
    "Kronecker",
    "Laplace",
    "Layered",
    "LogJoint",
    "LowRank",
    "MeanField",
    "Mixture",
    "SemiAmortized",
    "StudentT",
]
