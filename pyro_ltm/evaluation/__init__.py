"""Honest figures: bounds and what they are made of, and comparisons by them."""

from pyro_ltm.evaluation.annealed import AnnealedBound, evaluate_annealed
from pyro_ltm.evaluation.bound import Bound, evaluate_bound
from pyro_ltm.evaluation.compare import compare_posteriors
from pyro_ltm.evaluation.figure import Difference, Figure, Share, difference, share
from pyro_ltm.evaluation.floor import Floor, check_floor, evaluate_floor, why_no_floor
from pyro_ltm.evaluation.outcome import Comparison
from pyro_ltm.evaluation.prefix import Prefix, evaluate_prefix
from pyro_ltm.evaluation.reference import Reference, evaluate_reference

__all__ = [
    "AnnealedBound",
    "Bound",
    "Comparison",
    "Difference",
    "Figure",
    "Floor",
    "Prefix",
    "Reference",
    "Share",
    "check_floor",
    "compare_posteriors",
    "difference",
    "evaluate_annealed",
    "evaluate_bound",
    "evaluate_floor",
    "evaluate_prefix",
    "evaluate_reference",
    "share",
    "why_no_floor",
]
