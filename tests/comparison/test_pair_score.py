"""The score of one pair, against models whose posterior and evidence are known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers.exact_guides import Exact, WithPrior, pieces
from helpers.loops import fit_posterior
from helpers.stand_ins import LinearGaussian
from torch.distributions import kl_divergence

from pyro_ltm.comparison import pair_score as module
from pyro_ltm.comparison.pair_score import curve_steps, score_pair
from pyro_ltm.comparison.result import Comparison, arrival
from pyro_ltm.guides import Delta, MeanField
from pyro_ltm.inference import FastLoop, Plateau
from pyro_ltm.inference.samplers import HMC, SVGD
from pyro_ltm.noise import fold
from pyro_ltm.objectives import MAP, AnalyticELBO, MonteCarloELBO
from pyro_ltm.optimizers import Adam
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.scores.estimate import ratio_error
from pyro_ltm.scores.pareto import pareto_k

ROUNDOFF = 1e-10
"""Double precision: some ten nats, summed in another order."""


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def test_at_the_exact_posterior():
    """Every log weight is the log evidence: both bounds are the evidence, and every draw counts."""
    model = LinearGaussian()
    batch = model.data(6)
    found = score_pair(model, [batch], FastLoop(Exact(model), MonteCarloELBO(), steps=0), particles=16)
    evidence = float(-model.log_evidence(batch).sum() / batch.mask.sum())
    assert found.elbo.nats_per_token == pytest.approx(evidence, abs=ROUNDOFF)
    assert found.iwae.nats_per_token == pytest.approx(evidence, abs=ROUNDOFF)
    assert found.ess == pytest.approx(16, abs=1e-8)
    assert found.steps_taken == 0
    assert found.ms_per_fast_step is None
    by_hand = ratio_error(-model.log_evidence(batch), batch.mask.sum(-1), None).stderr
    assert found.elbo.stderr == pytest.approx(by_hand, rel=1e-9)
    assert found.nats_by_sequence == pytest.approx((-model.log_evidence(batch)).tolist(), abs=ROUNDOFF)


@pytest.mark.parametrize("exact", [True, False])
def test_rate_and_distortion_are_those_of_closed_forms(exact):
    """At the posterior, and at the prior (a mean-field guide before its first step)."""
    model = WithPrior()
    batch = model.data(6)
    guide = Exact(model) if exact else MeanField(2, 2)
    draws = 1500
    found = score_pair(model, [batch], FastLoop(guide, AnalyticELBO(), steps=0), particles=draws)
    q = guide.distribution(guide.init(batch))
    rate = kl_divergence(q, model.prior().expand((6,)))
    assert found.rate == pytest.approx(float(rate.mean()), abs=ROUNDOFF)
    # E_q |x - A z - b|^2 = |x - A mean - b|^2 + the trace of A V A^T.
    loading, variance = model.loading.detach(), q.variance.flatten(1)
    residual = batch.targets - q.mean.flatten(1) @ loading.T - model.offset.detach()
    spread = residual.square().sum(-1) + (loading.square().sum(0) * variance).sum(-1)
    distortion = spread / (2 * model.noise**2) + batch.length / 2 * math.log(2 * math.pi * model.noise**2)
    # The squared length of a Gaussian's sum has at most twice the variance 2 (mean)^2; six sequences, 48 tokens.
    error = float(2 * distortion.abs().max()) / draws**0.5 * 6**0.5 / 48
    assert found.distortion == pytest.approx(float(distortion.sum() / 48), abs=4 * error)
    assert found.elbo.nats_per_token == pytest.approx(found.distortion + float(rate.sum()) / 48, abs=ROUNDOFF)
    gap = kl_divergence(q, torch.distributions.Independent(model.posterior(batch), 2))
    wanted = (gap - model.log_evidence(batch)).sum() / 48
    assert found.elbo.nats_per_token == pytest.approx(float(wanted), abs=4 * error)
    assert found.iwae.nats_per_token < found.elbo.nats_per_token + 1e-12 or exact
    # So many draws from the prior come to the evidence within their error, which the sample size itself gives.
    evidence = float(-model.log_evidence(batch).sum() / 48)
    assert found.iwae.nats_per_token == pytest.approx(evidence, abs=4 * (6 / found.ess) ** 0.5 / 48 + ROUNDOFF)


def test_sample_size_and_importance_weights_by_hand():
    model = LinearGaussian()
    batch = model.data(5)
    options = {"guide": MeanField(2, 2), "objective": MonteCarloELBO()}
    found = score_pair(model, pieces(batch, 3, 2), FastLoop(**options, steps=3), particles=7, seed=11)
    posterior = fit_posterior(model, batch, **options, steps=3, seed=fold(11, "fit"))
    weight = posterior.with_noise(fold(11, "score")).score(model, batch, particles=7).log_weight
    shares = weight.softmax(0)
    assert found.ess == pytest.approx(float((1 / shares.square().sum(0)).mean()), rel=1e-9)
    assert found.ess_stderr == pytest.approx(float((1 / shares.square().sum(0)).std() / 5**0.5), rel=1e-9)
    assert (found.pareto_k, found.no_pareto_k) == (None, "7 draws are too few for a tail: at least 21")
    assert found.iwae.nats_per_token == pytest.approx(float(-weight.exp().mean(0).log().sum() / 40), abs=ROUNDOFF)
    assert found.elbo.nats_per_token == pytest.approx(float(-weight.mean(0).sum() / 40), abs=ROUNDOFF)
    assert found.log_joint == pytest.approx(
        float((weight + posterior.distribution.log_prob(_draws(posterior))).mean(0).mean())
    )


def test_the_tail_of_the_weights_goes_into_the_record_and_comes_back():
    model = LinearGaussian()
    batch = model.data(5)
    options = {"guide": MeanField(2, 2), "objective": MonteCarloELBO()}
    found = score_pair(model, pieces(batch, 3, 2), FastLoop(**options, steps=3), particles=30, seed=11)
    posterior = fit_posterior(model, batch, **options, steps=3, seed=fold(11, "fit"))
    weight = posterior.with_noise(fold(11, "score")).score(model, batch, particles=30).log_weight
    assert found.pareto_k.by_sequence == pytest.approx(pareto_k(weight).tolist())
    comparison = Comparison("posteriors", {}, token_counts=[8] * 5, pairs=[found])
    written = json.loads(json.dumps(comparison.to_dict()))
    assert Comparison.from_dict(written).pairs == [found]
    for name in ("pareto_k", "no_pareto_k"):  # as an earlier release wrote it
        del written["pairs"][0][name]
    assert Comparison.from_dict(written).pairs[0].pareto_k is None


def _draws(posterior):
    return posterior.with_noise(fold(11, "score")).sample(7)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([5.0, 2.0, 1.011, 1.009, 1.0], 3),
        ([5.0, 1.0, 1.2, 3.0], 1),  # its own best, wherever that was
        ([None, 2.0, None, 1.0], 3),
        ([-90.0, -99.5, -100.0], 1),  # densities may exceed one
        ([1.0], 0),
    ],
)
def test_arrival_within_one_percent(levels, expected):
    assert arrival(levels) == expected


def test_arrival_where_there_is_no_bound():
    assert arrival([]) is None
    assert arrival([None]) is None


def test_steps_of_the_curve():
    assert [curve_steps(steps) for steps in (0, 1, 2, 5, 16)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 4, 5],
        [0, 1, 2, 4, 8, 16],
    ]


def test_the_curve_is_the_honest_bound_of_each_state_on_its_way():
    """Each point against a fit of its own that ended there (a constant rate: no step knows how many will follow)."""
    model = LinearGaussian()
    batch = model.data(6)
    adam = Adam(lr=0.2, schedule="constant")
    options = {"guide": MeanField(2, 2), "objective": MonteCarloELBO(), "optimizer": adam}
    found = score_pair(model, pieces(batch, 4, 2), FastLoop(**options, steps=6), curve_particles=5, seed=3)
    assert [point.steps for point in found.curve] == [0, 1, 2, 4, 6]
    for point in found.curve:
        posterior = fit_posterior(model, batch, **options, steps=point.steps, seed=fold(3, "fit"))
        terms = posterior.with_noise(fold(3, "curve")).score(model, batch, particles=5)
        wanted = float((terms.distortion + terms.rate).sum() / 48)
        assert point.nats_per_token == pytest.approx(wanted, abs=ROUNDOFF)


def test_only_the_fit_is_on_the_clock(monkeypatch):
    """A clock that each fast step moves by a second, and each look at a posterior by a hundred."""
    now = [0.0]

    class Slow(LinearGaussian):
        def forward(self, batch, state=None):
            now[0] += 0 if torch.is_grad_enabled() else 100
            return super().forward(batch, state)

    class Ticking(Adam):
        def step(self, *args, **options):
            now[0] += 1
            return super().step(*args, **options)

    model = Slow()
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    options = {"guide": MeanField(2, 2), "objective": MonteCarloELBO(), "optimizer": Ticking()}
    found = score_pair(model, pieces(model.data(6), 4, 2), FastLoop(**options, steps=8), particles=9)
    assert now[0] > 900
    assert [(point.steps, point.ms) for point in found.curve] == [
        (steps, pytest.approx(1000 * 2 * steps / 6)) for steps in (0, 1, 2, 4, 8)
    ]
    assert found.ms_per_fast_step == pytest.approx(1000)
    assert found.ms_per_sequence == pytest.approx(1000 * 16 / 6)
    reached = next(point for point in found.curve if point.steps == found.steps_to_1pct)
    assert found.ms_per_sequence_to_1pct == reached.ms


def test_what_finishes_a_fit_is_on_the_clock_of_each_point(monkeypatch):
    class Ending(MeanField):
        now = 0.0

        def finish(self, state, log_joint, width):
            type(self).now += 5
            return state

    monkeypatch.setattr(module.time, "perf_counter", lambda: Ending.now)
    model = LinearGaussian()
    found = score_pair(model, [model.data(5)], FastLoop(Ending(2, 2), MonteCarloELBO(), steps=2), particles=2)
    assert [point.ms for point in found.curve] == [pytest.approx(1000)] * 3


def test_a_sampler_that_tells_only_of_its_end():
    model = WithPrior()
    found = score_pair(model, [model.data(2)], FastLoop(HMC(2, 2, leapfrogs=3), MAP(), steps=4), particles=4)
    assert [point.steps for point in found.curve] == [0, 4]
    assert found.ms_per_fast_step > 0
    assert found.elbo is not None
    assert "scored by the Normal with their mean and variance" in found.note


def test_batches_that_stop_early_stay_where_they_were():
    model = LinearGaussian()
    loop = FastLoop(MeanField(2, 2), MonteCarloELBO(particles=50), steps=64, stopping=Plateau(1e6, patience=2))
    found = score_pair(model, pieces(model.data(4), 2, 2), loop, particles=2)
    assert found.steps_taken == 4
    assert [point.steps for point in found.curve] == [0, 1, 2, 4, 8, 16, 32, 64]
    assert len({point.nats_per_token for point in found.curve[3:]}) == 1


def test_a_point_has_no_bound_but_a_joint_density():
    model = LinearGaussian()
    batch = model.data(5)
    found = score_pair(model, [batch], FastLoop(Delta(2, 2), MAP(), Adam(lr=0.3), steps=200))
    assert (found.elbo, found.iwae, found.ess, found.rate, found.steps_to_1pct) == (None,) * 5
    assert found.curve == found.nats_by_sequence == []
    assert "no density" in found.note
    # The mode of a Gaussian posterior is its mean, and there log p(x, z) = log p(x) + log p(z | x).
    posterior = torch.distributions.Independent(model.posterior(batch), 2)
    wanted = model.log_evidence(batch) + posterior.log_prob(posterior.mean)
    assert found.log_joint == pytest.approx(float(wanted.mean()), abs=1e-3)


def test_figures_depend_neither_on_batches_nor_on_the_global_seed():
    model = LinearGaussian()
    batch = model.data(5)
    loop = FastLoop(SVGD(2, 2, particles=3), MAP(), steps=3)
    torch.manual_seed(1)
    one = score_pair(model, [batch], loop, particles=3)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    two = score_pair(model, pieces(batch, 2, 3), loop, particles=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.nats_by_sequence == pytest.approx(two.nats_by_sequence, abs=1e-9)


MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda: torch.empty(MEGABYTE, dtype=torch.uint8), MEGABYTE),
        (lambda: [torch.empty(MEGABYTE, dtype=torch.uint8) for _ in range(3)], 3 * MEGABYTE),
        (lambda: [len(torch.empty(MEGABYTE, dtype=torch.uint8)) for _ in range(3)], MEGABYTE),
        (lambda: None, 0),
    ],
)
def test_peak_memory_sees_what_is_held_at_once(work, expected):
    assert peak_memory(work) == pytest.approx(expected, abs=4096)


def test_peak_memory_sees_what_autograd_keeps():
    x = torch.randn(1000, 100, dtype=torch.float32, requires_grad=True)

    def work():
        x.exp().exp().sum().backward()

    # Two results kept for the way back, and two gradients on it (of which one is in the making).
    assert 2 * 400_000 <= peak_memory(work) <= 4 * 400_000 + 4096
    assert x.grad is not None


def test_peak_memory_is_quiet(capfd):
    peak_memory(lambda: torch.ones(10))
    assert capfd.readouterr() == ("", "")


def test_more_particles_need_more_memory():
    model = LinearGaussian(length=64)
    batch, guide = model.data(64), MeanField(2, 2)
    needs = [
        score_pair(model, [batch], FastLoop(guide, MonteCarloELBO(particles=k), steps=1), particles=1) for k in (1, 16)
    ]
    assert needs[1].peak_memory_bytes > 4 * needs[0].peak_memory_bytes > 0
