"""Comparisons: guides and objectives under one decoder, or each with a decoder trained under it."""

from pyro_ltm.comparison.posteriors import compare_posteriors
from pyro_ltm.comparison.result import Comparison

__all__ = ["Comparison", "compare_posteriors"]
