"""The exchange rate, where it is known."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from helpers.loops import take_loop
from helpers.tiny import D, N, telling_model
from torch.distributions import Normal, kl_divergence

from pyro_ltm.comparison.pair_score import score_pair
from pyro_ltm.comparison.result import Comparison, PairScore
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.model import LatentThoughtModel, TokenSequence
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.priors import Transport
from pyro_ltm.scores import ExchangeRate, evaluate_bound, exchange_rate, why_no_exchange_rate
from pyro_ltm.scores.dependence import Blocks
from pyro_ltm.thoughts.diagnostics import Thoughts, diagnose


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def linear_gaussian(noise: float, waste: float, count: int = 20_000):
    """x = z + noise, z ~ N(0, 1): what x costs without z, its distortion under q, and KL(q || prior), [count] each.

    q is the posterior, its mean moved by `waste` of its own widths.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator) * math.sqrt(1 + noise**2)
    width = noise / math.sqrt(1 + noise**2)
    q = Normal(x / (1 + noise**2) + waste * width, width)
    distortion = -Normal(q.mean, noise).log_prob(x) + q.variance / (2 * noise**2)
    twin = -Normal(0.0, math.sqrt(1 + noise**2)).log_prob(x)
    return twin, distortion, kl_divergence(q, Normal(0.0, 1.0))


def test_the_exact_posterior_exchanges_one_for_one_against_the_marginal():
    """-log p(x) = distortion + rate for it, so a twin that is the marginal itself gives 1, exactly."""
    found = exchange_rate(*linear_gaussian(0.1, 0.0), None)
    assert found.nats_per_nat == pytest.approx(1.0, abs=1e-12)
    assert found.stderr == pytest.approx(0.0, abs=1e-12)


def test_what_a_posterior_wastes_is_lost_in_exchange():
    """1 - KL(q || posterior) / rate: a mean that is `waste` widths off costs waste^2 / 2 nats."""
    twin, distortion, rate = linear_gaussian(0.1, 0.5)
    found = exchange_rate(twin, distortion, rate, None)
    assert found.nats_per_nat == pytest.approx(1 - 0.125 / float(rate.mean()), abs=1e-12)
    # The ratio's linearized error over independent sequences, written out.
    residual = (twin - distortion) - found.nats_per_nat * rate
    by_hand = float(residual.square().sum().sqrt() / rate.sum())
    assert found.stderr == pytest.approx(by_hand, rel=1e-3)


def test_prior_draws_as_the_reference_never_fall_below_one():
    """Why the reference is no draw of the prior: against E_p[-log p(x | z)] the wasteful posterior looks a bargain."""
    noise = 0.1
    twin, distortion, rate = linear_gaussian(noise, 0.5)
    # E[-log N(x; z, noise)] over z ~ N(0, 1) is the log of the width, and (x^2 + 1) / 2 noise^2; x^2 from the twin.
    square = 2 * (1 + noise**2) * (twin - 0.5 * math.log(2 * math.pi * (1 + noise**2)))
    from_prior = 0.5 * math.log(2 * math.pi * noise**2) + (square + 1) / (2 * noise**2)
    assert exchange_rate(from_prior, distortion, rate, None).nats_per_nat > 1


def test_no_rate_no_exchange():
    nothing = torch.full((4,), 0.01)
    assert exchange_rate(torch.ones(4), torch.zeros(4), nothing, None) is None
    assert "0.01 nats a sequence" in why_no_exchange_rate(nothing)
    assert why_no_exchange_rate(torch.ones(4)) == ""
    assert exchange_rate(torch.ones(1), torch.zeros(1), torch.ones(1), None).stderr is None


def test_a_bound_has_it_against_thoughts_all_zero():
    model, batch = telling_model()
    loop = take_loop({"guide": MeanField(N, D), "objective": AnalyticELBO(), "steps": 6})
    found = evaluate_bound(model, [batch.select(torch.arange(2)), batch.select(torch.arange(2, 4))], loop)
    saved = (found.distortion_zeroed - found.distortion_nats_per_token) * found.tokens / found.sequences
    assert found.exchange_rate.nats_per_nat == pytest.approx(saved / found.kl_nats_per_sequence, rel=1e-12)
    assert found.to_dict()["exchange_rate"]["nats_per_nat"] == found.exchange_rate.nats_per_nat
    at_the_prior = evaluate_bound(model, [batch], dataclasses.replace(loop, steps=0))
    assert at_the_prior.exchange_rate is None
    assert "below 0.1" in at_the_prior.no_exchange_rate


def test_a_comparison_has_it_against_its_twin_and_else_against_no_thoughts():
    own = ExchangeRate(0.9, 0.1, Blocks(2, 1, "sequences", 2))
    pair = PairScore(fast_steps=1, exchange_rate=own, nats_by_sequence=[9.0, 13.0], rate_by_sequence=[2.0, 2.0])
    found = Comparison("training", {}, token_counts=[3, 3], pairs=[pair])
    assert found.exchange_rate(pair) is own
    found.twin = PairScore(fast_steps=0, nats_by_sequence=[8.0, 12.0])
    # Distortions 7 and 11: one nat saved by two of rate, twice; the bound lies 2 * (1 - 0.5) nats above the twin.
    assert found.exchange_rate(pair).nats_per_nat == 0.5
    assert found.exchange_rate(dataclasses.replace(pair, rate_by_sequence=[])) is None  # of an earlier release
    again = Comparison.from_dict(json.loads(json.dumps(found.to_dict())) | {"places": None})
    assert again.pairs[0].exchange_rate == own
    old = found.to_dict()
    del old["pairs"][0]["exchange_rate"], old["pairs"][0]["rate_by_sequence"]
    assert Comparison.from_dict(old).pairs[0].exchange_rate is None


def test_without_thoughts_is_without_them_under_a_prior_that_maps_them_too():
    """The map of a transport prior makes thoughts of zeros: what the decoder costs under these is no reference."""
    told, batch = telling_model()
    plain = LatentThoughtModel(told.config, decoder=told.decoder)
    exact = -plain.log_prob_without_thoughts(batch).detach()
    zeros = TokenSequence(told.decoder, torch.zeros(batch.size, N, D), batch)
    assert torch.equal(exact, -zeros.log_prob(batch.targets)), "of other priors zeros are as good as none"
    prior = Transport(N, D)
    with torch.no_grad():
        for block in prior.transport.blocks:
            block.over_width[-1].bias.normal_()
    model = LatentThoughtModel(told.config, decoder=told.decoder, prior=prior)
    batch = model.precompute(batch)
    loop = FastLoop(MeanField(N, D), AnalyticELBO(), steps=2)
    bound = evaluate_bound(model, [batch], loop)
    assert bound.distortion_zeroed == pytest.approx(float(exact.sum() / batch.tokens()), rel=1e-12)
    found = diagnose(Thoughts.fit(model, [batch], loop), particles=1)
    assert found.distortion["zero"].mean == pytest.approx(bound.distortion_zeroed, rel=1e-12)
    pair = score_pair(model, [batch], loop, particles=2, curve_particles=1)
    saved = float(exact.sum()) - pair.distortion * int(batch.tokens())
    assert pair.exchange_rate.nats_per_nat == pytest.approx(saved / pair.rate / batch.size, rel=1e-12)
