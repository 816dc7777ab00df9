"""`pyro-ltm priors`: the priors over thoughts."""

from __future__ import annotations

from ..registry import listing

command = listing(
    "prior",
    "priors over thoughts",
    "pyro-ltm train --set prior.name=mixture --set objective.name=stl --data python-docs --out runs/mine",
    named="mixture:16",
)
