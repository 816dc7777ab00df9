"""Against long chains of Pyro's NUTS on a tiny real decoder: exact samplers agree, weighted families agree."""

from __future__ import annotations

import pyro
import pytest
import torch
from helpers.loops import fit_posterior
from helpers.tiny import enlarge, tiny_batch, tiny_config
from pyro.infer import MCMC, NUTS

from pyro_ltm.config import Component
from pyro_ltm.inference import FAMILIES
from pyro_ltm.inference.build import build_guide
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.inference.samplers import HMC, MALA
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.objectives import MAP, MonteCarloELBO
from pyro_ltm.optimizers import Adam
from pyro_ltm.types import Batch

SHAPE = tiny_config(dim=4, heads=1, layers=1, thoughts=2, window=3, max_length=8)


def decoder_and_text() -> tuple[LatentThoughtModel, Batch]:
    """8 latent dimensions, and a sequence that the decoder wrote from thoughts that matter."""
    torch.set_default_dtype(torch.float64)
    model = LatentThoughtModel(SHAPE)
    enlarge(model.decoder, seed=0)
    with torch.no_grad():
        model.decoder.layers[0].cross_attention.wo.weight.mul_(2)
    blank = tiny_batch(1, length=8)
    torch.manual_seed(3)
    tokens = model(blank.unobserved())
    return model, Batch.from_tokens(torch.cat([blank.inputs[:, :1], tokens], 1))


def chains(model, batch, samples, count=2):
    """Means [C, 8] and second moments [C, 8] of independent NUTS chains."""
    firsts, seconds = [], []
    for chain in range(count):
        torch.manual_seed(100 + chain)
        nuts = MCMC(NUTS(model, max_tree_depth=4), num_samples=samples, warmup_steps=samples // 4, disable_progbar=True)
        nuts.run(batch)
        draws = nuts.get_samples()["thoughts"].flatten(1)
        firsts.append(draws.mean(0))
        seconds.append(draws.square().mean(0))
    return torch.stack(firsts), torch.stack(seconds)


def effective_error(firsts):
    """Standard error of the mean over chains; two chains know it to a factor, so all dimensions are pooled."""
    return float((firsts.var(0).mean() / len(firsts)).sqrt())


def importance_mean(posterior, model, batch, particles=4000):
    """Self-normalized estimate [8] of the posterior mean under weights p / q, its standard error, and the ESS."""
    z = posterior.with_noise(11).sample(particles)
    with torch.no_grad():
        log_joint = torch.cat([LogJoint(model, batch)(some) for some in z.split(100)])
        log_weight = log_joint - posterior.distribution.log_prob(z)
    weights = torch.softmax(log_weight[:, 0], 0)[:, None]
    draws = z[:, 0].flatten(1)
    mean = (weights * draws).sum(0)
    error = (weights.square() * (draws - mean).square()).sum(0).sqrt()
    return mean, error, float(1 / weights.square().sum())


def check(names, samples, copies, steps):
    model, batch = decoder_and_text()
    firsts, _ = chains(model, batch, samples)
    truth, error = firsts.mean(0), effective_error(firsts)
    assert error < 0.25, "the chains themselves agree"
    assert truth.abs().max() > 3 * error, "the posterior is not the prior"
    replicas = Batch(
        inputs=batch.inputs.expand(copies, -1),
        targets=batch.targets.expand(copies, -1),
        mask=batch.mask.expand(copies, -1),
        ids=torch.arange(copies),
    )
    means = (
        fit_posterior(model, replicas, guide=MALA(2, 4, chains=2), objective=MAP(), steps=steps)
        .state["mean"]
        .flatten(1)
    )
    together = (means.var(0) / copies + error**2).sqrt()
    assert ((means.mean(0) - truth).abs() < 4.5 * together).all(), "mala"
    for name in names:
        guide = build_guide(Component(name=name), SHAPE).double()
        objective = MonteCarloELBO(particles=8)
        fit = fit_posterior(
            model, batch, guide=guide, objective=objective, steps=100, optimizer=Adam(lr=0.1, lr_final=0.01)
        )
        mean, spread, effective = importance_mean(fit, model, batch)
        assert effective > 100, f"{name}: an ESS of {effective:.0f} of 4000"
        assert ((mean - truth).abs() < 4.5 * (spread.square() + error**2).sqrt()).all(), name


@pytest.mark.long
def test_families_agree_with_short_chains():
    with pyro.validation_enabled(False):  # which would take a fifth of the time
        check(["mean-field", "full-rank"], samples=60, copies=8, steps=150)


@pytest.mark.long
def test_families_agree_with_long_chains():
    families = [name for name, kind in FAMILIES.items() if kind.has_density and kind.learning != "amortized"]
    check(families, samples=800, copies=32, steps=600)
    model, batch = decoder_and_text()
    firsts, _ = chains(model, batch, 500)
    fits = [
        fit_posterior(model, batch, guide=HMC(2, 4, seed=seed), objective=MAP(), steps=400, seed=seed).state["mean"]
        for seed in range(4)
    ]
    ours = torch.stack(fits).flatten(1)
    error = (ours.var(0).mean() / len(ours) + effective_error(firsts) ** 2) ** 0.5
    assert ((ours.mean(0) - firsts.mean(0)).abs() < 4.5 * error).all()
