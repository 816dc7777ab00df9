"""Pareto k of weights whose tail is known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers.linear_gaussian import CorrelatedGaussian

from pyro_ltm.scores.pareto import LEAST_DRAWS, ParetoK, pareto_k, tail_size, threshold, why_no_pareto_k

REPEATS = 200


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def generalized_pareto(shape: float, draws: int) -> torch.Tensor:
    """[K, R] draws by the inverse of the distribution function: ((1 - u)^-k - 1) / k, or -log(1 - u) at 0."""
    left = torch.rand(draws, REPEATS, generator=torch.Generator().manual_seed(1))
    return -left.log() if shape == 0 else (left**-shape - 1) / shape


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.3, 0.7, 1.5])
def test_the_shape_of_generalized_pareto_draws_is_found(shape):
    """Above any level such draws have the same k; the estimate is drawn to 1/2 as by ten more."""
    draws = 2000
    found = pareto_k(generalized_pareto(shape, draws).log())
    size = tail_size(draws)
    wanted = (size * shape + 10 * 0.5) / (size + 10)
    error = found.std().item() / REPEATS**0.5
    # The estimate of Zhang and Stephens is off by O(1 / size) itself.
    assert found.mean().item() == pytest.approx(wanted, abs=4 * error + 2 / size)
    # Its standard deviation is (1 + k) / sqrt(size) where k is well above -1/2, times the pull.
    assert found.std().item() == pytest.approx((1 + shape) / size**0.5 * size / (size + 10), rel=0.25)


def test_a_scale_changes_nothing_and_columns_stand_alone():
    weights = generalized_pareto(0.5, 200)[:, :3].log()
    found = pareto_k(weights)
    assert torch.allclose(pareto_k(weights - 1234.0), found, atol=1e-9)
    assert torch.allclose(pareto_k(weights.flip(0)), found)
    assert torch.allclose(pareto_k(weights[:, 1:2])[0], found[1])


def test_gaussians_of_unlike_width():
    """Weights p / q of Normals, where q is s times as wide: P(w > t) falls as t^(-1 / k) with k = 1 - s^2."""
    normals = torch.randn(20000, 40, generator=torch.Generator().manual_seed(2))
    found = {}
    for width in (0.5, 0.9, 1.2):
        log_weight = normals.square() / 2 - (width * normals).square() / 2
        found[width] = pareto_k(log_weight).mean().item()
    assert found[0.5] > 0.6 > 0.45 > found[0.9] > found[1.2]
    assert found[0.5] == pytest.approx(1 - 0.25, abs=0.12)
    assert found[1.2] < 0.05, "a q that is wider has bounded weights"


def test_weights_that_are_equal_or_span_more_than_numbers_do():
    model = CorrelatedGaussian(torch.diag(torch.tensor([0.3, 0.5])), thoughts=1, dim=2)
    batch = model.copies(3)
    exact = model.log_evidence(batch).expand(64, 3)
    assert pareto_k(exact).tolist() == [0, 0, 0]
    steep = (-1000.0 * torch.arange(100))[:, None]
    # Hill's estimate over the 20 largest of 100: the mean of 1000, 2000, ..., 20000.
    assert pareto_k(steep).tolist() == [10500.0]
    assert pareto_k(torch.cat([exact[:, :1], steep[:64]], 1)).isfinite().all()


def test_thresholds():
    assert threshold(10**6) == 0.7
    assert threshold(100) == pytest.approx(0.5)
    assert [tail_size(draws) for draws in (LEAST_DRAWS - 1, LEAST_DRAWS, 1000)] == [4, 5, 95]


def test_too_few_draws_have_none_and_say_why():
    with pytest.raises(ValueError, match="at least 21"):
        pareto_k(torch.zeros(LEAST_DRAWS - 1, 2))
    assert pareto_k(torch.randn(LEAST_DRAWS, 2)).isfinite().all()
    assert "4 draws are too few" in why_no_pareto_k(4, thoughts=2)
    assert "without thoughts" in why_no_pareto_k(64, thoughts=0)
    assert why_no_pareto_k(64, thoughts=2) == ""


def test_the_summary():
    found = ParetoK.of(torch.tensor([0.1, 0.9, 0.3, 0.6]), 100)
    assert (found.largest, found.threshold, found.share_above) == (0.9, pytest.approx(0.5), 0.5)
    assert found.median == 0.3
    assert json.dumps(found.by_sequence) == "[0.1, 0.9, 0.3, 0.6]"


def test_agrees_with_arviz():
    """Of 400 draws both take 60: the paper rounds a tail's size up, arviz down."""
    stats = pytest.importorskip("arviz_stats.base").array_stats
    weights = torch.cat([generalized_pareto(shape, 400)[:, :3].log() for shape in (-0.3, 0.2, 0.8)], 1)
    ours = pareto_k(weights)
    for column, mine in zip(weights.T, ours.tolist(), strict=True):
        _, theirs = stats.psislw(-column.numpy())  # it takes log likelihoods that were left out
        assert mine == pytest.approx(float(theirs), abs=1e-8)
        assert math.isfinite(mine)
