"""The KL is that of the pair: every guide under priors other than N(0, I), against many draws and closed forms."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from helpers.loops import fit_posterior
from helpers.tiny import D, L, N, T, V, telling_model, tiny_batch, tiny_model
from torch import nn

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import GUIDES, Laplace, MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.noise import fold
from pyro_ltm.objectives import MAP, MMD, AnalyticELBO, BetaELBO, FreeBits, MonteCarloELBO
from pyro_ltm.scores import evaluate_bound
from pyro_ltm.thoughts.diagnostics import Thoughts, diagnose

B, DRAWS = 3, 4000


class Prior(nn.Module):
    """One distribution over [N, D]."""

    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self):
        return self.distribution


def normal(loc, scale):
    return dist.Normal(torch.full((N, D), loc), torch.linspace(0.5, 1.5, N * D).view(N, D) * scale).to_event(2)


def mixture():
    parts = dist.Normal(torch.tensor([-2.0, 1.0]).view(2, 1, 1).expand(2, N, D), 0.7).to_event(2)
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts)


PRIORS = {
    "N(0, I)": lambda: dist.Normal(torch.zeros(N, D), 1.0).to_event(2),
    "N(3, 1)": lambda: dist.Normal(torch.full((N, D), 3.0), 1.0).to_event(2),
    "scaled": lambda: normal(0.5, 2.0),
    "mixture": mixture,
}


@pytest.fixture
def prior(request):
    torch.set_default_dtype(torch.float64)
    return PRIORS[request.param]()


def model_under(prior, make=tiny_model):
    model = make()
    model.prior = Prior(prior)
    return model


def elsewhere(guide):
    generator = torch.Generator().manual_seed(3)
    start = guide.init(tiny_batch(B))
    return {
        name: (value + 0.3 * torch.randn(value.shape, generator=generator)).detach() for name, value in start.items()
    }


def build(name):
    shape = {"thoughts": N, "dim": D, "layers": L, "vocab_size": V, "max_length": T, "seed": 0}
    return GUIDES.build(Component(name=name), **shape)


@torch.no_grad()
def by_draws(q, prior):
    """KL(q || prior) [B] from many draws, and its standard error."""
    z = q.sample(torch.Size([DRAWS]))
    each = q.log_prob(z) - prior.log_prob(z)
    return each.mean(0), each.std(0) / DRAWS**0.5


@pytest.mark.parametrize("prior", PRIORS, indirect=True)
@pytest.mark.parametrize("name", [name for name, kind in GUIDES.items() if kind.has_density])
def test_the_rate_is_that_of_guide_and_prior(name, prior):
    guide, model, batch = build(name), model_under(prior), tiny_batch(B)
    state = elsewhere(guide)
    exact, error = by_draws(guide.distribution(state), prior)
    terms = BetaELBO(particles=16).terms(model, guide, batch, state)
    # Where no closed form is known, the mean of 16 draws, with their error.
    wide = 5 * error if terms.kl is not None else 5 * error * (DRAWS / 16) ** 0.5
    assert ((terms.rate - exact).abs() <= wide + 1e-9).all()
    closed = guide.has_analytic_kl and not isinstance(prior, dist.MixtureSameFamily)
    assert (terms.kl is not None) == closed
    if guide.has_kl_by_thought:
        each = guide.kl_by_thought(state, prior)
        assert (each is not None) == closed
        if each is not None:
            torch.testing.assert_close(each.sum(-1), terms.kl, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mean-field", "full-rank"])
def test_a_posterior_that_is_its_prior_costs_nothing_in_any_thought(name):
    """And one whose second thought alone is elsewhere costs that thought's nats; `free-bits:0:thought` charges them."""
    torch.set_default_dtype(torch.float64)
    prior = PRIORS["N(3, 1)"]()
    guide, model, batch = build(name), model_under(prior), tiny_batch(B)
    state = {n: v.detach() for n, v in guide.init(batch).items()}
    state["loc"] = torch.full_like(state["loc"], 3.0)
    for particles in (1, 3):
        objective = FreeBits(nats=0.0, per="thought", particles=particles)
        terms = objective.terms(model, guide, batch, state)
        torch.testing.assert_close(terms.kl_by_thought, torch.zeros(B, N), rtol=0, atol=1e-12)
        torch.testing.assert_close(objective.value(terms), -terms.distortion, rtol=0, atol=1e-9)
    moved = dict(state, loc=state["loc"].index_fill(1, torch.tensor(1), 1.0))
    expected = torch.tensor([0.0, D * 2.0, 0.0, 0.0]).expand(B, N)  # (3 - 1)^2 / 2 for each of D
    torch.testing.assert_close(objective.terms(model, guide, batch, moved).kl_by_thought, expected)


