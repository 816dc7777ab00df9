"""Flows: the density of any point, against the derivative of the map; and what is shared and what is not."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny import tiny_batch
from torch.distributions import Independent, Normal

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Flow
from pyro_ltm.noise import rsample_from

B, N, D = 2, 3, 3  # nine numbers: halves of four and five


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def bent(depth=3, *, strength=3.0):
    """A flow with large weights, and sequences with contexts far from 0."""
    guide = Flow(N, D, depth=depth, context=4, hidden=8)
    state = {name: torch.randn_like(value) * 0.5 for name, value in guide.init(tiny_batch(B)).items()}
    state["context"] = strength * torch.randn_like(state["context"])
    return guide, state


def test_density_is_that_of_the_map():
    """log q(z) = log N(eps) - log |det dz / d eps|, the determinant of a Jacobian by autograd."""
    guide, state = bent()
    q = guide.distribution(state)
    eps = torch.randn(B, N * D)
    z = rsample_from(q, lambda shape: eps.reshape(shape))
    straight = state["loc"] + (state["log_variance"] / 2).exp() * eps.view(B, N, D)
    assert (z - straight).abs().max() > 0.1, "the couplings bend"
    for row in range(B):
        one = guide.distribution({name: value[row : row + 1] for name, value in state.items()})
        slopes = torch.autograd.functional.jacobian(lambda e, one=one: one.bend(e[None]).flatten(), eps[row])
        wanted = Normal(0.0, 1.0).log_prob(eps[row]).sum() - torch.linalg.slogdet(slopes).logabsdet
        torch.testing.assert_close(q.log_prob(z)[row], wanted)


def test_density_integrates_to_one():
    """Over a plane, by quadrature."""
    guide = Flow(1, 2, depth=2, context=4, hidden=8)
    state = guide.init(tiny_batch(1)) | {"context": 3 * torch.randn(1, 4)}
    axis = torch.linspace(-12, 12, 801)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    total = guide.distribution(state).log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(total - 1) < 1e-3


def test_density_of_own_draws_and_of_others_in_any_shape():
    """A draw remembers nothing: its density is that of an equal number from elsewhere, with every gradient."""
    guide, state = bent()
    leaves = {name: value.requires_grad_() for name, value in state.items()}
    q = guide.distribution(leaves)
    own = q.expand((5, B)).rsample()
    copied = own.detach().clone()
    torch.testing.assert_close(q.expand((5, B)).log_prob(own), q.log_prob(copied))
    torch.testing.assert_close(q.log_prob(own[2]), q.log_prob(copied)[2])
    with torch.no_grad():
        drawn = q.sample()
    for z in (drawn, drawn.clone()):  # the score has a gradient for every parameter
        gradients = torch.autograd.grad(q.log_prob(z).sum(), list(leaves.values()), retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
    moving = drawn.clone().requires_grad_()
    (slope,) = torch.autograd.grad(q.log_prob(moving).sum(), moving)
    assert slope.abs().min() > 0


def test_reparameterized_gradients_are_unbiased():
    """d/d(theta) of E_q[z^2] by draws, against that by the score, which needs no derivative of a draw."""
    guide, state = bent(strength=1.0)
    draws = 20_000
    wide = {name: value[:1].expand(draws, *value.shape[1:]).clone().requires_grad_() for name, value in state.items()}
    by_path = torch.autograd.grad(guide.distribution(wide).rsample().square().sum(), list(wide.values()))
    q = guide.distribution(wide)
    z = q.sample()
    value = z.square().sum((-2, -1))
    # The mean as a baseline: the score's own mean is zero.
    by_score = torch.autograd.grad((q.log_prob(z) * (value - value.mean())).sum(), list(wide.values()))
    for path, score in zip(by_path, by_score, strict=True):
        error = ((path.var(0) + score.var(0)) / draws).sqrt()
        # 22 parameters; taking the mean of the same draws as a baseline biases by one part in their number.
        assert ((path.mean(0) - score.mean(0)).abs() < 4.5 * error).all()


def test_gradients_reach_the_shared_networks_through_draws_and_densities():
    guide, state = bent()
    z = guide.distribution(state).rsample()
    for loss in (z.sin().sum(), guide.distribution(state).log_prob(z.detach()).sum()):
        gradients = torch.autograd.grad(loss, list(guide.parameters()), retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_contains_mean_field_whatever_the_networks():
    """At the context 0 nothing is bent, and yet the context has a gradient."""
    guide, state = bent()
    state["context"] = torch.zeros_like(state["context"]).requires_grad_()
    z = torch.randn(B, N, D)
    q = guide.distribution(state)
    plain = Independent(Normal(state["loc"], (state["log_variance"] / 2).exp()), 2)
    torch.testing.assert_close(q.log_prob(z), plain.log_prob(z))
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum(), state["context"])
    assert gradient.abs().min() > 0


def test_no_network_makes_a_density_overflow():
    guide, state = bent()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(1e6)
    q = guide.distribution(state)
    z = q.sample()
    assert z.isfinite().all()
    assert q.log_prob(z).isfinite().all()


def test_sizes_and_devices_without_memory():
    """`check_config` builds everything on the device `meta`."""
    with torch.device("meta"):
        guide = Flow(24, 512)
    assert all(parameter.is_meta for parameter in guide.parameters())
    numbers = sum(value.numel() for value in Flow(N, D, context=5).init(tiny_batch(1)).values())
    assert numbers == 2 * math.prod((N, D)) + 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 0}, "depth = 0: from 1 to 64"),
        ({"context": 0}, "context = 0: from 1"),
        ({"hidden": 1 << 20}, "hidden = 1048576"),
    ],
)
def test_refuses_options_out_of_range(options, says):
    with pytest.raises(UserError, match=says):
        Flow(N, D, **options)


def test_refuses_what_has_no_halves():
    with pytest.raises(UserError, match="two halves"):
        Flow(1, 1)
