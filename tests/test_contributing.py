"""The code in CONTRIBUTING.md runs as it stands there: an objective; docs/own-guide.md has a guide."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path

import torch
from helpers.loops import fit_posterior
from helpers.tiny import D, N, telling_model

from pyro_ltm.guides import MeanField
from pyro_ltm.objectives import Objective, Renyi

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def shown(name):
    """The class as the text has it."""
    (block,) = re.findall(rf"^    class {name}\(.*?(?=^\S)", TEXT, flags=re.M | re.S)
    names = {"Objective": Objective, "math": math}
    exec(textwrap.dedent(block), names)  # our own text
    return names[name]


def test_what_is_shown_runs_as_it_stands():
    model, batch = telling_model(2)
    as_shown, own = (
        fit_posterior(model, batch, guide=MeanField(N, D), objective=objective, steps=3)
        for objective in (shown("Renyi")(particles=4), Renyi(alpha=0.5, particles=4))
    )
    torch.testing.assert_close(as_shown.history, own.history)
