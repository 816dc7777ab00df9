"""Where posterior and evidence are known: every objective finds them, and no bound exceeds the evidence."""

from __future__ import annotations

import pyro
import pytest
import torch
from helpers.loops import fit_posterior
from helpers.stand_ins import LinearGaussian
from torch.distributions import kl_divergence

from pyro_ltm.guides import GUIDES, MeanField
from pyro_ltm.objectives import OBJECTIVES, AnalyticELBO, MonteCarloELBO
from pyro_ltm.optimizers import Adam

COPIES = 64
UNFINISHED = 2e-3

# Their optimum is not the posterior: they weigh or bound its parts otherwise. All others must reach it.
# (`vr-max` is no bound: the largest of several weights exceeds the evidence for a q that is too wide;
# `jackknife` gains by weights that lie apart, has no optimum at all, and leaves the fit to `dreg`.)
ELSEWHERE = {"vr-max", "jackknife", "beta", "free-bits", "target-rate", "mean-rate", "mmd", "map"}
# Flat around the posterior: any q near it has the same bound, and the gradient drowns in noise there.
FLAT = {"iwae", "dreg", "renyi"}
# One early draw can weigh so much that Adam is careful ever after.
LATE = {"chi", "tail-adaptive"}
ALIKE = {"cyclical"}
"""Outside of training it is `annealed`, to the bit."""
ELBOS = {"elbo", "analytic-elbo", "stl", "annealed", "cyclical"} & set(OBJECTIVES)
"""Whose gradient is that of the ELBO itself."""


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def fit(model, batch, objective, steps=400, **options):
    guide = MeanField(model.thoughts, model.dim)
    options = {"optimizer": Adam(lr=0.1, lr_final=0.0)} | options
    with pyro.validation_enabled(False):  # as fits that are scored run: its checks take a fifth of the time
        return fit_posterior(model, batch, guide=guide, objective=objective, steps=steps, **options)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in ALIKE else ())
        for name in OBJECTIVES
        if name not in ELSEWHERE | FLAT
    ],
)
def test_reaches_the_exact_posterior_and_evidence(name):
    """Copies of one sequence under different names are replicates: their scatter is the error of one fit."""
    model = LinearGaussian()
    batch = model.data(COPIES, copies=True)
    objective = OBJECTIVES[name](particles=16 if name == "chi" else 8)
    posterior = fit(model, batch, objective, steps=800 if name in LATE else 400)
    exact, q = model.posterior(batch), posterior.distribution
    for got, wanted in ((q.mean, exact.mean), (q.stddev.log(), exact.stddev.log())):
        scatter = got.std(0)
        # Converged: the scatter of fits is small beside the posterior's own scale of about one.
        assert scatter.max() < 0.05
        # The mean of the replicates has standard error scatter / 8; four dimensions and two moments. The step lengths
        # of Adam respond to noise, which biases a fit by the square of its scatter; and some estimators have no noise
        # at the posterior, so that nothing but what the steps leave is left.
        assert ((got - wanted).mean(0).abs() < 4 * scatter / COPIES**0.5 + scatter**2 + UNFINISHED).all()
    gap = kl_divergence(q, torch.distributions.Independent(exact, 2))
    evidence = model.log_evidence(batch)
    weights = MonteCarloELBO(particles=400).terms(model, posterior.guide, batch, posterior.state).log_weight.detach()
    # log p(x) - ELBO = KL(q || posterior), exactly; 64 sequences with their own standard errors.
    error = weights.std(0) / 400**0.5
    assert ((weights.mean(0) - (evidence - gap)).abs() < 4 * error).all()
    # Second order: with every moment off by at most 4 scatters, KL <= sum over dimensions of (4 * 0.05)^2 * 3 / 2.
    assert gap.max() < 4 * 0.06


@pytest.mark.parametrize("name", sorted(FLAT))
def test_reaches_the_evidence_where_the_bound_is_flat(name):
    model = LinearGaussian()
    batch = model.data(COPIES, copies=True)
    objective = OBJECTIVES[name](particles=8)
    posterior = fit(model, batch, objective, steps=400)
    evidence = model.log_evidence(batch)
    start = sequence_values(objective, model, posterior.guide, batch, posterior.guide.init(batch))
    found = sequence_values(objective, model, posterior.guide, batch, posterior.state)
    error = found.std(0) / len(found) ** 0.5
    assert (found.mean(0) - evidence).abs().mean() < 0.1 * (evidence - start.mean(0)).mean()
    assert (found.mean(0) < evidence + 4 * error).all()


