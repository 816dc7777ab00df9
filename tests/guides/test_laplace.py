"""The mode and the curvature there: exact for a Gaussian posterior, and never wider than the prior."""

from __future__ import annotations

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.stand_ins import LinearGaussian
from helpers.tiny import D, N, telling_model

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Laplace
from pyro_ltm.guides.laplace import hessian
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.objectives import MAP
from pyro_ltm.optimizers import LBFGS


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def fit(model, batch, guide, steps=30):
    return fit_posterior(model, batch, guide=guide, objective=MAP(), optimizer=LBFGS(), steps=steps)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_is_the_posterior_where_that_is_gaussian(covariance):
    model = LinearGaussian()  # its posterior has independent dimensions
    batch = model.data(5)
    posterior = fit(model, batch, Laplace(model.thoughts, model.dim, covariance))
    q, exact = posterior.distribution, model.posterior(batch)
    torch.testing.assert_close(q.mean, exact.mean, atol=1e-7, rtol=0)
    torch.testing.assert_close(q.variance, exact.variance, atol=1e-10, rtol=0)
    terms = posterior.with_noise(1).score(model, batch, particles=7)
    # Every draw's log weight is the log evidence: an identity, up to the mode's own error squared.
    torch.testing.assert_close(terms.log_weight, model.log_evidence(batch).expand(7, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        -(terms.distortion.mean() + terms.rate.mean()), terms.log_weight.mean(), atol=2.0, rtol=0
    )


def test_the_hessian_is_that_of_the_decoder():
    """Central differences of the gradient in single precision's square root of steps, in float64."""
    model, batch = telling_model(2)
    with torch.no_grad():
        loc = 0.3 * torch.randn(2, N, D)
    target = LogJoint(model, batch)
    found = hessian(target, loc)

    def slope(z):
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(target(leaf).sum(), leaf)[0].flatten(1)

    for index in (0, 17, N * D - 1):
        bump = torch.zeros(N * D)
        bump[index] = 1e-5
        bump = bump.view(N, D)
        numeric = (slope(loc + bump) - slope(loc - bump)) / 2e-5
        torch.testing.assert_close(found[:, index], numeric, atol=1e-5, rtol=1e-5)


def test_no_direction_is_wider_than_the_prior():
    model, batch = telling_model(2)
    posterior = fit(model, batch, Laplace(N, D), steps=40)
    q = posterior.distribution
    assert torch.linalg.eigvalsh(q.base_dist.covariance_matrix).max() < 1 + 1e-9
    assert (q.variance > 0).all()
    diagonal = fit(model, batch, Laplace(N, D, "diagonal"), steps=40)
    assert (diagonal.distribution.variance <= q.variance + 1e-9).all(), "a slice is no wider than a shadow"


def test_is_a_point_until_it_is_finished():
    guide = Laplace(2, 3)
    state = {"loc": torch.randn(4, 2, 3)}
    assert guide.scored_distribution(state) is None
    assert torch.equal(guide.distribution(state).sample(), state["loc"])


def test_refuses_what_would_not_fit_in_memory():
    with pytest.raises(UserError, match=r"33 x 32 = 1056 dimensions; at most 1024: use covariance = 'diagonal'"):
        Laplace(33, 32)
    Laplace(33, 32, "diagonal")
