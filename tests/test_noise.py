"""Noise keyed by sequence: each sequence's stream is its own, mirrored in pairs or repeated where that is asked for."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_ltm.noise import KINDS, Noise, draw, fold, rsample_from

IDS = torch.tensor([4, 9, 2])
SHAPE = torch.Size([3, 5])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_does_not_know_its_batch(kind):
    whole, alone = Noise(IDS, seed=1, kind=kind), Noise(IDS[1:2], seed=1, kind=kind)
    for particles in ((), (2,), (3,), (), ()):
        shape = torch.Size([*particles, 3, 5])
        drawn = whole.normal(shape, event_dims=1)
        assert drawn.shape == shape
        assert torch.equal(drawn[..., 1:2, :], alone.normal(torch.Size([*particles, 1, 5]), event_dims=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drawn", [1, 2])
def test_a_part_goes_on_where_the_whole_stood(kind, drawn):
    rows = torch.tensor([2, 0])
    whole, other = Noise(IDS, seed=1, kind=kind), Noise(IDS, seed=1, kind=kind)
    for stream in (whole, other):
        for _ in range(drawn):
            stream.normal(SHAPE, event_dims=1)
    part = other.select(rows)
    for _ in range(3):
        expected = whole.normal(SHAPE, event_dims=1)[rows]
        assert torch.equal(part.normal(torch.Size([2, 5]), event_dims=1), expected)


def test_mirrored_particles():
    stream = Noise(IDS, seed=0, kind="antithetic")
    four = stream.normal(torch.Size([4, 3, 5]), event_dims=1)
    assert torch.equal(four[0], -four[1])
    assert torch.equal(four[2], -four[3])
    assert not torch.equal(four[0], four[2])
    three = stream.normal(torch.Size([3, 3, 5]), event_dims=1)
    assert torch.equal(three[0], -three[1])
    assert not torch.equal(three[2].abs(), three[0].abs())
    single = [stream.normal(SHAPE, event_dims=1) for _ in range(4)]
    assert torch.equal(single[0], -single[1])
    assert torch.equal(single[2], -single[3])
    assert not torch.equal(single[0], single[2])
    # Each draw by itself is standard normal still.
    many = Noise(IDS, seed=0, kind="antithetic").normal(torch.Size([4000, 3, 5]), event_dims=1)
    assert ((many.square().mean(0) - 1).abs() < 5 * (2 / 2000) ** 0.5).all()
    assert (many.mean(0).abs() < 1e-6).all()


def test_fixed_noise_repeats_each_draw_and_fresh_noise_none():
    fixed, fresh = Noise(IDS, seed=0, kind="fixed"), Noise(IDS, seed=0)
    first = fresh.normal(SHAPE, event_dims=1)
    assert torch.equal(fixed.normal(SHAPE, event_dims=1), first)
    fixed.normal(torch.Size([3, 2, 2]), event_dims=2)
    assert torch.equal(fixed.normal(SHAPE, event_dims=1), first)
    assert not torch.equal(fresh.normal(SHAPE, event_dims=1), first)


def test_refuses_a_shape_for_another_number_of_sequences():
    with pytest.raises(ValueError, match="noise for 3 sequences, asked for 5"):
        Noise(IDS, seed=0).normal(torch.Size([5, 3]), event_dims=1)


def test_a_distribution_without_a_rule_says_so():
    with pytest.raises(NotImplementedError, match=r"Gamma.*rsample_from\.register"):
        draw(dist.Gamma(torch.ones(3, 2), 1.0).to_event(1), Noise(IDS, seed=0))
    normals = torch.randn(3, 2)
    q = dist.Normal(torch.ones(3, 2), 2.0).to_event(1)
    assert torch.equal(rsample_from(q, lambda shape: normals), 1 + 2 * normals)


def test_a_seed_is_the_same_on_every_machine():
    assert fold(0, "weights") == fold(0, "weights") != fold(0, "weight")
    assert 0 <= fold(1, 2, 3) < 1 << 63
    assert fold(7, "fit") == 3206906154198279663


def test_draws_of_a_mixture_are_its_own():
    """Its mean and second moment within five standard errors; nothing flows back through a choice of components."""
    weights, loc = torch.tensor([0.2, 0.8]), torch.tensor([-2.0, 1.0]).requires_grad_()
    each = dist.Normal(loc.view(2, 1, 1).expand(2, 2, 3), 0.5).to_event(2)
    mixture = dist.MixtureSameFamily(dist.Categorical(weights), each)
    count = 4000
    drawn = draw(mixture.expand(torch.Size([count])), Noise(torch.arange(count), seed=0))
    assert drawn.shape == (count, 2, 3)
    assert not drawn.requires_grad
    first = drawn[:, 0, 0]
    for moment, expected in ((first, 0.4), (first.square(), 0.2 * 4.25 + 0.8 * 1.25)):
        assert abs(float(moment.mean()) - expected) < 5 * float(moment.std()) / count**0.5
    assert ((drawn[:, 0, 0] < -0.5) == (drawn[:, 1, 2] < -0.5)).float().mean() > 0.98, "one component a draw"
    alone = draw(mixture.expand(torch.Size([1])), Noise(torch.tensor([7]), seed=0))
    torch.testing.assert_close(alone[0], drawn[7])
