"""The bounds are cross-entropy + KL to the last digit, as stock Pyro has them."""

from __future__ import annotations

import pyro
import pytest
import torch
import torch.nn.functional as F
from helpers.stand_ins import NoClosedForm
from helpers.tiny import D, N, tiny_batch, tiny_model
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import Normal, kl_divergence

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Delta, MeanField
from pyro_ltm.objectives import OBJECTIVES, AnalyticELBO, MonteCarloELBO, Terms

B = 3
ROUNDOFF = 1e-9
"""Double precision; sums of some hundred terms, in all some hundreds of nats, in another order."""


@pytest.fixture
def parts():
    batch = tiny_batch(B)
    guide = MeanField(N, D, init_loc=0.7, init_log_variance=-1.0, init_noise=0.5)
    state = {name: value.detach().requires_grad_() for name, value in guide.init(batch).items()}
    return tiny_model(), guide, batch, state


def by_hand(model, batch, state, normals):
    """Log-likelihood [K, B], log prior, log q, and KL [B], for standard normals [K, B, N, D], without any Pyro."""
    z = state["loc"] + normals * (state["log_variance"] / 2).exp()
    rows = []
    for particle in z:
        logits = model.decoder.logits(model.decoder(model.decoder.context(batch.inputs), particle))
        nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        rows.append(-nats.view(B, -1).sum(-1))
    scale = (state["log_variance"] / 2).exp()
    kl = (state["loc"] ** 2 + state["log_variance"].exp() - 1 - state["log_variance"]).sum((1, 2)) / 2
    return (
        torch.stack(rows),
        Normal(0.0, 1.0).log_prob(z).sum((2, 3)),
        Normal(state["loc"], scale).log_prob(z).sum((2, 3)),
        kl,
    )


def normals_of_seed(seed, particles):
    """What torch draws for a Normal of this shape: the numbers that stock Pyro and the objectives see."""
    pyro.set_rng_seed(seed)
    shape = (particles, B, N, D) if particles > 1 else (B, N, D)
    return torch.normal(torch.zeros(shape), torch.ones(shape)).view(particles, B, N, D)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
def test_values_and_gradients_by_hand(parts, particles, beta):
    model, guide, batch, state = parts
    likelihood, prior, q, kl = by_hand(model, batch, state, normals_of_seed(5, particles))
    wanted = {
        AnalyticELBO: -(likelihood.mean(0) - beta * kl).sum(),
        MonteCarloELBO: -(likelihood + beta * (prior - q)).mean(0).sum(),
    }
    leaves = [*state.values(), *model.parameters()]
    for kind, expected in wanted.items():
        pyro.set_rng_seed(5)
        loss = kind(particles=particles, beta=beta)(model, guide)(batch, state)
        torch.testing.assert_close(loss, expected, atol=ROUNDOFF, rtol=0)
        ours = torch.autograd.grad(loss, leaves)
        theirs = torch.autograd.grad(expected, leaves, retain_graph=True)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=ROUNDOFF * max(1, float(other.abs().max())), rtol=0)


@pytest.mark.parametrize(
    ("ours", "stock"),
    [(AnalyticELBO, TraceMeanField_ELBO), (MonteCarloELBO, Trace_ELBO)],
    ids=lambda kind: kind.__name__,
)
def test_is_stock_pyro_to_the_last_bit(parts, ours, stock):
    model, guide, batch, state = parts
    pyro.set_rng_seed(7)
    expected = stock()(model, guide)(batch, state)
    pyro.set_rng_seed(7)
    terms = ours().terms(model, guide, batch, state)
    # Pyro sums each site over the batch and then adds the sites up.
    likelihood = terms.log_likelihood.sum()
    if terms.kl is not None:
        whole = -terms.kl.sum() + likelihood
    else:
        whole = terms.log_prior.sum() + likelihood - terms.log_guide.sum()
    assert torch.equal(-whole, expected)
    # The objective adds up each sequence first.
    pyro.set_rng_seed(7)
    torch.testing.assert_close(ours()(model, guide)(batch, state), expected, atol=ROUNDOFF, rtol=0)


