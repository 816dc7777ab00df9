"""Every prior, by the registry: a density that integrates to one, draws that follow it, bounds below the evidence."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.tiny import D, L, N, enlarge, tiny_batch, tiny_config, tiny_model
from torch.distributions import Normal

from pyro_ltm.config import Component
from pyro_ltm.divergence import analytic_kl
from pyro_ltm.guides import MeanField
from pyro_ltm.model import LatentThoughtModel, TokenSequence
from pyro_ltm.noise import Noise, draw
from pyro_ltm.objectives import StickingTheLanding
from pyro_ltm.optimizers.slow.base import hidden_matrices
from pyro_ltm.priors import PRIORS
from pyro_ltm.types import Batch
from pyro_ltm.weights import Weights

SMALL = {"hidden": 8}
COMPONENTS = {name: Component(name=name) for name in PRIORS} | {
    "gaussian, learned": Component(name="gaussian", options={"learned": True}),
    "mixture": Component(name="mixture", options={"components": 3}),
    "mixture, by thought": Component(name="mixture:3:thought"),
    "layered": Component(name="layered", options=SMALL),
    "flow": Component(name="flow", options=SMALL),
    "vamp": Component(name="vamp", options={"components": 3}),
    "transport": Component(name="transport", options=SMALL),
    "diffusion": Component(name="diffusion", options={"steps": 4, **SMALL}),
    "conditional": Component(name="conditional", options=SMALL),
}
EXACT = {name for name, component in COMPONENTS.items() if PRIORS[component.name.split(":")[0]].has_exact_density}


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def build(name, thoughts=N, dim=D, layers=L):
    return PRIORS.build(COMPONENTS[name], thoughts=thoughts, dim=dim, layers=layers)


@torch.no_grad()
def elsewhere(module, by=0.4):
    """The module with weights as far from those it starts with as training may take them."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter += by * torch.randn(parameter.shape, generator=generator)
    return module


def drawn(prior, count, seed=0):
    return draw(prior().expand((count,)), Noise(torch.arange(count), seed=seed))


def grid(points=97, reach=8.0):
    """Two numbers as two thoughts of one [P, 2, 1], and the area of a point."""
    line = torch.linspace(-reach, reach, points)
    return torch.cartesian_prod(line, line)[..., None], float(line[1] - line[0]) ** 2


@pytest.mark.parametrize("name", COMPONENTS)
@torch.no_grad()
def test_the_density_integrates_to_one_and_draws_follow_it(name):
    rough = name not in EXACT  # an estimate of the density, whose tail is longer the further the weights have gone
    prior = elsewhere(build(name, thoughts=2, dim=1, layers=2), by=0.1 if rough else 0.4)
    points, area = grid()
    density = prior().log_prob(points).exp() * area
    assert float(density.sum()) == pytest.approx(1, abs=0.02 if rough else 1e-5)
    z, flat = drawn(prior, 8000).flatten(1), points.flatten(1)
    for number in (lambda z: z[:, 0], lambda z: z[:, 1], lambda z: (z[:, 0] * z[:, 1]).sin(), lambda z: z[:, 0].cos()):
        by_draws = number(z)
        error = float(by_draws.std()) / len(z) ** 0.5 + (0.02 if rough else 0)
        assert float(by_draws.mean()) == pytest.approx(float((density * number(flat)).sum()), abs=4.5 * error)


@pytest.mark.parametrize("name", COMPONENTS)
@torch.no_grad()
def test_shapes_and_types(name):
    prior = elsewhere(build(name))
    assert prior().event_shape == (N, D)
    assert prior().batch_shape == ()
    wide = prior().expand((2, 3))
    z = draw(wide, Noise(torch.arange(3), seed=1))
    assert z.shape == wide.sample().shape == (2, 3, N, D)
    assert prior().sample((5,)).shape == (5, N, D)
    assert wide.log_prob(z).shape == (2, 3)
    if name in EXACT:
        torch.testing.assert_close(wide.log_prob(z), torch.stack([prior().log_prob(each) for each in z]))
    single = prior.float()
    assert drawn(single, 2).dtype == single().log_prob(drawn(single, 2)).dtype == torch.float32


