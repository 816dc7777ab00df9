"""Rényi bounds lie in order between the ELBO and the importance-weighted bound."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.closed_forms import log_power_integral

from pyro_ltm.objectives import IWAE, MonteCarloELBO, Renyi, VRMax

ALPHAS = (0.0, 0.25, 0.5, 0.9, 1.0, 1.1, 2.0, 10.0)


def terms_of(place, particles, **options):
    here = place(**options)
    return here, MonteCarloELBO(particles=particles).terms(*here.arguments)


def test_falls_as_alpha_rises(place):
    _, terms = terms_of(place, 16)
    bounds = [Renyi(alpha, 16).value(terms) for alpha in ALPHAS]
    for higher, lower in itertools.pairwise(bounds):
        assert (higher > lower).all()


def test_its_ends_are_the_others(place):
    _, terms = terms_of(place, 16)
    torch.testing.assert_close(Renyi(0.0, 16).value(terms), IWAE(16).value(terms), atol=1e-12, rtol=0)
    assert torch.equal(Renyi(1.0, 16).value(terms), MonteCarloELBO(16).value(terms))
    for alpha in (1 - 1e-6, 1 + 1e-6):
        # log E w^d = d E log w + d^2 var(log w) / 2; the logarithm of K is lost to 1e-16 / 1e-6 nats.
        allowed = 0.6e-6 * terms.log_weight.var(0) + 1e-8
        assert ((Renyi(alpha, 16).value(terms) - MonteCarloELBO(16).value(terms)).abs() < allowed).all()
    torch.testing.assert_close(Renyi(500.0, 16).value(terms), terms.log_weight.amin(0), atol=6e-3, rtol=0)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_closed_form(place, alpha):
    particles = 4000
    here, terms = terms_of(place, particles, widen=0.6)
    posterior = here.model.posterior(here.batch)
    exact = here.model.log_evidence(here.batch) + log_power_integral(posterior, here.q, 1 - alpha) / (1 - alpha)
    powers = ((1 - alpha) * terms.log_weight).detach()
    powers = (powers - powers.amax(0)).exp()
    error = powers.std(0) / powers.mean(0) / particles**0.5 / (1 - alpha)
    assert ((Renyi(alpha, particles).value(terms) - exact).abs() < 4 * error).all()


def test_the_best_draw(place):
    here, terms = terms_of(place, 16)
    best = VRMax(16).value(terms)
    torch.testing.assert_close(best, terms.log_weight.max(0).values, atol=1e-12, rtol=0)
    iwae = IWAE(16).value(terms)
    assert ((best > iwae) & (best < iwae + torch.tensor(16.0).log())).all()
    assert torch.equal(here.value(VRMax(1)), here.value(MonteCarloELBO()))


def test_the_best_draw_alone_teaches(place):
    _, terms = terms_of(place, 4)
    (gradient,) = torch.autograd.grad(VRMax(4).value(terms).sum(), terms.log_likelihood)
    assert torch.equal(gradient, torch.nn.functional.one_hot(terms.log_weight.argmax(0), 4).T.to(gradient))
