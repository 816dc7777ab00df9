"""Objectives whose gradient to q flows through the draws alone: by hand, and without noise where q is the posterior."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.closed_forms import log_weight, slope
from helpers.stand_ins import LinearGaussian, NoClosedForm

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide, MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.objectives import (
    IWAE,
    OBJECTIVES,
    Chi,
    DReG,
    Jackknife,
    MonteCarloELBO,
    StickingTheLanding,
    TailAdaptive,
    Terms,
)

K = 5


def ranked(w):
    """1 / (how many are at least as large), over their sum."""
    inverse = torch.stack([1 / sum(other >= one for other in w).double() for one in w])
    return inverse / inverse.sum(0)


# How often each log weight's slope counts in the gradient of what is to be raised.
COUNTS = {
    StickingTheLanding(particles=K): lambda w: torch.full_like(w, 1 / K),
    DReG(particles=K): lambda w: w.softmax(0) ** 2,
    DReG(particles=K, beta=0.0): lambda w: w.softmax(0),
    TailAdaptive(particles=K): ranked,
    Chi(particles=K): lambda w: (2 * w).softmax(0),
    Chi(order=3.5, particles=K): lambda w: 2.5 * (3.5 * w).softmax(0),
}
PATHWISE = ["stl", "dreg", "jackknife", "tail-adaptive", "chi"]


def drawn(objective, model, guide, batch, state, seed=0):
    pyro.set_rng_seed(seed)
    terms = objective.terms(model, guide, batch, state)
    return terms, terms.thoughts.detach()


@pytest.mark.parametrize("objective", COUNTS, ids=lambda objective: f"{type(objective).__name__}-{objective.beta}")
def test_gradients_by_hand(place, objective):
    here = place(widen=0.4)
    terms, z = drawn(objective, *here.arguments)
    q = here.q
    loc, scale = q.mean.detach(), q.stddev.detach()
    with torch.no_grad():
        weights = log_weight(here.model, here.batch, z, loc, scale)
        slopes = slope(here.model, here.batch, z, loc, scale)
        if objective.beta == 0:  # only the likelihood is left
            ratio = log_prior_ratio(z, loc, scale)
            weights, slopes = weights - ratio, slopes + z - (z - loc) / scale.square()
        uphill = COUNTS[objective](weights)[..., None, None] * slopes
    torch.testing.assert_close(objective.log_weight(terms).detach(), weights, atol=1e-10, rtol=0)
    gradients = here.gradients(objective)
    # dz / d loc = 1; dz / d log variance = (z - loc) / 2.
    for got, wanted in zip(gradients, (uphill.sum(0), (uphill * (z - loc) / 2).sum(0)), strict=True):
        torch.testing.assert_close(got, -wanted, atol=1e-10, rtol=1e-10)


def log_prior_ratio(z, loc, scale):
    normal = torch.distributions.Normal
    return (normal(0.0, 1.0).log_prob(z) - normal(loc, scale).log_prob(z)).sum((-2, -1))


class Shared(Guide):
    """An encoder from which the local parameters come, and a scale that all sequences share."""

    learning = "shared"

    def __init__(self, thoughts, dim, length):
        super().__init__(thoughts, dim)
        self.encoder = torch.nn.Linear(length, thoughts * dim)
        self.log_scale = torch.nn.Parameter(torch.full((thoughts, dim), -0.3))

    def init(self, batch):
        return {"loc": self.encoder(batch.targets).unflatten(-1, (self.thoughts, self.dim))}

    def distribution(self, state):
        return dist.Normal(state["loc"], self.log_scale.exp().expand_as(state["loc"])).to_event(2)


@pytest.mark.parametrize(
    "objective", [objective for objective in COUNTS if objective.beta], ids=lambda objective: type(objective).__name__
)
def test_reaches_what_all_sequences_share(objective):
    model = LinearGaussian()
    batch, guide = model.data(3), Shared(2, 2, 8)
    state = guide.init(batch)
    _, z = drawn(objective, model, guide, batch, state)
    loc, scale = state["loc"].detach(), guide.log_scale.exp().detach()
    with torch.no_grad():
        weights = log_weight(model, batch, z, loc, scale)
        uphill = COUNTS[objective](weights)[..., None, None] * slope(model, batch, z, loc, scale)
        to_loc = uphill.sum(0)
    wanted = [
        torch.einsum("bp,bt->pt", to_loc.flatten(1), batch.targets),
        to_loc.flatten(1).sum(0),
        (uphill * (z - loc)).sum((0, 1)),
    ]
    pyro.set_rng_seed(0)
    loss = objective.differentiable_loss(model, guide, batch, state)
    leaves = [guide.encoder.weight, guide.encoder.bias, guide.log_scale]
    for got, expected in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        torch.testing.assert_close(got, -expected, atol=1e-10, rtol=1e-10)
    assert all(parameter.requires_grad for parameter in guide.parameters()), "held still for the moment only"


@pytest.mark.parametrize("name", PATHWISE)
@pytest.mark.parametrize("particles", [2, 7])
def test_no_noise_where_q_is_the_posterior(place, name, particles):
    here = place(shift=0.0, widen=0.0)
    for gradient in here.gradients(OBJECTIVES[name](particles=particles)):
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_the_others_have_noise_there(place, name):
    here = place(shift=0.0, widen=0.0)
    assert all(gradient.abs().min() > 1e-3 for gradient in here.gradients(OBJECTIVES[name](particles=7)))


@pytest.mark.parametrize("name", PATHWISE)
def test_a_graph_that_is_kept_changes_nothing(place, name):
    here = place()
    objective = OBJECTIVES[name](particles=4)
    plain, kept = here.gradients(objective), here.gradients(objective, create_graph=True)
    for one, other in zip(plain, kept, strict=True):
        torch.testing.assert_close(one, other.detach(), atol=1e-12, rtol=1e-12)
    again = torch.autograd.grad(sum(gradient.square().sum() for gradient in kept), here.leaves)
    assert all(gradient.isfinite().all() and (gradient != 0).any() for gradient in again)


@pytest.mark.parametrize("name", PATHWISE)
def test_a_loss_may_be_taken_twice(place, name):
    """And changes nothing in the terms."""
    here = place()
    objective = OBJECTIVES[name](particles=4)
    pyro.set_rng_seed(0)
    terms = objective.terms(*here.arguments)
    first, second = objective.guide_loss(terms), objective.guide_loss(terms)
    assert torch.equal(first, second)
    again = torch.autograd.grad(second.sum(), here.leaves)
    for one, other in zip(here.gradients(objective), again, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        pyro.set_rng_seed(0)
        assert torch.equal(objective.guide_loss(objective.terms(*here.arguments)), first)


@pytest.mark.parametrize(("ours", "plain"), [(DReG, IWAE), (StickingTheLanding, MonteCarloELBO)])
def test_the_decoders_gradient_is_the_plain_one(place, ours, plain):
    here = place()
    gradients = [here.decoder_gradients(kind(particles=6)) for kind in (ours, plain)]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)
    assert torch.equal(here.value(ours(particles=6)), here.value(plain(particles=6)))


def test_the_gradient_of_stl_is_that_of_the_elbo_on_average(place):
    here = place(4000, copies=True, widen=0.4)
    for mine, other in zip(
        here.gradients(StickingTheLanding(), seed=0), here.gradients(MonteCarloELBO(), seed=1), strict=True
    ):
        error = ((mine.var(0) + other.var(0)) / len(mine)).sqrt()
        assert ((mine.mean(0) - other.mean(0)).abs() < 4.5 * error).all()


def test_works_with_any_reparameterized_guide():
    """Also one that claims no closed form; log q is only read at the draw."""
    model = LinearGaussian()
    batch, guide = model.data(3), NoClosedForm(2, 2)
    state = {name: value.requires_grad_() for name, value in guide.init(batch).items()}
    for name in PATHWISE:
        loss = OBJECTIVES[name](particles=3).differentiable_loss(model, guide, batch, state)
        assert all((gradient != 0).all() for gradient in torch.autograd.grad(loss, list(state.values())))


def normal_nodes(count=40):
    """Numbers and weights by which a mean over a standard normal is a sum."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


