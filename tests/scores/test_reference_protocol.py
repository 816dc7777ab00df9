"""The protocol `reference` against the reference implementation's loop, stepped here by torch's own AdamW."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.loops import fit_posterior
from helpers.plain import plain_logits
from helpers.tiny import telling_model

from pyro_ltm.config import Config, load_toml
from pyro_ltm.guides import MeanField
from pyro_ltm.inference.build import build
from pyro_ltm.noise import fold
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.scores import evaluate_reference

TOML = Path(__file__).parents[2] / "examples" / "reference.toml"


def nelbo(model, batch, loc, log_variance, noise):
    """[B] nats: cross-entropy of the independent decoder, and the KL of Normals to N(0, 1), by hand."""
    shape, weights = model.config, dict(model.decoder.named_parameters())
    names = ("layers", "heads", "max_length", "window", "hidden", "embedding_scale")
    thoughts = loc + (log_variance / 2).exp() * noise
    turns = torch.complex(*model.decoder.table.double())
    how = {name: getattr(shape, name) for name in names}
    logits = plain_logits(weights, batch.inputs, thoughts, turns=turns, **how)
    nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(batch.targets)
    rate = torch.distributions.kl_divergence(
        torch.distributions.Normal(loc, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    return nats.sum(1) + rate.sum((1, 2))


def fitted(model, batch, start, noise, steps, rate=0.34):
    """loc and log variance after AdamW steps whose rate falls from `rate` to a tenth of it, set before each step."""
    leaves = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.AdamW(leaves, lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate / 10 + (rate - rate / 10) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        nelbo(model, batch, *leaves, noise).sum().backward()
        optimizer.step()
    return [leaf.detach() for leaf in leaves]


@pytest.fixture
def case():
    """Model, batch, and what a fit starts from and draws: loc, log variance and noise [B, N, D]."""
    torch.set_default_dtype(torch.float64)
    model, batch = telling_model()
    guide = MeanField(4, 16, seed=fold(0, "start"), init_loc=0.01, init_log_variance=-5.0, init_noise=0.1)
    untouched = fit_posterior(
        model, batch, guide=guide, objective=AnalyticELBO(), noise="fixed", seed=fold(0, "fit"), steps=0
    )
    loc, log_variance = untouched.state["loc"], untouched.state["log_variance"]
    return model, batch, (loc, log_variance), (untouched.sample()[0] - loc) / (log_variance / 2).exp()


@pytest.mark.parametrize("steps", [1, 16])
def test_the_figure_is_that_of_torchs_adamw(case, steps):
    model, batch, start, noise = case
    found = evaluate_reference(model, [batch], fast_steps=steps)
    theirs = nelbo(model, batch, *fitted(model, batch, start, noise, steps), noise)
    torch.testing.assert_close(found.sequence_nats, theirs, rtol=1e-9, atol=0)
    other = nelbo(model, batch, *fitted(model, batch, start, noise, steps, rate=0.3), noise)
    assert (other - theirs).abs().min() > 1e-3, "a rate of 0.3 would show"


def test_the_shipped_settings_fit_the_same(case):
    model, batch, start, noise = case
    config = load_toml(TOML, Config(model=model.config))
    _, loop = build(config)
    loop.guide.seed = fold(0, "start")
    posterior = loop.fit(model, batch, seed=fold(0, "fit"))
    theirs = fitted(model, batch, start, noise, config.fast.steps)
    torch.testing.assert_close([posterior.state["loc"], posterior.state["log_variance"]], theirs, rtol=1e-7, atol=1e-8)
