"""What every posterior family promises, walked over the registry; and the mean-field family's start."""

from __future__ import annotations

import dataclasses

import pyro
import pytest
import torch
from helpers.tiny import D, N, tiny_batch
from pyro import poutine
from torch.distributions import kl_divergence

from pyro_ltm.guides import GUIDES, MeanField
from pyro_ltm.model import StandardNormal
from pyro_ltm.noise import Noise, rsample_from

B = 3


@pytest.fixture(params=list(GUIDES))
def guide(request):
    torch.set_default_dtype(torch.float64)
    return GUIDES[request.param](thoughts=N, dim=D)


@pytest.fixture
def state(guide):
    """Some way off the start, the same for each test."""
    generator = torch.Generator().manual_seed(3)
    start = guide.init(tiny_batch(B))
    return {
        name: value + 0.5 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in start.items()
    }


def test_init_gives_leaves_for_each_sequence(guide):
    batch = tiny_batch(B)
    for value in guide.init(batch).values():
        assert value.shape[0] == B
        assert value.isfinite().all()
        assert not value.requires_grad
    again = guide.init(batch)
    assert all(torch.equal(value, again[name]) for name, value in guide.init(batch).items())
    assert not dict(pyro.get_param_store())


def test_init_does_not_depend_on_the_batch(guide):
    batch = dataclasses.replace(tiny_batch(B), ids=torch.tensor([7, 1, 4]))
    whole, alone = guide.init(batch), guide.init(batch.select(torch.tensor([2])))
    assert all(torch.equal(value[2:], alone[name]) for name, value in whole.items())


def test_distribution_has_its_shapes(guide, state):
    q = guide.distribution(state)
    assert (q.batch_shape, q.event_shape) == ((B,), (N, D))
    assert q.has_rsample == guide.reparameterized


def test_is_a_program_of_one_site(guide, state):
    batch = tiny_batch(B)
    trace = poutine.trace(guide).get_trace(batch, state)
    assert [n for n, node in trace.nodes.items() if node["type"] == "sample"] == ["sequences", "thoughts"]
    assert trace.nodes["thoughts"]["value"].shape == (B, N, D)
    with pyro.plate("particles", 5, dim=-2):
        assert poutine.trace(guide).get_trace(batch, state).nodes["thoughts"]["value"].shape == (5, B, N, D)


def test_closed_form_kl_is_there_when_claimed_and_right(guide, state):
    q = guide.distribution(state)
    prior = StandardNormal(N, D)().expand((B,))
    z = q.sample((4000,))
    ratios = q.log_prob(z) - prior.log_prob(z)
    if guide.has_analytic_kl:
        exact = kl_divergence(q, prior)
        assert exact.shape == (B,)
        assert ((ratios.mean(0) - exact).abs() < 4 * ratios.std(0) / 4000**0.5).all()


def test_draws_from_given_noise_follow_the_distribution(guide, state):
    """The noise keyed by sequence goes through a rule of its own: its draws must have q's moments and gradients."""
    if not guide.reparameterized:
        pytest.skip("no reparameterization: no rule is needed")
    leaves = {name: value.detach().requires_grad_() for name, value in state.items()}
    q = guide.distribution(leaves).expand((4000, B))
    noise = Noise(torch.arange(B), seed=1)
    z = rsample_from(q, lambda shape: noise.normal(shape, event_dims=2, dtype=torch.float64))
    assert z.shape == (4000, B, N, D)
    single = guide.distribution(state)
    # Standard errors of mean and variance over 4000 draws; 192 dimensions, so five of them.
    assert ((z.mean(0) - single.mean).abs() < 5 * (single.variance / 4000).sqrt()).all()
    assert ((z.var(0) / single.variance - 1).abs() < 5 * (2 / 4000) ** 0.5).all()
    gradients = torch.autograd.grad(z.square().sum(), list(leaves.values()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_owns_nothing_that_grows_with_the_data(guide):
    sizes = []
    for size in (2, 50):
        guide.init(tiny_batch(size))
        sizes.append(sum(p.numel() for p in guide.parameters()))
    assert sizes[0] == sizes[1]


def test_mean_field_starts_at_the_prior():
    batch = tiny_batch(B)
    guide = MeanField(N, D)
    q = guide.distribution(guide.init(batch))
    assert torch.equal(kl_divergence(q, StandardNormal(N, D)().expand((B,))), torch.zeros(B))


def test_mean_field_starts_as_the_reference_does():
    batch = tiny_batch(400)
    guide = MeanField(N, D, init_loc=0.01, init_log_variance=-5.0, init_noise=0.1)
    state = guide.init(batch)
    count = state["loc"].numel()
    for name, mean, std in (("loc", 0.0, 0.01), ("log_variance", -5.0, 0.1)):
        # Standard errors of mean and standard deviation over all draws.
        assert abs(float(state[name].mean()) - mean) < 4 * std / count**0.5
        assert abs(float(state[name].std()) - std) < 4 * std / (2 * count) ** 0.5
    other = MeanField(N, D, init_loc=0.01, seed=1).init(batch)
    assert not torch.equal(other["loc"], state["loc"])
