"""Honest figures: bounds and what they are made of, and comparisons by them."""

from pyro_ltm.evaluation.bound import Bound, evaluate_bound
from pyro_ltm.evaluation.compare import compare_posteriors
from pyro_ltm.evaluation.outcome import Comparison

__all__ = ["Bound", "Comparison", "compare_posteriors", "evaluate_bound"]
