"""`pyro-ltm slow-optimizers`: the slow optimizers."""

from __future__ import annotations

from ..registry import listing

command = listing(
    "slow_optimizer",
    "slow optimizers, which move the decoder",
    "pyro-ltm train --set slow_optimizer.name=muon --set slow.lr=0.06 --data python-docs --out runs/mine",
    named="muon:0.01",
)
