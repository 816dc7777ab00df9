"""Annealed importance sampling on a model whose evidence is known."""

from __future__ import annotations

import dataclasses
import math

import pyro.distributions as dist
import pytest
import torch
from helpers.linear_gaussian import CorrelatedGaussian, random_covariance

from pyro_ltm.errors import UserError
from pyro_ltm.inference.ais import SCHEDULES, Annealing, anneal, anneal_both_ways, temperatures
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.noise import Noise

pytestmark = pytest.mark.usefixtures("double")
COPIES = 300


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gaussian() -> tuple[CorrelatedGaussian, object]:
    torch.manual_seed(0)
    model = CorrelatedGaussian(random_covariance(4, seed=1), thoughts=2, dim=2)
    return model, model.copies(COPIES)


def starts(model, batch) -> dict[str, dist.TorchDistribution]:
    """The prior, and a posterior that is off in mean and width."""
    q = model.posterior(batch)
    mean, scale = q.mean.view(-1, 2, 2) + 0.3, 1.3 * q.variance.sqrt().view(-1, 2, 2)
    return {"prior": dist.Normal(torch.zeros_like(mean), 1.0).to_event(2), "q": dist.Normal(mean, scale).to_event(2)}


def run(model, batch, start, steps, *, seed=1, **options):
    noise, tuning = Noise(batch.ids, seed=seed), Noise(batch.ids, seed=seed + 1000)
    return anneal(LogJoint(model, batch), start, Annealing(temperatures=steps, **options), noise=noise, tuning=tuning)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_temperatures_rise_from_0_to_1(schedule):
    ladder = temperatures(10, schedule=schedule)
    assert (ladder[0].item(), ladder[-1].item()) == (0, 1)
    assert bool((ladder.diff() > 0).all())
    assert torch.allclose(ladder + ladder.flip(0), torch.ones(11, dtype=torch.float64))
    even = torch.allclose(ladder.diff(), torch.full((10,), 0.1, dtype=torch.float64))
    assert even == (schedule == "linear")


@pytest.mark.parametrize("bad", [{"schedule": "cubic"}, {"temperatures": 0}, {"chains": 0}, {"leapfrogs": 0}])
def test_what_cannot_be_run_is_refused(bad):
    with pytest.raises(UserError, match=r"choose from sigmoid, linear|at least 1"):
        Annealing(**bad)


def test_the_schedule_is_the_one_asked_for():
    """Unbiased along either, and the two are other runs."""
    model, batch = gaussian()
    exact, start = model.log_evidence(batch)[0], starts(model, batch)["prior"]
    even, bent = (run(model, batch, start, 6, schedule=schedule).log_weight for schedule in ("linear", "sigmoid"))
    ratio = (even - exact).exp().flatten()
    assert ratio.mean().item() == pytest.approx(1, abs=4 * ratio.std().item() / math.sqrt(len(ratio)))
    assert not torch.allclose(even, bent)


@pytest.mark.parametrize("steps", [1, 3, 12])
@pytest.mark.parametrize("origin", ["prior", "q"])
def test_weights_are_unbiased_and_their_logs_below_the_evidence(origin, steps):
    """E[w] = p(x), so E[log w] <= log p(x); copies of one sequence are replicates."""
    model, batch = gaussian()
    exact = model.log_evidence(batch)[0]
    log_ratio = (run(model, batch, starts(model, batch)[origin], steps, chains=4).log_weight - exact).flatten()
    ratio = log_ratio.exp()
    assert ratio.mean().item() == pytest.approx(1, abs=4 * ratio.std().item() / math.sqrt(len(ratio)))
    assert log_ratio.mean() < 4 * log_ratio.std() / math.sqrt(len(log_ratio))


