"""Slow optimizers, which move the decoder: one file each, one line each in the registry."""

from pyro_ltm.optimizers.slow.adamw import AdamW
from pyro_ltm.optimizers.slow.base import SlowOptimizer, hidden_matrices
from pyro_ltm.optimizers.slow.joint import Joint
from pyro_ltm.optimizers.slow.muon import Muon
from pyro_ltm.optimizers.slow.soap import Soap
from pyro_ltm.registry import Registry

SLOW_OPTIMIZERS: Registry[SlowOptimizer] = Registry(
    "slow_optimizer", {"adamw": AdamW, "muon": Muon, "soap": Soap}, base=SlowOptimizer
)

__all__ = ["SLOW_OPTIMIZERS", "AdamW", "Joint", "Muon", "SlowOptimizer", "Soap", "hidden_matrices"]
