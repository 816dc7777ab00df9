"""The Gaussian families against dense matrices: densities, moments, KL, natural gradients; and what they refuse."""

from __future__ import annotations

import pytest
import torch
from helpers.linear_gaussian import dense_normal
from helpers.tiny import tiny_batch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import GUIDES, FullRank, Kronecker, Layered, LowRank
from pyro_ltm.guides.gaussian import OverThoughts, entry_scale
from pyro_ltm.noise import Noise, draw, rsample_from
from pyro_ltm.priors import Gaussian

B, N, D = 2, 6, 2
FAMILIES = [
    "mean-field",
    "low-rank:1",
    "low-rank:5",
    "low-rank:12",
    "full-rank",
    "full-rank:all",
    "kronecker",
    "layered:layers=1",
    "layered:layers=3",
    "layered:layers=6",
]


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def build(name):
    return GUIDES.build(Component(name=name), thoughts=N, dim=D, vocab_size=30, max_length=12)


def elsewhere(guide, size=B):
    generator = torch.Generator().manual_seed(3)
    return {
        name: value + 0.4 * torch.randn(value.shape, generator=generator)
        for name, value in guide.init(tiny_batch(size)).items()
    }


@pytest.fixture(params=FAMILIES)
def guide(request):
    return build(request.param)


@pytest.fixture
def state(guide):
    return elsewhere(guide)


def test_density_and_moments_are_those_of_its_draws(guide, state):
    q = guide.distribution(state)
    dense = dense_normal(q)
    torch.testing.assert_close(q.mean.flatten(-2), dense.mean)
    torch.testing.assert_close(q.variance.flatten(-2), dense.variance)
    torch.testing.assert_close(q.entropy(), dense.entropy())
    z = 2 * torch.randn(7, B, N, D)
    torch.testing.assert_close(q.log_prob(z), dense.log_prob(z.flatten(-2)))
    wide = q.expand((7, B))
    torch.testing.assert_close(wide.log_prob(z), dense.log_prob(z.flatten(-2)))
    torch.testing.assert_close(wide.variance, q.variance.expand(7, B, N, D))
    torch.testing.assert_close(wide.entropy(), q.entropy().expand(7, B))


def test_draws_from_the_global_generator_follow_it_too(guide, state):
    q, draws = guide.distribution(state), 4000
    z = q.sample((draws,)).flatten(-2)
    dense = dense_normal(q)
    whitened = torch.linalg.solve_triangular(dense.scale_tril, (z - dense.mean).unsqueeze(-1), upper=False).squeeze(-1)
    products = whitened.unsqueeze(-1) * whitened.unsqueeze(-2)
    error = products.std(0) / draws**0.5
    # Each of 2 x 144 products has the mean 0 or 1.
    assert ((products.mean(0) - torch.eye(N * D)).abs() < 4.5 * error).all()
    assert (whitened.mean(0).abs() < 4.5 / draws**0.5).all()


def test_kl_is_that_of_the_dense_matrices(guide, state):
    q, prior = guide.distribution(state), Gaussian(N, D)()
    dense = kl_divergence(dense_normal(q), MultivariateNormal(torch.zeros(N * D), torch.eye(N * D)))
    torch.testing.assert_close(kl_divergence(q, prior), dense)


def test_kl_to_a_prior_of_another_place_and_width():
    q = build("full-rank:all").distribution(elsewhere(build("full-rank:all")))
    loc, scale = torch.randn(N, D), torch.rand(N, D) + 0.5
    prior = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 2)
    dense = kl_divergence(dense_normal(q), MultivariateNormal(loc.flatten(), scale.flatten().square().diag()))
    torch.testing.assert_close(kl_divergence(q, prior), dense)


@pytest.mark.parametrize("other", ["laplace", "rows"])
def test_kl_to_anything_else_has_no_closed_form(other):
    q = build("kronecker").distribution(elsewhere(build("kronecker")))
    each = torch.distributions.Laplace(torch.zeros(N, D), 1.0)
    rows = torch.distributions.Normal(torch.zeros(B, N, D), 1.0)
    prior = torch.distributions.Independent(*((each, 2) if other == "laplace" else (rows, 1)))
    with pytest.raises(NotImplementedError, match="independent Normals"):
        kl_divergence(q, prior)


