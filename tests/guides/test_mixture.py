"""Mixtures: density and moments, and draws whose gradients are right in expectation for every parameter."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import tiny_batch
from torch import distributions
from torch.distributions import Independent, MixtureSameFamily, Normal

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Mixture
from pyro_ltm.guides.mixture import BLOCK, DiagonalMixture
from pyro_ltm.noise import rsample_from


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def parameters(thoughts, dim, components=3, size=1, apart=1.0):
    """Logits, means and scales with leading dimension `size`, all alike."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).expand(size, *shape).clone().requires_grad_()

    logits, loc, log_scale = (
        normal(components),
        normal(components, thoughts, dim),
        normal(components, thoughts, dim),
    )
    return [logits, (apart * loc).detach().requires_grad_(), (0.3 * log_scale).exp().detach().requires_grad_()]


def torch_mixture(logits, loc, scale):
    return MixtureSameFamily(distributions.Categorical(logits=logits), Independent(Normal(loc, scale), 2))


def test_density_and_moments_are_those_of_torch():
    given = parameters(2, 3, size=2)
    q, wanted = DiagonalMixture(*given), torch_mixture(*given)
    z = 2 * torch.randn(7, 2, 2, 3)
    torch.testing.assert_close(q.log_prob(z), wanted.log_prob(z))
    torch.testing.assert_close(q.expand((7, 2)).log_prob(z), wanted.log_prob(z))
    torch.testing.assert_close(q.mean, wanted.mean)
    torch.testing.assert_close(q.variance, wanted.variance)


def test_one_normal_picks_the_component_with_its_weight():
    logits, loc, scale = parameters(1, 1)
    q = DiagonalMixture(logits, loc + 100 * torch.arange(3.0).view(1, 3, 1, 1), scale).expand((20_000,))
    component = (q.rsample().detach() / 100).round().flatten()
    weights = logits.detach().softmax(-1)[0]
    for index, weight in enumerate(weights):
        assert abs((component == index).double().mean() - weight) < 4 * (weight * (1 - weight) / 20_000) ** 0.5


def conditional_levels(z, logits, loc, scale):
    """P(z_d <= its value | z_<d) of one point [P], dimension by dimension."""
    levels, posterior = [], logits.log_softmax(-1)
    for d in range(len(z)):
        each = Normal(loc[:, d], scale[:, d])
        levels.append((posterior.softmax(-1) * each.cdf(z[d])).sum())
        posterior = posterior + each.log_prob(z[d])
    return torch.stack(levels)


def solved(levels, logits, loc, scale):
    """The point [P] that has these levels, by bisection."""
    z = []
    for d in range(len(levels)):
        low, high = torch.tensor(-50.0), torch.tensor(50.0)
        for _ in range(80):
            middle = (low + high) / 2
            level = conditional_levels(torch.stack([*z, middle]), logits, loc, scale)[d]
            low, high = (middle, high) if level < levels[d] else (low, middle)
        z.append((low + high) / 2)
    return torch.stack(z)


