"""What thoughts carry, where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny import D, L, N, T, telling_model, tiny_batch, tiny_config, tiny_model

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import LowRank, MeanField
from pyro_ltm.inference import FAMILIES, FastLoop, Posterior
from pyro_ltm.inference.build import build_guide
from pyro_ltm.model import TokenSequence
from pyro_ltm.noise import Noise
from pyro_ltm.objectives import OBJECTIVES, AnalyticELBO
from pyro_ltm.thoughts.diagnostics import Thoughts, diagnose, mutual_information


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def loop_of(guide=None, objective=None, steps=6) -> FastLoop:
    return FastLoop(guide or MeanField(N, D), objective or AnalyticELBO(), steps=steps)


def thoughts_with(model, batch, loc, log_variance, seed=0) -> Thoughts:
    """Posteriors that we choose."""
    guide = MeanField(N, D)
    state = {"loc": loc, "log_variance": log_variance}
    posterior = Posterior(guide, state, batch.ids, Noise(batch.ids, seed=1), torch.zeros(0, batch.size))
    return Thoughts(model, loop_of(guide, steps=0), [model.precompute(batch)], [posterior], seed)


def test_rates_and_their_parts():
    model, batch = telling_model(5)
    thoughts = Thoughts.fit(model, [batch.select(torch.arange(3)), batch.select(torch.arange(3, 5))], loop_of())
    found = diagnose(thoughts)
    kl = torch.distributions.kl_divergence
    prior = model.prior()
    exact = torch.cat([kl(p.distribution, prior.expand([len(p.ids)])) for p in thoughts.posteriors])
    assert found.rate.mean == pytest.approx(exact.mean().item())
    assert found.rate.stderr == pytest.approx(exact.std().item() / math.sqrt(5))
    assert sum(one.mean for one in found.rate_by_thought) == pytest.approx(found.rate.mean)
    assert sum(one.mean for one in found.rate_by_layer) == pytest.approx(found.rate.mean)
    assert len(found.rate_by_layer) == L
    assert found.marginal_kl.mean == pytest.approx(found.rate.mean - found.mutual_information.mean)


def test_families_without_parts_say_so():
    model, batch = telling_model(3)
    found = diagnose(Thoughts.fit(model, [batch], loop_of(LowRank(N, D))))
    assert found.rate_by_thought is None
    assert found.rate_by_layer is None
    assert found.active["KL > 0.01 nats"] is None
    assert found.rate.mean > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_looked_at(name):
    """By its own posterior, or by a mean-field one where it has no density."""
    model, batch = telling_model(3)
    guide = build_guide(Component(name=name), tiny_config()).double()
    objective = next(kind() for kind in OBJECTIVES.values() if not kind().refusal(guide))
    found = diagnose(Thoughts.fit(model, [batch], loop_of(guide, objective, 2)), particles=2)
    assert found.guide == (type(guide).__name__ if guide.has_density else "MeanField")
    assert (found.sequences, found.tokens, found.particles, found.fast_steps) == (3, 3 * T, 2, 2)
    figures = [found.rate, found.mutual_information, found.marginal_kl, *found.distortion.values()]
    assert all(math.isfinite(one.mean) and math.isfinite(one.stderr) for one in figures)
    assert found.mutual_information.mean <= found.ceiling + 1e-9


@pytest.mark.parametrize("guide", [MeanField(N, D), LowRank(N, D)], ids=["mean-field", "low-rank"])
def test_batches_change_nothing(guide):
    model, batch = telling_model(5)
    loop = loop_of(guide)
    whole = diagnose(Thoughts.fit(model, [batch], loop, seed=3), particles=2).to_dict()
    halves = [batch.select(torch.arange(3)), batch.select(torch.arange(3, 5))]
    apart = diagnose(Thoughts.fit(model, halves, loop, seed=3), particles=2).to_dict()

    def flat(value):
        if isinstance(value, dict):
            return [one for entry in value.values() for one in flat(entry)]
        return [one for entry in value for one in flat(entry)] if isinstance(value, list) else [value]

    assert flat(apart) == pytest.approx(flat(whole), abs=1e-9)


def test_active_dimensions_are_counted_by_layer():
    """Means of +-m have the variance m^2, and N(+-m, 1) has a KL of m^2 / 2."""
    model, batch = tiny_model(), tiny_batch(6)
    loc = torch.zeros(6, N, D)
    sign = torch.tensor([1.0, -1, 1, -1, 1, -1])[:, None]
    for thought, dimensions, size in ((0, 4, 0.12), (1, 2, 0.17), (3, 8, 0.5)):
        loc[:, thought, :dimensions] = sign * size
    found = diagnose(thoughts_with(model, batch, loc, torch.zeros(6, N, D)), particles=1)
    each = N // L * D
    assert found.active == {
        "variance > 0.01": [6 / each, 8 / each],
        "variance > 0.1": [0.0, 8 / each],
        "KL > 0.01 nats": [2 / each, 8 / each],
    }


def test_mutual_information_of_equal_posteriors_is_none_and_of_far_ones_the_ceiling():
    model, batch = tiny_model(), tiny_batch(16)
    same = thoughts_with(model, batch, torch.ones(16, N, D), torch.zeros(16, N, D))
    assert torch.allclose(mutual_information(same), torch.zeros(16), atol=1e-9)
    far = torch.randn(16, N, D, generator=torch.Generator().manual_seed(0)) * 50
    apart = thoughts_with(model, batch, far, torch.zeros(16, N, D))
    assert torch.allclose(mutual_information(apart), torch.full((16,), math.log(16)), atol=1e-9)
    found = diagnose(apart)
    assert found.ceiling == pytest.approx(math.log(16))
    assert found.mutual_information.mean == pytest.approx(found.ceiling)


def test_mutual_information_of_a_known_channel():
    """Means N(0, 1), variances s^2: 1/2 log(1 + 1/s^2) nats a dimension, up to what few sequences allow.

    The rate is then E KL = (s^2 + E mean^2 - 1 - log s^2) / 2 a dimension, and the marginal is N(0, 1 + s^2).
    """
    size, variances = 400, torch.tensor([0.5, 1.5])
    model, batch = tiny_model(), tiny_batch(size)
    loc, log_variance = torch.zeros(size, N, D), torch.zeros(size, N, D)
    loc[:, 0, :2] = torch.randn(size, 2, generator=torch.Generator().manual_seed(3))
    log_variance[:, 0, :2] = variances.log()
    values = mutual_information(thoughts_with(model, batch, loc, log_variance), particles=4)
    exact = 0.5 * (1 + 1 / variances).log().sum().item()
    assert values.mean().item() == pytest.approx(exact, abs=4 * values.std().item() / size**0.5)
    assert values.std().item() / size**0.5 < 0.1 * exact, "the tolerance means something"


def test_mutual_information_is_the_log_of_a_mixture():
    model, batch = tiny_model(), tiny_batch(5)
    guide, generator = LowRank(N, D), torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) for name, value in guide.init(batch).items()}
    posterior = Posterior(guide, state, batch.ids, Noise(batch.ids, seed=1), torch.zeros(0, batch.size))
    thoughts = Thoughts(model, loop_of(guide, steps=0), [model.precompute(batch)], [posterior], 0)
    gaussian = posterior.distribution.base_dist
    each = torch.distributions.MultivariateNormal(gaussian.mean, gaussian.covariance_matrix)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(5)), each)
    (z,) = thoughts.draws("information")
    expected = each.log_prob(z.flatten(1)) - mixture.log_prob(z.flatten(1))
    assert torch.allclose(mutual_information(thoughts), expected, atol=1e-8)


def test_distortions_are_the_decoders_own():
    model, batch = telling_model(4)
    thoughts = thoughts_with(model, batch, torch.randn(4, N, D), torch.full((4, N, D), -40.0))
    found = diagnose(thoughts)
    z = thoughts.means

    def nats(z):
        return -TokenSequence(model.decoder, z, batch).log_prob(batch.targets)

    def level(z):
        return nats(z).sum().item() / (4 * T)

    assert found.distortion["q"].mean == pytest.approx(level(z), abs=1e-6)
    assert found.distortion["zero"].mean == pytest.approx(level(torch.zeros_like(z)), abs=1e-9)
    assert found.distortion["shuffled"].mean == pytest.approx(level(z.roll(2, 0)), abs=1e-6)
    cost = (nats(z.roll(2, 0)) - nats(z)) / T
    assert found.costs["shuffled"].nats_per_token == pytest.approx(cost.mean().item(), abs=1e-6)
    assert found.costs["shuffled"].stderr == pytest.approx(cost.std().item() / 2, abs=1e-6), "paired by sequence"


def test_progressive_reconstruction():
    model, batch = telling_model(4)
    thoughts = thoughts_with(model, batch, torch.randn(4, N, D), torch.zeros(4, N, D))
    found = diagnose(thoughts, particles=1)
    (others,) = thoughts.from_prior()
    half = N // L
    mixed = {
        "by_layer": [others, torch.cat([thoughts.means[:, :half], others[:, half:]], 1), thoughts.means],
        "by_layer_down": [others, torch.cat([others[:, :half], thoughts.means[:, half:]], 1), thoughts.means],
    }
    for name, expected in mixed.items():
        rows = getattr(found, name)
        assert [row.layers for row in rows] == [0, 1, 2]
        for row, z in zip(rows, expected, strict=True):
            hidden = model.decoder(model.decoder.context(batch.inputs), z)
            log_probs = model.decoder.logits(hidden).log_softmax(-1)
            nats = -log_probs.gather(-1, batch.targets[..., None]).sum().item()
            right = (log_probs.argmax(-1) == batch.targets).double()
            assert row.nats_per_token == pytest.approx(nats / (4 * T), abs=1e-9)
            assert row.accuracy == pytest.approx(right.mean().item())
            assert row.accuracy_stderr == pytest.approx(right.mean(1).std().item() / 2)


def test_a_twin_has_no_thoughts():
    model = tiny_model(tiny_config(thoughts=0))
    with pytest.raises(UserError, match="no thoughts"):
        Thoughts.fit(model, [tiny_batch(2)], loop_of())
    with pytest.raises(UserError, match="no sequences"):
        Thoughts.fit(tiny_model(), [], loop_of())