@pytest.mark.parametrize("name", ["full-rank:all", "low-rank", "kronecker", "layered:layers=2"])
def test_particles_do_not_copy_matrices(name):
    """A draw of many particles needs memory for its draws, and not for a covariance each."""
    guide = GUIDES.build(Component(name=name), thoughts=4, dim=16)
    state = {key: value.requires_grad_() for key, value in guide.init(tiny_batch(1)).items()}
    particles, sizes = 50, []
    pack = sizes_of(sizes)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        wide = guide.distribution(state).expand((particles, 1))
        z = draw(wide, Noise(torch.arange(1), seed=0))
        wide.log_prob(z.detach())
    numbers = 4 * 16
    # The particles and their products with a factor: a few times the draws; one matrix for each would be 64 times.
    assert max(sizes) < 4 * particles * numbers


def sizes_of(sizes):
    def pack(tensor):
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    return pack


WITH_NATURAL_GRADIENT = [name for name in FAMILIES if build(name).has_natural_gradient]


def test_every_family_that_claims_a_natural_gradient_is_tried():
    claims = {name for name, kind in GUIDES.items() if kind.has_natural_gradient} - {"amortized", "semi-amortized"}
    assert claims == {name.split(":")[0] for name in WITH_NATURAL_GRADIENT}


@pytest.mark.parametrize("name", WITH_NATURAL_GRADIENT)
def test_natural_gradient_is_the_inverse_fisher_information_times_the_gradient(name):
    """The Fisher information is the Hessian of KL(q || q') at q' = q, here of dense matrices by autograd."""
    guide = build(name)
    state = elsewhere(guide, size=1)
    shapes = {key: value.shape for key, value in state.items()}
    sizes = [value.numel() for value in state.values()]

    def unpacked(flat):
        return {key: part.view(shapes[key]) for key, part in zip(shapes, flat.split(sizes), strict=True)}

    here = torch.cat([value.flatten() for value in state.values()])
    fixed = dense_normal(guide.distribution(state))

    def divergence(flat):
        return kl_divergence(fixed, dense_normal(guide.distribution(unpacked(flat)))).sum()

    fisher = torch.autograd.functional.hessian(divergence, here)
    # Any gradient that a function of q can have: none along directions that leave q as it is.
    gradient = fisher @ torch.randn(len(here))
    natural = guide.natural_gradient(state, unpacked(gradient))
    assert {key: value.shape for key, value in natural.items()} == shapes
    flat = torch.cat([natural[key].flatten() for key in shapes])
    # Double precision, through a Hessian with a condition number of some hundreds.
    torch.testing.assert_close(fisher @ flat, gradient, atol=1e-8, rtol=1e-8)
    if not isinstance(guide, Kronecker):
        torch.testing.assert_close(flat, torch.linalg.solve(fisher, gradient), atol=1e-8, rtol=1e-8)


def test_kronecker_shares_a_step_in_scale_evenly():
    """A times 2 and B / 2 are the same q: of all steps that move q alike, A and B get the same log determinant."""
    guide = build("kronecker")
    state = {key: value.requires_grad_() for key, value in elsewhere(guide).items()}
    entropy = guide.distribution(state).entropy().sum()
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    used = torch.autograd.grad(entropy, list(state.values()), allow_unused=True)
    gradients = {key: zeros[key] if gradient is None else gradient for key, gradient in zip(state, used, strict=True)}
    step = guide.natural_gradient({key: value.detach() for key, value in state.items()}, gradients)
    rows, columns = (
        step[f"{side}_log_variance"].sum(-1) / repeats**0.5 for side, repeats in (("row", D), ("column", N))
    )
    torch.testing.assert_close(rows, columns)
    assert (rows.abs() > 0.01).all()


def test_full_rank_knows_thoughts_by_themselves_only_in_blocks_of_one():
    assert FullRank(N, D).has_kl_by_thought
    assert not FullRank(N, D, block="all").has_kl_by_thought
    with pytest.raises(NotImplementedError):
        build("full-rank:all").kl_by_thought(elsewhere(build("full-rank:all")), Gaussian(N, D)())


