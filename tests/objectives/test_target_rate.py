"""The rate is held where it was asked for, and what it buys is the least distortion."""

from __future__ import annotations

import pyro
import pytest
import torch
from helpers.loops import fit_posterior
from helpers.stand_ins import LinearGaussian, NoClosedForm

from pyro_ltm.guides import MeanField
from pyro_ltm.objectives import TargetRate, Terms
from pyro_ltm.optimizers import Adam


def rate_of(state):
    log_variance = state.get("log_variance", 2 * state.get("log_scale", torch.zeros(())))
    return 0.5 * (state["loc"].square() + log_variance.exp() - 1 - log_variance).sum((1, 2))


def least_distortion(model, batch, nats):
    """Mean and variance of the q at this rate that distorts least: prior times likelihood^(1 / multiplier)."""
    low, high = torch.full((batch.size, 1, 1), -20.0), torch.full((batch.size, 1, 1), 20.0)
    data = ((batch.targets - model.offset) @ model.loading / model.noise**2).unflatten(-1, (2, 2)).detach()
    information = (model.loading.square().sum(0) / model.noise**2).view(2, 2).detach()
    for _ in range(80):
        middle = (low + high) / 2
        precision = 1 + information * (-middle).exp()
        state = {"loc": data * (-middle).exp() / precision, "log_variance": -precision.log()}
        above = (rate_of(state) > nats)[:, None, None]
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return state, middle[:, 0, 0]


def fit(nats, guide, optimizer=None, steps=300):
    model = LinearGaussian()
    batch = model.data(8)
    optimizer = optimizer or Adam(lr_final=0.0)
    objective = TargetRate(nats, particles=16)
    with pyro.validation_enabled(False):  # as fits that are scored run: its checks take a fifth of the time
        posterior = fit_posterior(model, batch, guide=guide, objective=objective, optimizer=optimizer, steps=steps)
    return model, batch, posterior


@pytest.mark.parametrize("nats", [1.0, 2.0, 4.0])
def test_holds_the_rate_with_the_least_distortion(nats):
    """Within 5 per cent for every sequence, whether the posterior itself has a higher rate or a lower one."""
    steps = 600 if nats == 4.0 else 300  # the rate rises from zero
    model, batch, posterior = fit(nats, MeanField(2, 2), steps=steps)
    assert (rate_of(posterior.state) / nats - 1).abs().max() < 0.05
    best, log_multiplier = least_distortion(model, batch, nats)
    torch.testing.assert_close(rate_of(best), torch.full((8,), nats))
    exact = torch.distributions.Normal(best["loc"], (best["log_variance"] / 2).exp())
    # In units of q's own scale, for a rate that is a twentieth off.
    assert ((posterior.distribution.mean - exact.mean) / exact.stddev).abs().max() < 0.25
    assert (posterior.state["log_multiplier"] - log_multiplier).abs().max() < 0.15
    # Nothing of the constraint is left in the value but that twentieth, times the multiplier.
    terms = TargetRate(nats).terms(model, posterior.guide, batch, posterior.state)
    left = (TargetRate(nats).value(terms) + terms.distortion).abs()
    assert (left < 0.05 * nats * posterior.state["log_multiplier"].exp()).all()


def test_both_sides_were_tried():
    """The posterior's own rate, with which the multiplier would stay at one, lies between the targets above."""
    model = LinearGaussian()
    batch = model.data(8)
    assert least_distortion(model, batch, 1.0)[1].max() > 0.2
    assert least_distortion(model, batch, 4.0)[1].min() < -0.2


def test_holds_a_rate_that_is_estimated():
    """Within 10 per cent: the estimate's noise, a few tenths of a nat a step, moves the multiplier too."""
    _, _, posterior = fit(4.0, NoClosedForm(2, 2))
    assert (rate_of(posterior.state) / 4.0 - 1).abs().max() < 0.1


def test_few_steps_come_near():
    """The default optimizer as it is, in 64 steps: within a fifth on average."""
    _, _, posterior = fit(4.0, MeanField(2, 2), optimizer=Adam(), steps=64)
    assert (rate_of(posterior.state) / 4.0 - 1).abs().mean() < 0.2


def test_by_hand():
    log_multiplier = torch.tensor([0.0, 1.0, -1.0]).requires_grad_()
    rate = torch.tensor([3.0, 6.0, 4.0]).requires_grad_()
    likelihood = torch.tensor([[-5.0, -6.0, -7.0]])
    terms = Terms(likelihood, likelihood * 0, likelihood * 0, rate, state={"log_multiplier": log_multiplier})
    bound = TargetRate(4.0).value(terms)
    expected = torch.tensor([-5.0 + 1, -6.0 - 2 * torch.e, -7.0])
    torch.testing.assert_close(bound.detach(), expected)
    to_multiplier, to_rate = torch.autograd.grad(bound.sum(), [log_multiplier, rate])
    # Whoever raises the bound raises the multiplier where the rate is too high, and lowers it where it is too low.
    torch.testing.assert_close(to_multiplier, torch.tensor([-0.25, 0.5, 0.0]))
    torch.testing.assert_close(to_rate, -log_multiplier.detach().exp())


def test_outside_of_a_fit_the_multiplier_is_one(place):
    here = place()
    terms = TargetRate(4.0).terms(*here.arguments)
    torch.testing.assert_close(TargetRate(4.0).value(terms), 4.0 - terms.distortion - terms.rate, atol=1e-12, rtol=0)


def test_each_sequence_has_its_own(place):
    here = place(5)
    local = TargetRate().local(here.batch)
    assert torch.equal(local["log_multiplier"], torch.zeros(5))
