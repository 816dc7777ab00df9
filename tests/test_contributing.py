"""What CONTRIBUTING.md shows runs as it stands there: a guide, an objective, a slow optimizer, a prior."""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pyro.distributions as dist
import torch
from helpers.loops import fit_posterior
from helpers.tiny import D, N, telling_model

from pyro_ltm.config import SlowConfig
from pyro_ltm.guides import Guide, MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.objectives import AnalyticELBO, Objective
from pyro_ltm.optimizers.slow import SlowOptimizer
from pyro_ltm.priors import Prior
from pyro_ltm.training.step import train_step

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def shown(name):
    """The class as the text has it."""
    (block,) = re.findall(rf"^(?:    @dataclass[^\n]*\n)?    class {name}\(.*?(?=^\S)", TEXT, flags=re.M | re.S)
    names = {"Guide": Guide, "Objective": Objective, "dist": dist, "math": math, "torch": torch}
    names |= {"Prior": Prior, "nn": torch.nn}
    names |= {"SlowOptimizer": SlowOptimizer, "dataclass": dataclass}
    exec(textwrap.dedent(block), names)  # our own text
    return names[name]


def test_what_is_shown_runs_as_it_stands():
    model, batch = telling_model(2)
    guide, objective = shown("Isotropic")(N, D), shown("Renyi")(particles=4)
    posterior = fit_posterior(model, batch, guide=guide, objective=objective, steps=12)
    assert (posterior.history[-4:].mean(0) > posterior.history[:4].mean(0)).all()


def test_a_prior_as_shown_is_charged_in_closed_form():
    model, batch = telling_model(2)
    model.prior = shown("Wide")(N, D)
    posterior = fit_posterior(model, batch, guide=MeanField(N, D), objective=AnalyticELBO(), steps=2)
    assert posterior.score(model, batch).kl is not None


def test_a_slow_optimizer_as_shown_trains():
    model, batch = telling_model(2)
    loop = FastLoop(MeanField(N, D), AnalyticELBO(), steps=2)
    optimizer = shown("NAdam")().build(model, SlowConfig(lr=1e-3))
    bounds = [train_step(model, [batch], loop, optimizer, clip=1.0, seed=0).bound for _ in range(6)]
    assert bounds[-1] < bounds[0]
