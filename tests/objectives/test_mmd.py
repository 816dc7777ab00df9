"""The discrepancy against brute force; nothing where the aggregate is the prior."""

from __future__ import annotations

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.stand_ins import LinearGaussian

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Delta, MeanField
from pyro_ltm.objectives import MMD, AnalyticELBO
from pyro_ltm.objectives.mmd import discrepancy


def kernel(x, y):
    return (-(x - y).square().sum(-1) / (2 * x.shape[-1])).exp()


@pytest.mark.parametrize("particles", [1, 3])
def test_against_many_draws_of_the_prior(particles):
    size, thoughts, dim, many = 4, 2, 3, 400_000
    draws = 0.5 + torch.randn(particles, size, thoughts, dim)
    shares = torch.zeros(size)
    variance = torch.zeros(())
    for n in range(thoughts):
        prior, other = torch.randn(2, many, dim)
        among = kernel(prior, other)
        variance += among.var() / many
        for b in range(size):
            pairs = [
                kernel(draws[k, b, n], draws[j, c, n])
                for c in range(size)
                if c != b
                for k in range(particles)
                for j in range(particles)
            ]
            to_prior = torch.stack([kernel(draws[k, b, n], prior) for k in range(particles)]).mean(0)
            variance += 4 * to_prior.var() / many / size
            shares[b] += torch.stack(pairs).mean() - 2 * to_prior.mean() + among.mean()
    assert ((discrepancy(draws) - shares).abs() < 4 * (size * variance) ** 0.5).all()


def test_nothing_where_the_aggregate_is_the_prior():
    """Sequences whose posteriors are narrow, but N(0, I) all together; every thought is a replicate."""
    torch.manual_seed(1)
    values = []
    for spread in (0.75, 0.0, 1.5):
        means = spread**0.5 * torch.randn(4000, 5, 10, 2)
        draws = means[:, None] + abs(1 - spread) ** 0.5 * torch.randn(4000, 3, 5, 10, 2)
        values.append(torch.func.vmap(discrepancy)(draws).mean(1) / 10)
    for replicates in values[:2]:
        assert replicates.mean().abs() < 4 * replicates.std() / 4000**0.5
    assert values[2].mean() > 10 * values[2].std() / 4000**0.5, "too wide all together"


def test_the_value_is_its_parts(place):
    here = place(4)
    for alpha, weight in ((1.0, 30.0), (0.0, 30.0), (0.25, 0.0), (-2.0, 3.0)):
        objective = MMD(alpha=alpha, weight=weight, particles=3)
        terms = AnalyticELBO(particles=3).terms(*here.arguments)
        wanted = -terms.distortion - (1 - alpha) * terms.kl - weight * discrepancy(terms.thoughts)
        torch.testing.assert_close(objective.value(terms), wanted, atol=1e-12, rtol=0)
    assert torch.equal(here.value(MMD(alpha=0.0, weight=0.0)), here.value(AnalyticELBO()))


def test_a_batch_of_one_pays_nothing(place):
    here = place(1)
    assert torch.equal(here.value(MMD(particles=2)), here.value(AnalyticELBO(particles=2, beta=0.0)))
    assert all(gradient.isfinite().all() for gradient in here.gradients(MMD()))


def test_fits_points_unless_it_charges_the_kl():
    model = LinearGaussian()
    batch = model.data(32)
    fitted = {
        weight: fit_posterior(model, batch, guide=Delta(2, 2), objective=MMD(weight=weight), steps=100)
        for weight in (0.0, 300.0)
    }
    spread = {weight: posterior.state["loc"].flatten(1).cov() for weight, posterior in fitted.items()}
    # Without the discrepancy points go to the likelihood's own mode, wide apart; with it to the prior's spread.
    assert spread[0.0].diagonal().max() > 2
    held = fitted[300.0].state["loc"]
    before, after = (discrepancy(fitted[weight].state["loc"][None]).mean() for weight in (0.0, 300.0))
    assert after < before / 3
    assert held.square().mean() < 1.5
    with pytest.raises(UserError, match="Delta has no density, which MMD needs"):
        MMD(alpha=0.5).check(Delta(2, 2))
    MMD(alpha=0.5).check(MeanField(2, 2))