def sequence_values(objective, model, guide, batch, state):
    """[R, B] replicates of the bound on fresh noise."""
    with torch.no_grad():
        return torch.stack([objective.value(objective.terms(model, guide, batch, state)) for _ in range(200)])


@pytest.mark.parametrize("objective", [AnalyticELBO(particles=2000), MonteCarloELBO(particles=2000)])
def test_no_bound_exceeds_the_evidence(objective):
    """At the start, half-way, and at the exact posterior."""
    model = LinearGaussian()
    batch = model.data(16)
    exact, evidence = model.posterior(batch), model.log_evidence(batch)
    guide = MeanField(model.thoughts, model.dim)
    truth = {"loc": exact.mean, "log_variance": exact.variance.log()}
    for share in (0.0, 0.5, 1.0):
        state = {name: share * value for name, value in truth.items()}
        terms = objective.terms(model, guide, batch, state)
        noise = terms.log_likelihood.std(0) if isinstance(objective, AnalyticELBO) else terms.log_weight.std(0)
        error = noise.detach() / 2000**0.5
        bound = objective.value(terms).detach()
        assert (bound < evidence + 4 * error + 1e-10).all()
        if share == 1:
            assert ((bound - evidence).abs() < 4 * error + 1e-10).all()


def test_at_the_posterior_every_log_weight_is_the_log_evidence():
    model = LinearGaussian()
    batch = model.data(5)
    exact = model.posterior(batch)
    state = {"loc": exact.mean, "log_variance": exact.variance.log()}
    guide = MeanField(model.thoughts, model.dim)
    weights = MonteCarloELBO(particles=7).terms(model, guide, batch, state).log_weight
    # An identity, whatever the draw: double precision, some ten nats.
    torch.testing.assert_close(weights.detach(), model.log_evidence(batch).expand(7, 5), atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", sorted(ELBOS))
def test_the_gradient_is_that_of_the_exact_bound(name):
    """E[estimate] = d/d(loc, log variance) of -KL(q || posterior), which is known."""
    model = LinearGaussian()
    batch = model.data(3)
    guide = MeanField(model.thoughts, model.dim, init_loc=0.5, init_log_variance=-0.5)
    state = {key: value.requires_grad_() for key, value in guide.init(batch).items()}
    posterior = torch.distributions.Independent(model.posterior(batch), 2)
    exact = torch.autograd.grad(kl_divergence(guide.distribution(state), posterior).sum(), list(state.values()))
    draws = []
    for _ in range(60):
        loss = OBJECTIVES[name](particles=50).differentiable_loss(model, guide, batch, state)
        draws.append(torch.autograd.grad(loss, list(state.values())))
    for wanted, *got in zip(exact, *draws, strict=True):
        got = torch.stack(got)
        error = got.std(0) / 60**0.5
        # Twelve coordinates; the error itself is known to a tenth. (Where it is zero the estimate is exact.)
        assert ((got.mean(0) - wanted).abs() <= 4.5 * error + 1e-12).all()


def test_fitting_on_one_draw_flatters_itself():
    """The reference's protocol: the score on the fit's own draw exceeds the evidence; on fresh noise it cannot."""
    model = LinearGaussian()
    batch = model.data(COPIES)
    evidence = model.log_evidence(batch)
    # With the exact KL, as the reference has it. (One draw leaves the estimated KL without a lower end.)
    posterior = fit(model, batch, AnalyticELBO(), noise="fixed")
    own = posterior.history[-1]
    weights = MonteCarloELBO(particles=400).terms(model, posterior.guide, batch, posterior.state).log_weight.detach()
    honest, error = weights.mean(0), weights.std(0) / 400**0.5
    difference = own - evidence
    assert difference.mean() > 4 * difference.std() / COPIES**0.5, "its own score is no bound"
    assert (honest < evidence + 4 * error).all()


def test_the_guides_contain_mean_field():
    """The first family is the one that these tests rely on."""
    assert GUIDES["mean-field"] is MeanField
