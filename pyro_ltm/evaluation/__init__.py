"""Honest figures: bounds and what they are made of."""

from pyro_ltm.evaluation.bound import Bound, evaluate_bound

__all__ = ["Bound", "evaluate_bound"]
