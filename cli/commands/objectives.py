"""`pyro-ltm objectives`: the bounds."""

from __future__ import annotations

from ..registry import listing

command = listing(
    "objective",
    "objectives",
    "pyro-ltm train --set objective.name=elbo --data python-docs --out runs/mine",
    "pyro-ltm compare RUN --guides mean-field --objectives all --out compare",
    named="iwae:16",
)