@pytest.mark.parametrize("origin", ["prior", "q"])
def test_more_temperatures_come_closer(origin):
    model, batch = gaussian()
    exact, start = model.log_evidence(batch)[0], starts(model, batch)[origin]
    gaps = [(exact - run(model, batch, start, steps).log_weight).mean().item() for steps in (1, 4, 16, 64)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 4


def test_from_the_exact_posterior_every_weight_is_the_evidence():
    torch.manual_seed(0)
    model = CorrelatedGaussian(torch.diag(torch.tensor([0.3, 0.5, 0.2, 0.7])), thoughts=2, dim=2)
    batch = model.copies(3)
    q = model.posterior(batch)
    start = dist.Normal(q.mean.view(3, 2, 2), q.variance.sqrt().view(3, 2, 2)).to_event(2)
    found = run(model, batch, start, 5)
    assert torch.allclose(found.log_weight, model.log_evidence(batch).expand(4, 3), atol=1e-9)


def test_transitions_are_tuned():
    model, batch = gaussian()
    found = run(model, batch, starts(model, batch)["prior"], 40)
    assert 0.4 < found.acceptance[5:].mean() < 0.9


def test_a_sequence_does_not_depend_on_its_batch():
    model, batch = gaussian()
    start = starts(model, batch)["q"]
    rows = torch.tensor([7, 2])
    part = dist.Normal(start.base_dist.loc[rows], start.base_dist.scale[rows]).to_event(2)
    whole, some = run(model, batch, start, 4), run(model, batch.select(rows), part, 4)
    assert torch.allclose(whole.log_weight[:, rows], some.log_weight, atol=1e-9)


def written(covariance, copies):
    """A model, sequences that it wrote, and what it wrote them from, so that draws of the posterior are exact."""
    model = CorrelatedGaussian(covariance, thoughts=2, dim=2)
    z = torch.randn(copies, 4)
    targets = z @ model.loading.T + model.offset + model.noise * torch.randn(copies, 4)
    batch = dataclasses.replace(model.copies(copies), targets=targets.detach())
    return model, batch, z.view(-1, 2, 2)


def both(model, batch, start, exact, steps, seed=1, **options):
    noise, tuning = Noise(batch.ids, seed=seed), Noise(batch.ids, seed=seed + 1000)
    how = Annealing(temperatures=steps, **options)
    return anneal_both_ways(LogJoint(model, batch), start, exact, how, noise=noise, tuning=tuning)


@pytest.mark.parametrize("origin", ["prior", "q"])
def test_both_ways_the_evidence_lies_between(origin):
    """Forward E[w] = p(x); backward E[1 / w] = 1 / p(x), whatever the chains did, over the model's own texts."""
    torch.manual_seed(0)
    model, batch, exact = written(random_covariance(4, seed=1), COPIES)
    evidence, start = model.log_evidence(batch), starts(model, batch)[origin]
    gaps = []
    for steps in (2, 16):
        forward, back = (found.log_weight - evidence for found in both(model, batch, start, exact, steps, chains=2))
        for log_ratio in (forward, -back):
            ratio = log_ratio.exp().mean(0)  # chains of one sequence share where they begin
            assert ratio.mean().item() == pytest.approx(1, abs=4 * ratio.std().item() / COPIES**0.5)
            level = log_ratio.mean(0)
            assert level.mean() < 3 * level.std() / COPIES**0.5
        gaps.append((back.mean() - forward.mean()).item())
    assert gaps[0] > 2 * gaps[1] > 0


def test_back_from_where_the_path_is_level_every_weight_is_the_evidence():
    torch.manual_seed(0)
    model, batch, exact = written(torch.diag(torch.tensor([0.3, 0.5, 0.2, 0.7])), 3)
    q = model.posterior(batch)
    start = dist.Normal(q.mean.view(3, 2, 2), q.variance.sqrt().view(3, 2, 2)).to_event(2)
    for found in both(model, batch, start, exact, 5):
        assert torch.allclose(found.log_weight, model.log_evidence(batch).expand(4, 3), atol=1e-9)


def test_forward_both_ways_is_the_same_as_forward_alone():
    model, batch = gaussian()
    start = starts(model, batch)["q"]
    forward, _ = both(model, batch, start, torch.zeros(COPIES, 2, 2), 4)
    assert torch.equal(forward.log_weight, run(model, batch, start, 4).log_weight)
