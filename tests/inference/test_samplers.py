"""Samplers follow the posterior: their draws have its moments where these are known, off by what theory says."""

from __future__ import annotations

import pyro
import pytest
import torch
from helpers.loops import fit_posterior
from helpers.stand_ins import LinearGaussian

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Delta
from pyro_ltm.inference.samplers import HMC, MALA, SVGD, Draws, Langevin
from pyro_ltm.inference.samplers.svgd import _stein
from pyro_ltm.noise import Noise, draw
from pyro_ltm.objectives import MAP
from pyro_ltm.optimizers import Adam

CHAINS = 40
"""Copies of one sequence under different names: replicates, whose scatter is the error of one run."""


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def run(model, batch, sampler, steps):
    with pyro.validation_enabled(False):  # as fits that are scored run
        return fit_posterior(model, batch, guide=sampler, objective=MAP(), steps=steps)


def agree(replicates, wanted, errors=4.5):
    """Whether the mean of independent replicates [R, ...] is `wanted` [...], within so many standard errors."""
    error = replicates.std(0) / len(replicates) ** 0.5
    return ((replicates.mean(0) - wanted).abs() < errors * error).all()


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [(lambda n, d: MALA(n, d, chains=2), 400), (lambda n, d: HMC(n, d, leapfrogs=6), 60)],
    ids=["mala", "hmc"],
)
def test_exact_samplers_have_the_posteriors_moments(sampler, steps):
    model = LinearGaussian()
    copies = CHAINS if steps > 100 else 12
    batch = model.data(copies, copies=True)
    posterior = run(model, batch, sampler(model.thoughts, model.dim), steps)
    exact = model.posterior(batch)
    assert agree(posterior.state["mean"], exact.mean[0])
    second = posterior.state["variance"] + (posterior.state["mean"] - exact.mean).square()
    assert agree(second, exact.variance[0])
    assert posterior.history.shape == (steps, copies)


def test_unadjusted_langevin_is_as_wide_as_its_step_size_makes_it():
    """z' = z - e p z + sqrt(2 e) n is stationary at variance 1 / (p (1 - e p / 2)) for a precision p."""
    model = LinearGaussian()
    batch = model.data(CHAINS, copies=True)
    exact, size = model.posterior(batch), 0.1
    posterior = run(model, batch, Langevin(model.thoughts, model.dim, step_size=size, chains=8), 400)
    precision = 1 / exact.variance[0]
    biased = 1 / (precision * (1 - size * precision / 2))
    assert agree(posterior.state["mean"], exact.mean[0])
    second = posterior.state["variance"] + (posterior.state["mean"] - exact.mean).square()
    assert agree(second, biased)
    assert not agree(second, exact.variance[0]), "its bias is large enough to be seen"


def test_the_metropolis_step_removes_that_bias():
    """At the same step size, held fixed in the second half, adjusted draws have the exact variance."""
    model = LinearGaussian()
    batch = model.data(CHAINS, copies=True)
    posterior = run(model, batch, MALA(model.thoughts, model.dim, step_size=0.1, chains=8), 400)
    exact = model.posterior(batch)
    second = posterior.state["variance"] + (posterior.state["mean"] - exact.mean).square()
    assert agree(second, exact.variance[0])


def test_a_step_that_is_far_too_long_is_refused():
    model = LinearGaussian(noise=0.02)  # posterior standard deviations of some hundredths
    batch = model.data(4)
    wild = run(model, batch, Langevin(model.thoughts, model.dim, step_size=1.0), 60)
    tame = run(model, batch, MALA(model.thoughts, model.dim, step_size=1.0), 300)
    assert not wild.history[-1].isfinite().all() or (wild.history[-1] < -1e6).all()
    assert (tame.history[-1] > tame.history[0]).all()


def test_stein_points_stand_around_the_posterior():
    model = LinearGaussian()
    batch = model.data(6)
    sampler = SVGD(model.thoughts, model.dim, particles=24)
    fit = fit_posterior(
        model, batch, guide=sampler, objective=MAP(), optimizer=Adam(lr=0.2, lr_final=0.01, eps=1e-8), steps=300
    )
    exact = model.posterior(batch)
    # 24 points in 4 dimensions: their mean lies where the forces balance, their variance falls short of the exact one.
    assert ((fit.state["mean"] - exact.mean).abs() < 0.1 * exact.stddev).all()
    ratio = fit.state["variance"] / exact.variance
    assert ((ratio > 0.3) & (ratio < 1.1)).all()