@pytest.mark.parametrize("name", COMPONENTS)
@torch.no_grad()
def test_it_starts_near_the_standard_normal(name):
    z = torch.randn(64, N, D)
    gap = Normal(0, 1).log_prob(z).sum((-2, -1)) - build(name)().log_prob(z)
    assert gap.abs().max() < 6
    assert abs(gap.mean()) < 0.5, "start nearer to N(0, I): the same variance, say"


@pytest.mark.parametrize("name", COMPONENTS)
def test_all_that_it_learns_has_a_gradient_and_moves_by_adamw(name):
    prior = elsewhere(build(name, thoughts=4, dim=3))
    log_prob = prior().log_prob(drawn(prior, 6).detach()).sum()
    if prior.reads_prompt:
        log_prob = log_prob + prior.given(torch.randn(6, 3)).log_prob(torch.randn(6, 4, 3)).sum()
    if log_prob.requires_grad:
        log_prob.backward()
        assert all(bool(parameter.grad.abs().sum() > 0) for parameter in prior.parameters())
    assert not hidden_matrices(prior)


@pytest.mark.parametrize("name", COMPONENTS)
@torch.no_grad()
def test_a_density_is_of_the_weights_with_which_the_program_ran(name):
    prior, z = elsewhere(build(name)), torch.randn(3, N, D)
    weights = {key: value.clone() for key, value in prior.named_parameters()}
    moved = {key: value + 1 for key, value in weights.items()}
    there = torch.func.functional_call(prior, moved, ())
    for key, value in moved.items():
        prior.get_parameter(key).data = value
    torch.testing.assert_close(there.log_prob(z), prior().log_prob(z))
    assert Weights(prior).module() is prior


@pytest.mark.parametrize("name", COMPONENTS)
@torch.no_grad()
def test_the_rate_is_the_kl_of_the_pair(name):
    """In closed form, or by draws: against the integral over the plane."""
    prior, batch = elsewhere(build(name, thoughts=2, dim=1, layers=2)), tiny_batch(2)
    state = {"loc": torch.tensor([[0.5, -1.0], [0.0, 1.5]])[..., None], "log_variance": torch.full((2, 2, 1), -1.0)}
    q = MeanField(2, 1).distribution(state)
    points, area = grid()
    log_q, log_p = q.log_prob(points[:, None]), prior().log_prob(points)[:, None]
    exact = ((log_q - log_p) * log_q.exp() * area).sum(0)
    if (closed := analytic_kl(q, prior())) is not None:
        torch.testing.assert_close(closed, exact, atol=1e-4, rtol=1e-4)
    z = draw(q.expand((4000, 2)), Noise(batch.ids, seed=3))
    each = q.log_prob(z) - prior().log_prob(z)
    slack = 0.0 if name in EXACT else 0.05
    assert ((each.mean(0) - exact).abs() < 4.5 * each.std(0) / 4000**0.5 + slack).all()
    assert (closed is not None) == build(name).has_analytic_kl


def every_text():
    """All texts of two tokens out of three, after one that is given."""
    return Batch.from_tokens(torch.tensor([[0, *text] for text in itertools.product(range(3), repeat=2)]))


@pytest.mark.parametrize("name", COMPONENTS)
@torch.no_grad()
def test_no_bound_exceeds_the_evidence_of_texts_that_can_all_be_written_down(name):
    config = tiny_config(vocab_size=3, dim=4, thoughts=2, max_length=4, heads=1)
    model = LatentThoughtModel(config, prior=elsewhere(build(name, thoughts=2, dim=4)))
    enlarge(model.decoder, seed=1)
    batch, guide, count = every_text(), MeanField(2, 4), 400
    z = draw(model.prior().expand((count, batch.size)), Noise(batch.ids, seed=1))
    like = TokenSequence(model.decoder, z, batch).log_prob(batch.targets.expand(count, -1, -1)).exp()
    evidence, spread = like.mean(0), like.std(0) / count**0.5
    assert float(evidence.sum()) == pytest.approx(1, abs=0.2)
    state = fit_posterior(model, batch, guide=guide, objective=StickingTheLanding(2), steps=4).state
    terms = StickingTheLanding(particles=count).terms(model, guide, batch, state)
    elbo, error = terms.log_weight.mean(0), terms.log_weight.std(0) / count**0.5
    assert (elbo < evidence.log() + 4 * (error + spread / evidence)).all()


def test_the_model_of_todays_configuration_has_the_papers_prior():
    assert isinstance(tiny_model().prior, PRIORS["gaussian"])
    assert not list(tiny_model().prior.state_dict())
