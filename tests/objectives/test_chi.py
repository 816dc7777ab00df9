"""The upper bound: above the evidence, estimated too low, and with a gradient that leads to the posterior."""

from __future__ import annotations

import pyro
import pytest
import torch
from helpers.closed_forms import log_power_integral
from helpers.loops import fit_posterior

from pyro_ltm.guides import MeanField
from pyro_ltm.objectives import Chi, MonteCarloELBO
from pyro_ltm.optimizers import Adam


def exact_bound(here, order):
    """[B] the bound itself, differentiable to q's parameters."""
    posterior = here.model.posterior(here.batch)
    return here.model.log_evidence(here.batch) + log_power_integral(posterior, here.q, order) / order


@pytest.mark.parametrize("order", [1.5, 2.0, 3.0])
def test_is_above_the_evidence_where_q_is_wider(place, order):
    particles = 4000
    here = place(widen=0.8)
    evidence, exact = here.model.log_evidence(here.batch), exact_bound(here, order).detach()
    assert (exact > evidence + 0.05).all()
    objective = Chi(order=order, particles=particles)
    terms = objective.terms(*here.arguments)
    powers = (order * (terms.log_weight - terms.log_weight.amax(0))).exp().detach()
    error = powers.std(0) / powers.mean(0) / particles**0.5 / order
    bound = objective.value(terms).detach()
    assert ((bound - exact).abs() < 4 * error).all()
    assert (bound > evidence).all()


def test_is_the_evidence_where_q_is_the_posterior(place):
    here = place(shift=0.0, widen=0.0)
    torch.testing.assert_close(here.value(Chi()), here.model.log_evidence(here.batch), atol=1e-10, rtol=0)


def test_few_draws_estimate_it_too_low(place):
    """And can fall below the evidence: the card's warning."""
    here = place(2000, copies=True, widen=0.5)
    exact, evidence = exact_bound(here, 2.0)[0], here.model.log_evidence(here.batch)[0]
    means = []
    for particles in (2, 8, 64):
        bound = here.value(Chi(particles=particles)).detach()
        means.append(bound.mean())
        assert bound.mean() < exact - 4 * bound.std() / 2000**0.5 or particles == 64
    assert means == sorted(means)
    assert means[0] < evidence


@pytest.mark.parametrize("order", [1.5, 2.0])
def test_the_gradient_is_that_of_the_bound(place, order):
    """A ratio of means has a bias, some 1 / 2000 of one draw's noise: below the error of 200 replicates."""
    here = place(200, copies=True, widen=0.6)
    wanted = torch.autograd.grad(exact_bound(here, order).sum(), here.leaves)
    for got, exact in zip(here.gradients(Chi(order=order, particles=2000)), wanted, strict=True):
        error = got.std(0) / 200**0.5
        assert ((got - exact).mean(0).abs() < 4.5 * error).all()
        assert (exact.mean(0).abs() > 10 * error).any(), "there is something to agree about"


@pytest.mark.parametrize("particles", [2, 16])
def test_finds_the_posterior_and_does_not_run_away(place, particles):
    """From a q that is too narrow; the estimate from few draws has no minimum, but this gradient leads home."""
    here = place(16)
    with pyro.validation_enabled(False):  # as fits that are scored run
        posterior = fit_posterior(
            here.model,
            here.batch,
            guide=MeanField(2, 2, init_log_variance=-3.0),
            objective=Chi(particles=particles),
            steps=250,
            optimizer=Adam(lr=0.2, lr_final=0.01),
        )
    exact, found = here.model.posterior(here.batch), posterior.distribution
    for error in ((found.mean - exact.mean) / exact.stddev, (found.stddev / exact.stddev).log()):
        # One early draw can weigh so much that Adam is careful ever after, and a coordinate comes late.
        assert (error.abs() < 0.1).double().mean() > 0.95
        assert error.abs().max() < 1


def test_the_decoder_learns_by_the_elbo(place):
    here = place()
    terms = MonteCarloELBO(particles=5).terms(*here.arguments)
    assert torch.equal(Chi(particles=5).decoder_loss(terms), MonteCarloELBO(particles=5).decoder_loss(terms))
