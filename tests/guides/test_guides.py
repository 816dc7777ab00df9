"""What every posterior family promises, walked over the registry; and the mean-field family's start."""

from __future__ import annotations

import dataclasses
import inspect

import pyro
import pytest
import torch
from helpers.tiny import D, L, N, T, V, tiny_batch
from pyro import poutine
from torch.distributions import kl_divergence

from pyro_ltm.config import Component
from pyro_ltm.guides import GUIDES, MeanField
from pyro_ltm.noise import Noise, rsample_from
from pyro_ltm.priors import Gaussian
from pyro_ltm.types import frozen

B = 3
STANDARD = Gaussian(N, D)


@pytest.fixture(params=list(GUIDES))
def guide(request):
    torch.set_default_dtype(torch.float64)
    shape = {"thoughts": N, "dim": D, "layers": L, "vocab_size": V, "max_length": T, "seed": 0}
    return GUIDES.build(Component(name=request.param), **shape)


@pytest.fixture
def state(guide):
    """Some way off the start, the same for each test."""
    return elsewhere(guide)


def elsewhere(guide):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        start = guide.init(tiny_batch(B))
    # A covariance whose size grows with the root of the number of its entries stays of one size.
    return {
        name: value + 0.5 / max(1, value[0].numel() / (N * D)) ** 0.5 * torch.randn(value.shape, generator=generator)
        for name, value in start.items()
    }


def test_says_what_it_is(guide):
    for line in dataclasses.astuple(guide.card):
        assert line.strip() == line
        assert "\n" not in line
    options = inspect.signature(type(guide)).parameters
    assert all(options[name].default is not inspect.Parameter.empty for name in guide.arguments)


def test_init_gives_leaves_for_each_sequence(guide):
    batch = tiny_batch(B)
    with frozen(guide):
        start = guide.init(batch)
        again = guide.init(batch)
    for name, value in start.items():
        assert value.shape[0] == B
        assert value.dtype == torch.get_default_dtype()
        assert value.numel()
        assert value.isfinite().all()
        assert not value.requires_grad
        assert torch.equal(value, again[name])
    assert not dict(pyro.get_param_store())


@torch.no_grad()
def test_init_does_not_depend_on_the_batch(guide):
    batch = dataclasses.replace(tiny_batch(B), ids=torch.tensor([7, 1, 4]))
    whole, alone = guide.init(batch), guide.init(batch.select(torch.tensor([2])))
    for name, value in whole.items():
        if "amortized" in guide.learning:  # products of another shape may be summed in another order
            torch.testing.assert_close(value[2:], alone[name])
        else:
            assert torch.equal(value[2:], alone[name])


def test_distribution_has_its_shapes(guide, state):
    q = guide.distribution(state)
    assert (q.batch_shape, q.event_shape) == ((B,), (N, D))
    assert q.has_rsample
    assert q.rsample((2,)).shape == (2, B, N, D)


def test_sequences_have_posteriors_of_their_own(guide, state):
    """Neither who shares the batch nor the number of particles changes a density."""
    q = guide.distribution(state)
    z = q.sample((5,))
    whole = q.expand((5, B)).log_prob(z)
    assert whole.shape == (5, B)
    torch.testing.assert_close(whole, q.log_prob(z))
    rows = torch.tensor([2, 0])
    part = guide.distribution({name: value[rows] for name, value in state.items()})
    torch.testing.assert_close(part.log_prob(z[3, rows]), whole[3, rows])


def test_is_a_program_of_one_site(guide, state):
    batch = tiny_batch(B)
    trace = poutine.trace(guide).get_trace(batch, state)
    assert [n for n, node in trace.nodes.items() if node["type"] == "sample"] == ["sequences", "thoughts"]
    assert trace.nodes["thoughts"]["value"].shape == (B, N, D)
    with pyro.plate("particles", 5, dim=-2):
        assert poutine.trace(guide).get_trace(batch, state).nodes["thoughts"]["value"].shape == (5, B, N, D)


def test_closed_form_kl_is_there_when_claimed_and_right(guide, state):
    q, prior = guide.scored_distribution(state), Gaussian(N, D)()
    if q is None:  # a point, or not fitted yet
        return
    if not guide.has_analytic_kl:
        with pytest.raises(NotImplementedError):
            assert not [kl_divergence(q, prior)], "torch knows this KL: set `has_analytic_kl`"
        return
    exact = kl_divergence(q, prior.expand((B,)))
    assert exact.shape == (B,)
    z = q.sample((4000,))
    ratios = q.log_prob(z) - prior.log_prob(z)
    assert ((ratios.mean(0) - exact).abs() < 4 * ratios.std(0) / 4000**0.5).all()
    torch.testing.assert_close(kl_divergence(q, prior), exact)
    torch.testing.assert_close(kl_divergence(q.expand((5, B)), prior.expand((5, B))), exact.expand(5, B))


def test_kl_by_thought_adds_up(guide, state):
    if not guide.has_kl_by_thought:
        with pytest.raises(NotImplementedError, match=type(guide).__name__):
            guide.kl_by_thought(state, STANDARD())
        return
    by_thought = guide.kl_by_thought(state, STANDARD())
    assert by_thought.shape == (B, N)
    prior = Gaussian(N, D)()
    torch.testing.assert_close(by_thought.sum(-1), kl_divergence(guide.distribution(state), prior))
    # And each is its thought's own: what another thought does is nothing to it.
    moved = dict(state, loc=state["loc"] + torch.nn.functional.one_hot(torch.tensor(1), N)[:, None])
    changed = (guide.kl_by_thought(moved, STANDARD()) != by_thought).any(0)
    assert changed.tolist() == [i == 1 for i in range(N)]


