"""The saved run: its folder, its evaluation, its data."""

from pyro_ltm.runs.run import Run

__all__ = ["Run"]