# Those whose gradient to q has the mean of another's, plainer one.
PLAINER = {
    StickingTheLanding(particles=2): MonteCarloELBO(particles=2),
    DReG(particles=2): IWAE(particles=2),
    DReG(particles=2, beta=0.6): IWAE(particles=2, beta=0.6),
    Jackknife(particles=2): IWAE(particles=2),
}


@pytest.mark.parametrize("mirrored", [False, True], ids=["independent", "mirrored"])
@pytest.mark.parametrize("objective", PLAINER, ids=lambda objective: f"{type(objective).__name__}-{objective.beta}")
def test_the_mean_gradient_is_that_of_the_mean_value_where_it_says_so(objective, mirrored):
    """Of two draws, independent or in a mirrored pair; means over the noise are exact sums."""
    nodes, weights = normal_nodes()
    if mirrored:
        eps = torch.stack([nodes, -nodes])
    else:
        eps, weights = torch.cartesian_prod(nodes, nodes).T, torch.cartesian_prod(weights, weights).prod(1)
    q = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)

    def log_q(z, loc, log_scale):
        return dist.Normal(loc, log_scale.exp()).log_prob(z)

    z = q[0] + q[1].exp() * eps
    terms = Terms(
        log_likelihood=-0.5 * (z - 1).square() - 0.2 * z.sin(),
        log_prior=log_q(z, *torch.zeros(2)),
        log_guide=log_q(z, *q),
        stopped_log_guide=lambda: log_q(z, *q.detach()),
    )
    losses = (PLAINER[objective].guide_loss(terms), objective.guide_loss(terms))
    wanted, got = (torch.autograd.grad((loss * weights).sum(), q, retain_graph=True)[0] for loss in losses)
    agrees = torch.allclose(got, wanted, atol=1e-9, rtol=0)
    assert agrees == (not mirrored or not objective.needs_independent_draws)
    if mirrored and not agrees:
        with pytest.raises(
            UserError, match=r"noise = 'antithetic' with .*use noise = 'fresh', or the objective 'elbo'"
        ):
            FastLoop(MeanField(2, 2), objective, noise="antithetic")


def test_of_one_draw_mirrored_noise_is_no_pair():
    FastLoop(MeanField(2, 2), DReG(particles=1), noise="antithetic")
