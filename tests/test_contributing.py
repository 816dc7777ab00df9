"""The guide and the objective that CONTRIBUTING.md shows fit a posterior as they stand there."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path

import pyro.distributions as dist
import torch
from helpers.loops import fit_posterior
from helpers.tiny import D, N, telling_model

from pyro_ltm.guides import Guide
from pyro_ltm.objectives import Objective

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def shown(name):
    """The class as the text has it."""
    (block,) = re.findall(rf"^    class {name}\(.*?(?=^\S)", TEXT, flags=re.M | re.S)
    names = {"Guide": Guide, "Objective": Objective, "dist": dist, "math": math, "torch": torch}
    exec(textwrap.dedent(block), names)  # our own text
    return names[name]


def test_what_is_shown_runs_as_it_stands():
    model, batch = telling_model(2)
    guide, objective = shown("Isotropic")(N, D), shown("Renyi")(particles=4)
    posterior = fit_posterior(model, batch, guide=guide, objective=objective, steps=12)
    assert (posterior.history[-4:].mean(0) > posterior.history[:4].mean(0)).all()