def test_a_misspelt_flag_is_refused():
    with pytest.raises(TypeError, match=r"Odd\.has_analitic_kl: no such flag \(did you mean 'has_analytic_kl'\?\)"):

        class Odd(MeanField):
            has_analitic_kl = True


def test_draws_from_given_noise_follow_the_distribution(guide, state):
    """The noise keyed by sequence goes through a rule of its own: its draws must have q's moments and gradients."""
    draws = 4000
    leaves = {name: value.detach().requires_grad_() for name, value in state.items()}
    noise, asked = Noise(torch.arange(B), seed=1), []

    def normals(shape):
        asked.append(shape)
        return noise.normal(shape, event_dims=len(shape) - 2, dtype=torch.float64)

    z = rsample_from(guide.distribution(leaves).expand((draws, B)), normals)
    assert z.shape == (draws, B, N, D)
    assert len(asked) <= 1, "a rule asks once"
    gradients = torch.autograd.grad(z.square().sum(), list(leaves.values()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    z = z.detach()
    mean, variance, error = moments(guide.distribution(state))
    squares = (z - mean).square()
    # Standard errors over the draws; 192 dimensions, so five of them. A point has none, and rounding.
    for got, wanted, known in ((z, mean, error[0]), (squares, variance, error[1])):
        allowed = 5 * (got.var(0) / draws + known.square()).sqrt()
        assert ((got.mean(0) - wanted).abs() <= allowed + 1e-12).all()


def moments(q):
    """Mean and variance, and their errors: none where they have a closed form."""
    try:
        return q.mean, q.variance, (torch.zeros(()), torch.zeros(()))
    except NotImplementedError:
        count = 20_000
        with torch.no_grad():
            z = q.sample((count,))
        squares = (z - z.mean(0)).square()
        return z.mean(0), squares.mean(0), (z.std(0) / count**0.5, squares.std(0) / count**0.5)


@pytest.mark.parametrize("name", ["full-rank", "kronecker", "layered", "mixture", "flow"])
def test_a_sequence_that_ran_away_takes_no_other_along(name):
    """Its numbers are not finite and its density is no number; the others have theirs, and nothing is raised."""
    guide = GUIDES.build(Component(name=name), thoughts=N, dim=D, layers=L)
    state = elsewhere(guide)
    bad = {key: value.index_fill(0, torch.tensor([1]), torch.nan) for key, value in state.items()}
    z = guide.distribution(state).sample()
    wanted, got = guide.distribution(state).log_prob(z), guide.distribution(bad).log_prob(z)
    assert torch.equal(got.isnan(), torch.tensor([False, True, False]))
    torch.testing.assert_close(got[::2], wanted[::2])
    assert torch.equal(guide.distribution(bad).rsample().isnan().any(-1).any(-1), torch.tensor([False, True, False]))


def test_owns_nothing_that_grows_with_the_data(guide):
    sizes = []
    for size in (2, 50):
        guide.init(tiny_batch(size))
        sizes.append(sum(p.numel() for p in guide.parameters()))
    assert sizes[0] == sizes[1]
    assert bool(sizes[0]) == (guide.learning != "none"), "`learning` says whether the slow steps have something to move"


FARTHEST = {
    "delta": None,
    "laplace": None,
    "low-rank": 2 * 4 * 0.3**4 / 4,
    "mixture": 2 * 0.1**2 / 2,
    "student-t": 0.0153 * N * D,
}
"""Nats from the prior at the start: a point has none to speak of, two families must break a symmetry, and a Student-t
distribution is no Normal.

Columns of a low rank are only nearly orthogonal, and means of a mixture at their distance on average: twice that.
"""


def test_starts_at_the_prior_or_as_near_as_it_says(guide):
    name = next(name for name, kind in GUIDES.items() if kind is type(guide))
    farthest = FARTHEST.get(name, 0.0)
    batch, prior = tiny_batch(B), Gaussian(N, D)().expand((B,))
    with torch.no_grad():
        q = guide.distribution(guide.init(batch))
    if farthest is None:
        assert torch.equal(q.mean, torch.zeros(B, N, D))
        return
    z = q.sample((2000,))
    ratios = (q.log_prob(z) - prior.log_prob(z)).detach()
    # Rounding of some hundred nats in double precision.
    hint = f"start nearer to the prior than {farthest} nats, or give FARTHEST, in this file, {name} and the reason"
    assert (ratios.mean(0) < farthest + 4 * ratios.std(0) / 2000**0.5 + 1e-10).all(), hint
    if not farthest:
        assert ratios.abs().max() < 1e-10, hint
    if guide.has_analytic_kl:
        assert (kl_divergence(q, prior) < farthest + 1e-10).all(), hint


def test_every_shared_weight_learns(guide):
    """Once the sequences have left the start, the bound has a gradient for all that they share."""
    if guide.learning == "none":
        pytest.skip("shares nothing")
    state = guide.init(tiny_batch(B))
    generator = torch.Generator().manual_seed(3)
    moved = {name: value + 0.5 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    z = guide.distribution(moved).rsample()
    (z.square().sum() + (z**3).sum()).backward()
    learnt = {name: parameter.grad is not None for name, parameter in guide.named_parameters()}
    assert all(learnt.values()), learnt


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