def test_the_stein_direction_by_hand():
    """The kernelized direction of arXiv:1608.04471, equation 8, one pair after the other."""
    z, slope = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    found = _stein(z, slope)
    for b in range(2):
        distances = torch.stack([(z[b, i] - z[b, j]).square().sum() for i in range(5) for j in range(i)])
        width = distances.median() / (2 * torch.log(torch.tensor(6.0)))
        for i in range(5):
            pushed = torch.zeros(3)
            for j in range(5):
                leaf = z[b, j].clone().requires_grad_()
                kernel = torch.exp(-(leaf - z[b, i]).square().sum() / (2 * width))
                (away,) = torch.autograd.grad(kernel, leaf)
                pushed = pushed + (kernel.detach() * slope[b, j] + away) / 5
            torch.testing.assert_close(found[b, i], pushed, atol=1e-12, rtol=1e-9)


def test_judged_by_the_normal_of_its_draws():
    model = LinearGaussian()
    batch = model.data(5)
    fit = run(model, batch, MALA(model.thoughts, model.dim, chains=8), 400)
    terms = fit.with_noise(3).score(model, batch, particles=200)
    evidence, error = model.log_evidence(batch), terms.log_weight.std(0) / 200**0.5
    assert (terms.log_weight.mean(0) < evidence + 4 * error).all(), "it is a bound"
    assert (terms.log_weight.mean(0) > evidence - 0.5).all(), (
        "and a good one, for a posterior of independent dimensions"
    )


def test_a_point_is_not_judged():
    model = LinearGaussian()
    batch = model.data(2)
    fit = fit_posterior(model, batch, guide=Delta(model.thoughts, model.dim), objective=MAP(), steps=3)
    with pytest.raises(ValueError, match="no bound judges it"):
        fit.score(model, batch)
    assert torch.equal(fit.sample(3)[0], fit.state["loc"])


def test_draws_are_picked_evenly():
    values = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 3, 5)
    q = Draws(values)
    assert (q.batch_shape, q.event_shape) == ((2,), (3, 5))
    assert q.mean[0, 0, 0] == 1.5
    assert q.variance[0, 0, 0] == 1.25
    for picked in (q.sample((4000,)), draw(q.expand((4000, 2)), Noise(torch.arange(2), seed=0))):
        assert picked.shape == (4000, 2, 3, 5)
        assert (picked == picked[..., :1, :1]).all(), "a draw is one of the values as a whole"
        share = torch.stack([(picked[:, 0, 0, 0] == v).double().mean() for v in range(4)])
        assert ((share - 0.25).abs() < 4 * (0.25 * 0.75 / 4000) ** 0.5).all()
    assert (q.log_prob(q.sample()) == 0).all()


def test_no_steps_leave_the_prior():
    model = LinearGaussian()
    for sampler in (MALA(2, 2), HMC(2, 2), SVGD(2, 2)):
        fit = run(model, model.data(3), sampler, 0)
        assert fit.history.shape == (0, 3)
        assert torch.equal(fit.state["particles"], sampler.init(model.data(3))["particles"])
        assert (fit.guide.scored_distribution(fit.state).variance == 1).all()


def test_hmc_leaves_torchs_generator_alone():
    model = LinearGaussian()
    batch = model.data(2)
    before = torch.get_rng_state()
    run(model, batch, HMC(2, 2, leapfrogs=2), 6)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("noise", ["fixed", "antithetic"])
def test_chains_are_refused_noise_that_would_break_them(noise):
    model = LinearGaussian()
    with pytest.raises(UserError, match="chains of MALA need new noise"):
        fit_posterior(model, model.data(2), guide=MALA(2, 2), objective=MAP(), noise=noise)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 13])
def test_a_run_that_is_judged_on_its_way_is_judged_as_if_it_ended_there(steps):
    """Moments of the draws from the last power of two but one, by hand."""
    model = LinearGaussian()
    batch, seen, longer = model.data(4), [], []
    options = {"guide": Langevin(2, 2, chains=3), "objective": MAP()}
    fit = fit_posterior(model, batch, steps=steps, watch=lambda step, state: seen.append(state), **options)
    first = {1: 0, 2: 0, 3: 1, 8: 2, 13: 4}[steps]
    draws = torch.cat([state["particles"] for state in seen[1 + first :]], dim=1)
    torch.testing.assert_close(fit.state["mean"], draws.mean(1))
    torch.testing.assert_close(fit.state["variance"], draws.var(1, correction=0))
    fit_posterior(model, batch, steps=20, watch=lambda step, state: longer.append(state), **options)
    torch.testing.assert_close(longer[steps]["mean"], fit.state["mean"])


def test_a_chain_that_starts_nowhere_ends_there():
    model = LinearGaussian()
    batch = model.data(3)
    batch.targets[1] = torch.nan
    with pyro.validation_enabled(False):
        fit = run(model, batch, HMC(2, 2, leapfrogs=2), 6)
    assert fit.state["mean"][1].isnan().all()
    assert fit.state["mean"][[0, 2]].isfinite().all()