@pytest.mark.parametrize("prior", ["mixture"], indirect=True)
def test_what_needs_no_closed_form_works_under_a_mixture(prior):
    model, batch = model_under(prior, lambda: telling_model()[0]), tiny_batch(B)
    guide = MeanField(N, D)
    for objective in (MonteCarloELBO(), BetaELBO(beta=1.0), FreeBits(nats=0.0)):
        posterior = fit_posterior(model, batch, guide=guide, objective=objective, steps=2)
        assert posterior.score(model, batch, particles=4).kl is None
    found = evaluate_bound(model, [batch], FastLoop(guide, MonteCarloELBO(), steps=2), particles=256)
    fitted = fit_posterior(
        model, batch, guide=guide, objective=MonteCarloELBO(), steps=2, seed=fold(0, "fit")
    ).distribution
    exact, error = by_draws(fitted, prior)
    assert abs(found.kl_nats_per_sequence - float(exact.mean())) < 5 * float(error.mean()) * (DRAWS / 256) ** 0.5


@pytest.mark.parametrize("prior", ["mixture"], indirect=True)
@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (AnalyticELBO(), r"AnalyticELBO needs the KL of MeanField.*MixtureSameFamily.*'elbo' or 'stl'"),
        (FreeBits(nats=0.0, per="thought"), r"FreeBits needs the KL of single thoughts.*per = 'total'"),
        (MMD(), r"MMD needs a prior of independent Normals, not MixtureSameFamily"),
    ],
)
def test_what_needs_a_closed_form_is_refused_in_a_line(prior, objective, says):
    with pytest.raises(UserError, match=says):
        fit_posterior(model_under(prior), tiny_batch(B), guide=MeanField(N, D), objective=objective, steps=1)


@pytest.mark.parametrize("prior", ["mixture"], indirect=True)
def test_fixed_noise_is_refused_where_the_kl_would_be_an_estimate(prior):
    fitting = {"guide": MeanField(N, D), "objective": BetaELBO(), "steps": 1, "noise": "fixed"}
    with pytest.raises(UserError, match=r"one draw cannot estimate their KL.*'fresh'"):
        fit_posterior(model_under(prior), tiny_batch(B), **fitting)
    fit_posterior(model_under(normal(1.0, 2.0)), tiny_batch(B), **fitting)


@pytest.mark.parametrize("prior", ["N(3, 1)", "scaled"], indirect=True)
def test_mmd_is_of_the_draws_seen_from_the_prior(prior):
    """Moved and scaled to N(0, I) with its prior, the aggregate is as far from it as before."""
    guide, batch = MeanField(N, D), tiny_batch(B)
    loc, scale = prior.base_dist.loc, prior.base_dist.scale
    state = elsewhere(guide)
    objective = MMD(weight=1.0)
    torch.manual_seed(0)
    plain = objective.terms(tiny_model(), guide, batch, state)
    torch.manual_seed(0)
    moved = {"loc": loc + scale * state["loc"], "log_variance": state["log_variance"] + 2 * scale.log()}
    other = objective.terms(model_under(prior), guide, batch, moved)
    loss = [-objective.value(terms) - terms.distortion for terms in (plain, other)]
    torch.testing.assert_close(*loss)


@pytest.mark.parametrize("prior", ["N(3, 1)", "mixture"], indirect=True)
def test_diagnostics_charge_the_models_own_prior(prior):
    model = model_under(prior)
    guide, objective = MeanField(N, D), MonteCarloELBO()
    thoughts = Thoughts.fit(model, [tiny_batch(B)], FastLoop(guide, objective, steps=2))
    found = diagnose(thoughts, particles=64)
    q = thoughts.posteriors[0].distribution
    exact, _ = by_draws(q, prior)
    assert found.rate.mean == pytest.approx(exact.mean().item(), rel=0.02)
    known = not isinstance(prior, dist.MixtureSameFamily)
    assert (found.rate_by_thought is not None) == known
    if known:
        assert sum(one.mean for one in found.rate_by_thought) == pytest.approx(found.rate.mean)


@pytest.mark.parametrize("prior", ["N(3, 1)", "scaled"], indirect=True)
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_where_thoughts_tell_nothing_the_laplace_approximation_is_the_prior(prior, covariance):
    model, batch = model_under(prior), tiny_batch(B)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.cross_attention.wo.weight.zero_()
    start = {"loc": prior.mean.expand(B, N, D)}
    fitting = {"guide": Laplace(N, D, covariance), "objective": MAP(), "start": start, "steps": 0}
    posterior = fit_posterior(model, batch, **fitting)
    torch.testing.assert_close(posterior.score(model, batch).kl, torch.zeros(B), rtol=0, atol=1e-8)
