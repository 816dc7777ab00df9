"""Importance-weighted bounds against a model whose evidence and whose bounds are known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.closed_forms import log_power_integral
from helpers.linear_gaussian import CorrelatedGaussian, random_covariance
from torch import Tensor

from pyro_ltm.guides import MeanField
from pyro_ltm.inference import posterior as scoring
from pyro_ltm.inference.posterior import Posterior
from pyro_ltm.noise import Noise
from pyro_ltm.scores.importance import doublings, effective_sample_size, importance_nats

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def exact_mean_field(model: CorrelatedGaussian, batch) -> Posterior:
    """The Normal with the posterior's own mean and variances: what it lacks are the correlations."""
    q = model.posterior(batch)
    shape = (batch.size, model.thoughts, model.dim)
    state = {"loc": q.mean.view(shape), "log_variance": q.variance.log().view(shape)}
    guide = MeanField(model.thoughts, model.dim)
    return Posterior(guide, state, batch.ids, Noise(batch.ids, seed=5), torch.zeros(0, batch.size))


def test_doublings():
    assert doublings(1) == [1]
    assert doublings(8) == [1, 2, 4, 8]
    assert doublings(12) == [1, 2, 4, 8, 12]


def test_effective_sample_size_of_known_weights():
    even = torch.full((16, 2), -3.0)
    assert effective_sample_size(even).tolist() == pytest.approx([16, 16])
    one = torch.tensor([[0.0], [-800.0], [-900.0]])
    assert effective_sample_size(one).item() == pytest.approx(1)
    weights = torch.tensor([[1.0], [2.0], [3.0]])
    assert effective_sample_size(weights.log()).item() == pytest.approx(36 / 14)


def test_groups_share_no_draw():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None].log()
    assert importance_nats(weights, 2).item() == pytest.approx(-(math.log(1.5) + math.log(3.5)) / 2)
    assert importance_nats(weights, 1).item() == pytest.approx(-sum(map(math.log, (1, 2, 3, 4, 5))) / 5)
    assert importance_nats(weights, 5).item() == pytest.approx(-math.log(3))


def test_the_curve_falls_to_the_evidence_and_not_below():
    """Replicates of one sequence: each expectation is known to a standard error."""
    torch.manual_seed(0)
    model = CorrelatedGaussian(random_covariance(4, seed=1), thoughts=2, dim=2)
    batch = model.copies(400)
    weights = exact_mean_field(model, batch).score(model, batch, particles=1024).log_weight
    exact = -model.log_evidence(batch)[0].item()
    levels, errors = [], []
    for count in doublings(1024):
        nats = importance_nats(weights, count)
        levels.append(nats.mean().item())
        errors.append(nats.std().item() / 20)
    assert all(level > exact - 4 * error for level, error in zip(levels, errors, strict=True))
    assert all(
        later < earlier + 4 * (a + b)
        for earlier, later, a, b in zip(levels, levels[1:], errors, errors[1:], strict=False)
    )
    # The gap of one draw is KL(q || p(z | x)) of two Gaussians with one mean.
    q, p = model.posterior(batch), torch.distributions.MultivariateNormal
    mine = p(q.mean[0], torch.diag(q.variance[0]))
    gap = torch.distributions.kl_divergence(mine, p(q.mean[0], model.covariance)).item()
    assert levels[0] - exact == pytest.approx(gap, abs=4 * errors[0])
    assert levels[-1] - exact < gap / 20


def off(model: CorrelatedGaussian, batch, *, shift: float, widen: float) -> Posterior:
    """Independent Normals beside the posterior of a model whose posterior is independent too, and wider."""
    posterior = exact_mean_field(model, batch)
    state = posterior.state
    state = {"loc": state["loc"] + shift, "log_variance": state["log_variance"] + 2 * math.log(widen)}
    return dataclasses.replace(posterior, state=state)


def by_quadrature(log_weight: Callable[[Tensor], Tensor], particles: int, nodes: int) -> float:
    """E[log mean w] over so many standard normals, each by Gauss-Hermite with so many nodes."""
    x, share = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    share = share / share.sum()
    each = log_weight(x)
    level, mass = each, share
    for _ in range(particles - 1):
        level = torch.logaddexp(level[..., None], each)
        mass = mass[..., None] * share
    return float((mass * level).sum()) - math.log(particles)


@pytest.mark.parametrize("particles", [1, 2, 4])
def test_the_bound_of_so_many_draws_is_the_integral(particles):
    """One latent number: the importance-weighted bound is an integral over one dimension for each draw."""
    torch.manual_seed(0)
    shift, widen = 0.5, 1.4
    model = CorrelatedGaussian(torch.tensor([[0.3]]), thoughts=1, dim=1)
    batch = model.copies(4000)
    found = off(model, batch, shift=shift, widen=widen).score(model, batch, particles=8).log_weight
    exact, scale = model.log_evidence(batch)[0], 0.3**0.5

    def log_weight(x: Tensor) -> Tensor:
        """At q's draw shift + widen * scale * x from the posterior's mean: both are Normals, the rest is evidence."""
        along = shift / scale + widen * x
        return exact - along.square() / 2 + x.square() / 2 + math.log(widen)

    truth = -by_quadrature(log_weight, particles, 40)
    assert truth == pytest.approx(-by_quadrature(log_weight, particles, 36), abs=1e-4)  # enough nodes
    nats = importance_nats(found, particles)
    assert nats.mean().item() == pytest.approx(truth, abs=4 * nats.std().item() / 4000**0.5)


def test_effective_sample_size_is_a_share_of_the_draws():
    """Of many draws it is K / E_q[(p / q)^2], which two Normals give in closed form; short of it by O(1 / K)."""
    torch.manual_seed(0)
    model = CorrelatedGaussian(torch.diag(torch.tensor([0.3, 0.5])), thoughts=1, dim=2)
    batch = model.copies(200)
    posterior = off(model, batch, shift=0.3, widen=1.3)
    found = effective_sample_size(posterior.score(model, batch, particles=2000).log_weight) / 2000
    p, q = exact_mean_field(model, batch).distribution.base_dist, posterior.distribution.base_dist
    share = (-log_power_integral(p, q, 2.0)[0]).exp().item()
    assert 0.1 < share < 0.9
    assert found.mean().item() == pytest.approx(share, abs=4 * found.std().item() / 200**0.5 + 5 / 2000)


def test_the_exact_posterior_has_equal_weights():
    model = CorrelatedGaussian(torch.diag(torch.tensor([0.3, 0.5, 0.2, 0.7])), thoughts=2, dim=2)
    batch = model.copies(3)
    weights = exact_mean_field(model, batch).score(model, batch, particles=64).log_weight
    assert torch.allclose(weights, model.log_evidence(batch).expand(64, 3), atol=1e-9)
    assert effective_sample_size(weights).tolist() == pytest.approx([64] * 3)


def test_draws_in_pieces_are_as_good_as_at_once(monkeypatch):
    """Memory is that of a piece; a draw of 16 normals, or of a multiple, is the same in pieces of any size."""
    model = CorrelatedGaussian(random_covariance(16, seed=1), thoughts=4, dim=4)
    batch = model.copies(2)
    posterior = exact_mean_field(model, batch)
    whole = posterior.with_noise(1).score(model, batch, particles=64)
    for size in (1, 7, 16):
        monkeypatch.setattr(scoring, "CHUNK", size)
        pieces = posterior.with_noise(1).score(model, batch, particles=64)
        for name in ("log_likelihood", "log_prior", "log_guide"):
            assert torch.allclose(getattr(whole, name), getattr(pieces, name), atol=1e-10)
