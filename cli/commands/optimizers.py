"""`pyro-ltm optimizers`: the fast optimizers."""

from __future__ import annotations

from ..registry import listing

command = listing(
    "optimizer",
    "fast optimizers, which fit the posteriors",
    "pyro-ltm train --set optimizer.name=natural --data python-docs --out runs/mine",
    named="lbfgs:8",
)