@pytest.mark.parametrize(("ours", "stock"), [(AnalyticELBO, TraceMeanField_ELBO), (MonteCarloELBO, Trace_ELBO)])
def test_is_stock_pyro_with_particles_and_gradients(parts, ours, stock):
    model, guide, batch, state = parts
    leaves = [*state.values(), *model.parameters()]
    results = []
    for elbo in (ours(particles=3), stock(num_particles=3, vectorize_particles=True, max_plate_nesting=1)):
        pyro.set_rng_seed(7)
        loss = elbo(model, guide)(batch, state)
        results.append((loss, torch.autograd.grad(loss, leaves)))
    (mine, my_gradients), (other, other_gradients) = results
    torch.testing.assert_close(mine, other, atol=ROUNDOFF, rtol=0)
    for a, b in zip(my_gradients, other_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=ROUNDOFF * max(1, float(b.abs().max())), rtol=0)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_sum_to_the_whole(parts, name, particles):
    model, guide, batch, state = parts
    particles = max(particles, OBJECTIVES[name].fewest_particles)
    objective = OBJECTIVES[name](particles=particles)
    if objective.refusal(guide):
        guide, state = Delta(N, D), {"loc": state["loc"]}
    terms = objective.terms(model, guide, batch, state)
    for term in (terms.log_likelihood, terms.log_prior, terms.log_guide, terms.log_weight):
        assert term.shape == (particles, B)
    bound = objective.value(terms)
    for term in (terms.rate, terms.distortion, bound):
        assert term.shape == (B,)
    assert torch.equal(terms.log_weight, terms.log_likelihood + terms.log_prior - terms.log_guide)
    estimated = Terms(terms.log_likelihood, terms.log_prior, terms.log_guide)
    torch.testing.assert_close(-(estimated.distortion + estimated.rate), terms.log_weight.mean(0), atol=1e-9, rtol=0)
    assert (terms.kl is not None) == objective.reads_kl
    assert terms.thoughts.shape == (particles, B, N, D)
    if isinstance(objective, AnalyticELBO | MonteCarloELBO):
        torch.testing.assert_close(-(terms.distortion + terms.rate), bound, atol=1e-9, rtol=0)
    if terms.kl is not None:
        assert torch.equal(terms.rate, terms.kl)
    if particles > 1 and guide.has_density:
        assert len(terms.log_guide.detach()[:, 0].unique()) == particles, "every particle is a draw of its own"
    loss = objective.loss(model, guide, batch, state)
    assert isinstance(loss, float)


def test_estimated_kl_agrees_with_the_exact_one(parts):
    _, guide, _, state = parts
    q = guide.distribution({name: value.detach() for name, value in state.items()})
    prior = torch.distributions.Independent(Normal(torch.zeros(N, D), torch.ones(N, D)), 2)
    z = q.sample((4000,))
    ratios = q.log_prob(z) - prior.log_prob(z)
    exact = kl_divergence(q, prior.expand((B,)))
    assert ((ratios.mean(0) - exact).abs() < 4 * ratios.std(0) / 4000**0.5).all()
    # And the two objectives estimate the same quantity (common draws, so that only the KL's noise is left).
    terms = AnalyticELBO(particles=200).terms(*parts)
    difference = (MonteCarloELBO().value(terms) - AnalyticELBO().value(terms)).detach()
    noise = (terms.log_guide - terms.log_prior).detach().std(0) / 200**0.5
    assert (difference.abs() < 4 * noise).all()


def test_warm_up_raises_the_weight():
    objective = AnalyticELBO(beta=0.8, warmup=0.5, particles=2)
    shares = (0, 0.125, 0.25, 0.375, 0.5, 1.0)
    assert [objective.at(share).beta for share in shares] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])
    assert objective.beta == 0.8
    assert objective.at(0.1).num_particles == 2
    assert objective.at(0.125).at(0.0).beta == pytest.approx(0.2), "an annealed objective is not annealed again"


def test_scales_and_masks_of_pyro_count(parts):
    """Ours agrees with stock Pyro also where a handler scales or masks both programs."""
    model, guide, batch, state = parts

    class Scaled(MeanField):
        def __init__(self, program):
            super().__init__(guide.thoughts, guide.dim)
            self.program = program

        def forward(self, batch, state):
            with poutine.scale(scale=0.5), poutine.mask(mask=torch.arange(batch.size) > 0):
                return self.program(batch, state)

    losses = []
    for objective in (TraceMeanField_ELBO(), AnalyticELBO()):
        torch.manual_seed(0)
        losses.append(objective(Scaled(model), Scaled(guide))(batch, state))
    torch.testing.assert_close(*losses)  # they add in another order, which on some processors rounds otherwise
    torch.manual_seed(0)
    assert losses[0] < AnalyticELBO()(model, guide)(batch, state), "the handlers did something"


def test_only_the_guides_site_is_replayed(parts):
    """The model is run on the guide's thoughts: its log prior is that of the very draw whose log q stands beside it."""
    model, guide, batch, state = parts
    narrow = {"loc": state["loc"], "log_variance": torch.full_like(state["log_variance"], -60.0)}
    terms = MonteCarloELBO().terms(model, guide, batch, narrow)
    expected = Normal(0.0, 1.0).log_prob(state["loc"]).sum((1, 2))
    torch.testing.assert_close(terms.log_prior[0], expected, atol=1e-9, rtol=0)  # standard deviation exp(-30)


def test_refuses_a_guide_without_a_closed_form(parts):
    model, _, batch, _ = parts
    guide = NoClosedForm(N, D)
    with pytest.raises(UserError, match="NoClosedForm has no closed-form KL to the prior, which AnalyticELBO needs"):
        AnalyticELBO()(model, guide)(batch, guide.init(batch))
    terms = MonteCarloELBO().terms(model, guide, batch, guide.init(batch))
    assert terms.kl is None
    assert torch.equal(terms.rate, terms.log_guide[0] - terms.log_prior[0])
    with pytest.raises(AssertionError):
        AnalyticELBO().value(terms)
