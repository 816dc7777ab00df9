"""Student-t distributions: density, draws and moments in closed form, a start as near the prior as they come."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from helpers.tiny import tiny_batch

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import GUIDES, StudentT
from pyro_ltm.noise import Noise, draw, rsample_from

N, D = 2, 3


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def q_of(df, size, loc=0.0, scale=1.0):
    state = {"loc": torch.full((size, N, D), loc), "log_scale": torch.full((size, N, D), math.log(scale))}
    return StudentT(N, D, df=df).distribution(state)


def test_density_of_three_degrees_of_freedom_by_hand():
    """2 / (pi sqrt(3) (1 + t^2 / 3)^2), each dimension by itself."""
    z = 3 * torch.randn(7, 1, N, D)
    t = (z - 0.5) / 2
    wanted = (2 / (math.pi * 3**0.5 * (1 + t.square() / 3).square() * 2)).log().sum((-2, -1))
    torch.testing.assert_close(q_of(3, 1, loc=0.5, scale=2.0).log_prob(z), wanted)


def test_draws_of_three_degrees_of_freedom_follow_their_levels():
    """P(t <= x) = 1/2 + (atan(y) + y / (1 + y^2)) / pi with y = x / sqrt(3)."""
    size = 4000
    y = (draw(q_of(3, size, loc=0.5, scale=2.0), Noise(torch.arange(size), seed=1)) - 0.5) / 2 / 3**0.5
    level = 0.5 + (y.atan() + y / (1 + y.square())) / math.pi
    count = level.numel()
    for tail in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
        assert abs(float((level <= tail).double().mean()) - tail) < 4 * (tail * (1 - tail) / count) ** 0.5
    corners = torch.corrcoef(level.flatten(1).T) - torch.eye(N * D)
    assert corners.abs().max() < 5 / size**0.5, "dimensions draw for themselves"


def test_a_draw_is_a_normal_over_the_root_mean_square_of_others():
    given = torch.randn(4, 1, N, D, 6)
    drawn = rsample_from(q_of(5, 1, loc=1.0, scale=0.5).expand((4, 1)), lambda shape: given.reshape(shape))
    wanted = 1 + 0.5 * given[..., 0] / (given[..., 1:].square().sum(-1) / 5).sqrt()
    torch.testing.assert_close(drawn, wanted)


@pytest.mark.parametrize("df", [16, 64])
def test_moments(df):
    """Var[t] = df / (df - 2), E[t^4] = 3 df^2 / ((df - 2) (df - 4)); their estimates have finite errors from 9 on."""
    size = 4000
    q = q_of(df, size, loc=1.0, scale=0.5)
    t = (draw(q, Noise(torch.arange(size), seed=2)) - 1) / 0.5
    for power, wanted in ((1, 0.0), (2, df / (df - 2)), (3, 0.0), (4, 3 * df**2 / ((df - 2) * (df - 4)))):
        got = t**power
        assert abs(float(got.mean()) - wanted) < 4 * float(got.std()) / got.numel() ** 0.5
    torch.testing.assert_close(q.variance, torch.full((size, N, D), 0.25 * df / (df - 2)))


@pytest.mark.parametrize("df", [3, 8, 64])
def test_starts_with_the_prior_s_mean_and_variance(df):
    guide = StudentT(N, D, df=df)
    start = guide.init(tiny_batch(4))
    q = guide.distribution(start)
    torch.testing.assert_close(q.mean, torch.zeros(4, N, D))
    torch.testing.assert_close(q.variance, torch.ones(4, N, D))
    # No other scale is nearer: KL(q || N(0, 1)) = -H(q) + E[z^2] / 2 + ..., whose slope along log scale is Var - 1.
    entropy = q.base_dist.entropy().sum((-2, -1))
    kl = N * D * 0.5 * math.log(2 * math.pi * math.e) - entropy
    each = {3: 0.19, 8: 0.015, 64: 0.0002}[df]
    assert (kl / (N * D)).tolist() == pytest.approx([each] * 4, rel=0.06), "as the docstring says"


def test_weights_fall_in_the_tails_however_narrow_it_is():
    """log p - log q along one number, for p = N(0, 1) and a q of a fifth of its width."""
    z = torch.linspace(5, 500, 100)
    normal, heavy = dist.Normal(0.0, 0.2), dist.StudentT(8, 0.0, 0.2)
    prior = dist.Normal(0.0, 1.0).log_prob(z)
    assert ((prior - normal.log_prob(z)).diff() > 0).all()
    assert ((prior - heavy.log_prob(z)).diff() < 0).all()


def test_options():
    assert GUIDES.parse("student-t:5") == Component(name="student-t", options={"df": 5})
    assert GUIDES.build(Component(name="student-t"), thoughts=N, dim=D).df == 8
    for df in (2, 65):
        with pytest.raises(UserError, match=f"guide: df = {df}: from 3"):
            StudentT(N, D, df=df)


def test_a_t_of_other_degrees_of_freedom_has_no_draws_from_normals():
    for df in (torch.tensor(2.5), torch.tensor([3.0, 4.0])):
        with pytest.raises(NotImplementedError, match="one whole number"):
            draw(dist.StudentT(df, torch.zeros(3, 2), 1.0).to_event(1), Noise(torch.arange(3), seed=0))