@torch.no_grad()
def test_a_draw_moves_so_that_its_levels_stay():
    """Along a direction of all parameters at once: the derivative against a point found anew by bisection."""
    given = parameters(1, 3)
    with torch.enable_grad():
        z = DiagonalMixture(*given).rsample()[0, 0]
        jacobian = [torch.autograd.grad(value, given, retain_graph=True) for value in z]
    flat = [given[0][0], *(value[0, :, 0] for value in given[1:])]
    levels, step = conditional_levels(z, *flat), 1e-5
    direction = [torch.randn_like(value) for value in flat]
    shifted = [
        solved(levels, *(value + sign * step * along for value, along in zip(flat, direction, strict=True)))
        for sign in (1, -1)
    ]
    numeric = (shifted[0] - shifted[1]) / (2 * step)
    exact = [
        sum((g.flatten() * along.flatten()).sum() for g, along in zip(row, direction, strict=True)) for row in jacobian
    ]
    # Central differences: the square of the step, and bisection's rounding over the step.
    torch.testing.assert_close(torch.stack(exact), numeric, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("size", [1, BLOCK, 2 * BLOCK + 7])
def test_blocks_solve_the_whole_system(size):
    """-(dS/dz)^-1 dS, written out with dense derivatives of the levels, for dimensions in one block and in three."""
    given = parameters(1, size, components=2, apart=0.3)
    q = DiagonalMixture(*given)
    z = q.rsample()
    weights = torch.randn_like(z)
    got = torch.autograd.grad((weights * z).sum(), given)
    flat = [given[0][0], *(value[0, :, 0] for value in given[1:])]
    point = z.detach()[0, 0]
    slopes = torch.autograd.functional.jacobian(lambda z: conditional_levels(z, *flat), point, vectorize=True)
    back = torch.linalg.solve(slopes.T, weights[0, 0])
    wanted = torch.autograd.grad((-back * conditional_levels(point, *flat)).sum(), given)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


MOMENTS = {
    "mean": lambda z: z.sum(-1),
    "a weighted mean": lambda z: z @ torch.tensor([1.0, -2.0, 0.5]),
    "square": lambda z: z.square() @ torch.tensor([1.0, 0.5, 2.0]),
    "product": lambda z: z[..., 0] * z[..., 1] + 2 * z[..., 1] * z[..., 2] - z[..., 0] * z[..., 2],
}


def exact_moment(name, logits, loc, scale):
    """E[f(z)] in closed form from means and second moments."""
    weight, loc, variance = logits.softmax(-1), loc.squeeze(-2), scale.squeeze(-2).square()
    if "mean" in name:
        each = MOMENTS[name](loc)
    else:
        each = MOMENTS[name](loc) + (variance @ torch.tensor([1.0, 0.5, 2.0]) if name == "square" else 0)
    return (weight * each).sum(-1)


@pytest.mark.parametrize("name", MOMENTS)
def test_gradients_of_moments_are_unbiased(name):
    """Each draw has parameters of its own, so that each gradient is seen by itself."""
    draws = 40_000
    given = parameters(1, 3, size=draws)
    z = DiagonalMixture(*given).rsample().squeeze(-2)
    got = torch.autograd.grad(MOMENTS[name](z).sum(), given)
    one = parameters(1, 3)
    wanted = torch.autograd.grad(exact_moment(name, *one).sum(), one, materialize_grads=True)
    for kind, a, b in zip(("logits", "loc", "scale"), got, wanted, strict=True):
        error = a.std(0) / draws**0.5
        # Four functions of 21 parameters.
        assert ((a.mean(0) - b[0]).abs() < 4.5 * error + 1e-12).all(), kind
        assert error.max() < 0.05, "the test says something: gradients are of size one"


def test_gradient_of_the_entropy_is_unbiased():
    """-log q at q's own draws: the density moves with the draw, and its own score has the mean zero."""
    draws = 40_000
    given = parameters(1, 2, components=2, size=draws)
    q = DiagonalMixture(*given)
    got = torch.autograd.grad(-q.log_prob(q.rsample()).sum(), given)
    one = [value[:1].detach().requires_grad_() for value in given]
    # By quadrature on a grid, to far below the standard error.
    axis = torch.linspace(-9, 9, 361)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    log_density = torch_mixture(*one).log_prob(grid)
    entropy = -(log_density.exp() * log_density).sum() * (axis[1] - axis[0]) ** 2
    wanted = torch.autograd.grad(entropy, one)
    for a, b in zip(got, wanted, strict=True):
        error = a.std(0) / draws**0.5
        assert ((a.mean(0) - b[0]).abs() < 4.5 * error + 1e-6).all()
        assert error.max() < 0.02


def test_many_dimensions_and_single_precision():
    """512 dimensions in float32: finite gradients, those of double precision up to rounding."""
    given = parameters(8, 64, components=4, apart=0.2)
    normals = torch.randn(1, 513)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        own = [value.detach().to(dtype).requires_grad_() for value in given]
        z = rsample_from(DiagonalMixture(*own), lambda shape, dtype=dtype: normals.to(dtype).reshape(shape))
        assert z.dtype == dtype
        gradients.append(torch.autograd.grad(z.sin().sum(), own))
    for double, single in zip(*gradients, strict=True):
        assert single.isfinite().all()
        # The parameters were rounded, and 512 dimensions pass it on to one another.
        torch.testing.assert_close(single.double(), double, atol=1e-3 * float(double.abs().max()), rtol=0)


def test_there_is_no_second_derivative():
    given = parameters(1, 2)
    z = DiagonalMixture(*given).rsample()
    (gradient, *_) = torch.autograd.grad(z.square().sum(), given, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_first_means_lie_apart_by_the_spread_whatever_the_size():
    for thoughts, dim in ((2, 4), (16, 64)):
        loc = Mixture(thoughts, dim, spread=2.0).init(tiny_batch(200))["loc"]
        squares = loc.square().sum((-2, -1)).flatten()
        assert abs(squares.mean() - 4) < 4 * squares.std() / len(squares) ** 0.5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"components": 1}, "components = 1: at least 2.*mean-field"),
        ({"spread": 0.0}, r"spread = 0\.0"),
        ({"components": 200}, "fewer components"),
    ],
)
def test_refuses_options_out_of_range(options, says):
    with pytest.raises(UserError, match=says):
        Mixture(24, 512, **options)
