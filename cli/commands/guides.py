"""`pyro-ltm guides`: the posterior families."""

from __future__ import annotations

from ..registry import listing

command = listing(
    "guide",
    "posterior families",
    "pyro-ltm train --set guide.name=low-rank --data python-docs --out runs/mine",
    "pyro-ltm compare RUN --guides all --objectives elbo,map --out compare",
    named="low-rank:8",
)