def test_layers_lean_on_those_before_and_only_on_those():
    """z_l = m_l + sum_{j<l} W_lj (z_j - m_j) + s_l eps_l, written out."""
    guide = Layered(N, D, layers=3)
    state = elsewhere(guide)
    eps = torch.randn(B, N * D)
    z = rsample_from(guide.distribution(state), lambda shape: eps.reshape(shape)).flatten(1)
    loc, scale = (value.flatten(1).chunk(3, dim=1) for value in (state["loc"], (state["log_variance"] / 2).exp()))
    layers, wanted = eps.chunk(3, dim=1), []
    pairs = [(1, 0), (2, 0), (2, 1)]
    for layer in range(3):
        value = loc[layer] + scale[layer] * layers[layer]
        for place, (later, earlier) in enumerate(pairs):
            if later == layer:
                away = (wanted[earlier] - loc[earlier]).unsqueeze(-1)
                value = value + (state["weight"][:, place] / entry_scale(N * D) @ away).squeeze(-1)
        wanted.append(value)
    torch.testing.assert_close(z, torch.cat(wanted, dim=1))


def test_one_layer_is_mean_field():
    guide, plain = Layered(N, D), build("mean-field")
    state = elsewhere(guide)
    assert set(state) == {"loc", "log_variance"}
    same = plain.distribution({"loc": state["loc"], "log_variance": state["log_variance"]})
    z = torch.randn(B, N, D)
    torch.testing.assert_close(guide.distribution(state).log_prob(z), same.log_prob(z))


def test_single_precision_finds_no_kl_where_there_is_none():
    """The prior itself: constants of thousands of nats must not leave their rounding behind."""
    torch.set_default_dtype(torch.float32)
    guide = GUIDES.build(Component(name="kronecker"), thoughts=24, dim=256)
    q = guide.distribution(guide.init(tiny_batch(B)))
    # One rounding of the entropy of 6144 standard normals.
    entropy = float(q.entropy()[0])
    assert kl_divergence(q, Gaussian(24, 256)()).abs().max() <= entropy * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("low-rank", {"rank": 0}, "rank = 0: from 1 to 12"),
        ("low-rank", {"rank": 13}, "rank = 13: from 1 to 12"),
        ("low-rank", {"init_factor": 0.0}, r"init_factor = 0\.0"),
        ("full-rank", {"block": "row"}, "block = 'row': choose from thought, all"),
        ("layered", {"layers": 4}, "layers = 4.*divisor of the 6"),
        ("layered", {"layers": 0}, "layers = 0"),
    ],
)
def test_refuses_options_out_of_range(name, options, says):
    with pytest.raises(UserError, match=says):
        GUIDES.build(Component(name=name, options=options), thoughts=N, dim=D)


@pytest.mark.parametrize(
    ("build_it", "instead"),
    [
        (lambda: FullRank(24, 512, block="all"), "block = 'thought'"),
        (lambda: FullRank(24, 1024), "low-rank or kronecker"),
        (lambda: Kronecker(2, 4096), "low-rank or mean-field"),
        (lambda: Layered(24, 512, layers=6), "low-rank or kronecker"),
        (lambda: LowRank(24, 512, rank=1000), "smaller rank"),
    ],
)
def test_refuses_what_no_memory_holds(build_it, instead):
    with pytest.raises(UserError, match=f"numbers for each sequence, at most 4,194,304 go: choose.*{instead}"):
        build_it()


def test_what_is_not_refused_is_what_was_counted():
    """The sizes in the messages and docstrings are those of the state."""
    assert sum(value.numel() for value in FullRank(3, 5).init(tiny_batch(1)).values()) == 3 * 5 * 8 // 2
    assert sum(value.numel() for value in FullRank(3, 5, "all").init(tiny_batch(1)).values()) == 15 * 18 // 2
    assert sum(value.numel() for value in Layered(4, 3, 2).init(tiny_batch(1)).values()) == 2 * 12 + 12**2 // 4
    assert sum(value.numel() for value in Kronecker(3, 5).init(tiny_batch(1)).values()) == 15 + 6 + 15
    assert sum(value.numel() for value in LowRank(3, 5, 2).init(tiny_batch(1)).values()) == 4 * 15


def test_the_wrapper_keeps_the_order_of_its_numbers():
    base = MultivariateNormal(torch.arange(6.0).expand(B, 6), torch.eye(6))
    assert torch.equal(OverThoughts(base, (3, 2)).mean[0], torch.arange(6.0).view(3, 2))
