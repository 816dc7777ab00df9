"""What thoughts carry, where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny import D, L, N, T, telling_model, tiny_batch, tiny_config, tiny_model

from pyro_ltm.config import FastConfig
from pyro_ltm.errors import UserError
from pyro_ltm.evaluation.diagnostics import Thoughts, diagnose, mutual_information
from pyro_ltm.evaluation.probes import between, linear_probe, nearest, principal_components
from pyro_ltm.guides import LowRank, MeanField
from pyro_ltm.inference import Adam, Parts, Posterior
from pyro_ltm.model import TokenSequence
from pyro_ltm.noise import Noise
from pyro_ltm.objectives import AnalyticELBO


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def parts_of(model, guide=None) -> Parts:
    return Parts(model, guide or MeanField(N, D), AnalyticELBO(), Adam(), FastConfig(steps=6))


def thoughts_with(model, batch, loc, log_variance, seed=0) -> Thoughts:
    """Posteriors that we choose."""
    guide = MeanField(N, D)
    state = {"loc": loc, "log_variance": log_variance}
    posterior = Posterior(guide, state, batch.ids, Noise(batch.ids, seed=1), torch.zeros(0, batch.size))
    return Thoughts(parts_of(model, guide), [batch], [posterior], seed)


def test_rates_and_their_parts():
    model, batch = telling_model(5)
    thoughts = Thoughts.fit(parts_of(model), [batch.select(torch.arange(3)), batch.select(torch.arange(3, 5))])
    found = diagnose(thoughts)
    kl = torch.distributions.kl_divergence
    prior = model.prior()
    exact = torch.cat([kl(p.distribution, prior.expand([len(p.ids)])) for p in thoughts.posteriors])
    assert found.rate.mean == pytest.approx(exact.mean().item())
    assert found.rate.stderr == pytest.approx(exact.std().item() / math.sqrt(5))
    assert sum(one.mean for one in found.rate_by_thought) == pytest.approx(found.rate.mean)
    assert sum(one.mean for one in found.rate_by_layer) == pytest.approx(found.rate.mean)
    assert len(found.rate_by_layer) == L
    assert found.marginal_kl == pytest.approx(found.rate.mean - found.mutual_information.mean)


def test_families_without_parts_say_so():
    model, batch = telling_model(3)
    found = diagnose(Thoughts.fit(parts_of(model, LowRank(N, D)), [batch]))
    assert found.rate_by_thought is None
    assert found.rate_by_layer is None
    assert found.rate.mean > 0


def test_mutual_information_of_equal_posteriors_is_none_and_of_far_ones_the_ceiling():
    model, batch = tiny_model(), tiny_batch(16)
    same = thoughts_with(model, batch, torch.ones(16, N, D), torch.zeros(16, N, D))
    assert torch.allclose(mutual_information(same), torch.zeros(16), atol=1e-9)
    far = torch.randn(16, N, D, generator=torch.Generator().manual_seed(0)) * 50
    apart = thoughts_with(model, batch, far, torch.zeros(16, N, D))
    assert torch.allclose(mutual_information(apart), torch.full((16,), math.log(16)), atol=1e-9)
    found = diagnose(apart)
    assert found.ceiling == pytest.approx(math.log(16))
    assert found.active["0.01"] == [1.0, 1.0]
    assert diagnose(same).active["0.01"] == [0.0, 0.0]


def test_mutual_information_of_a_known_channel():
    """Means N(0, 1) in one dimension, variance s^2: 1/2 log(1 + 1/s^2) nats, up to what few sequences allow."""
    size, variance = 400, 0.5
    model, batch = tiny_model(), tiny_batch(size)
    loc = torch.zeros(size, N, D)
    loc[:, 0, 0] = torch.randn(size, generator=torch.Generator().manual_seed(3))
    thoughts = thoughts_with(model, batch, loc, torch.full((size, N, D), math.log(variance)))
    values = mutual_information(thoughts)
    assert values.mean().item() == pytest.approx(
        0.5 * math.log(1 + 1 / variance), abs=4 * values.std().item() / size**0.5
    )


def test_distortions_are_the_decoders_own():
    model, batch = telling_model(4)
    thoughts = thoughts_with(model, batch, torch.randn(4, N, D), torch.full((4, N, D), -40.0))
    found = diagnose(thoughts)
    z = thoughts.means

    def nats(z):
        return -TokenSequence(model.decoder, z, batch).log_prob(batch.targets).sum().item() / (4 * T)

    assert found.distortion["q"].mean == pytest.approx(nats(z), abs=1e-6)
    assert found.distortion["zero"].mean == pytest.approx(nats(torch.zeros_like(z)), abs=1e-9)
    assert found.distortion["shuffled"].mean == pytest.approx(nats(z.roll(1, 0)), abs=1e-6)
    # Progressive reconstruction ends with all thoughts at their means, from either side.
    for rows in (found.by_layer, found.by_layer_down):
        assert [row.layers for row in rows] == [0, 1, 2]
        assert rows[-1].nats_per_token == pytest.approx(nats(z), abs=1e-6)
    assert found.by_layer[0].nats_per_token == found.by_layer_down[0].nats_per_token
    assert found.by_layer[1].nats_per_token != found.by_layer_down[1].nats_per_token


def test_a_twin_has_no_thoughts():
    model = tiny_model(tiny_config(thoughts=0))
    with pytest.raises(UserError, match="no thoughts"):
        Thoughts.fit(parts_of(model), [tiny_batch(2)])
    with pytest.raises(UserError, match="no sequences"):
        Thoughts.fit(parts_of(tiny_model()), [])


def test_probes_read_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, N, D, generator=generator)
    told = ["high" if value > 0 else "low" for value in features[:, 1, 3].tolist()]
    known = linear_probe(features, told, name="sign", decay=10.0)
    assert known.accuracy > 0.8
    assert abs(known.control - 0.5) < 4 * 0.5 / 200**0.5
    noise = [str(value) for value in torch.randint(3, (200,), generator=generator).tolist()]
    unknown = linear_probe(features, noise, name="noise")
    assert abs(unknown.accuracy - 1 / 3) < 4 * (2 / 9 / 200) ** 0.5 + 0.05
    assert (unknown.classes, unknown.texts) == (3, 200)
    with pytest.raises(UserError, match="at least 10 and 2"):
        linear_probe(features[:5], told[:5], name="few")


def test_principal_components():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator) * torch.tensor([9.0, 4, 1, 0.1, 0.1, 0.1])
    points, shares = principal_components(x)
    assert points.shape == (50, 2)
    covariance = torch.cov(x.T)
    assert shares.tolist() == pytest.approx(
        (torch.linalg.eigvalsh(covariance).flip(0)[:2] / covariance.trace()).tolist()
    )
    assert (points.T @ points)[0, 1].item() == pytest.approx(0, abs=1e-8)


def test_the_way_between_two():
    a, b = torch.randn(2, N, D, generator=torch.Generator().manual_seed(0))
    for spherical in (True, False):
        way = between(a, b, 5, spherical=spherical)
        assert torch.allclose(way[0], a)
        assert torch.allclose(way[-1], b)
    lengths = between(a, b, 5).flatten(1).norm(dim=1)
    assert lengths.min() > 0.9 * min(a.norm(), b.norm()), "on the sphere the middle is no shorter"
    assert between(a, b, 5, spherical=False)[2].norm() < 0.9 * a.norm()
    assert torch.allclose(between(a, a, 3), a.expand(3, N, D))
    assert nearest(b, torch.stack([a, b, a + 5]), 2) == [1, 0]
