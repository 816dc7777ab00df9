"""MAUVE against the figures of its authors' own package (tests/evaluation/mauve_figures.py says how they were made)."""

from __future__ import annotations

import importlib.util
import json
import statistics
from pathlib import Path

import pytest
import torch

from pyro_ltm.errors import UserError
from pyro_ltm.evaluation.mauve import k_means, mauve, reduced, score_of

HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "data" / "mauve.json").read_text())
_spec = importlib.util.spec_from_file_location("mauve_figures", HERE / "mauve_figures.py")
figures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(figures)


@pytest.mark.parametrize("index", range(4))
def test_the_same_histograms_score_the_same(index):
    p, q = (torch.tensor(one, dtype=torch.float64) for one in figures.histograms()[index])
    assert score_of(p, q) == pytest.approx(KNOWN["histograms"][index], abs=1e-9)


@pytest.mark.parametrize("shift", ["0.0", "1.0", "2.0", "4.0"])
def test_the_same_features_score_the_same_up_to_the_seeds_of_k_means(shift):
    p, q = (torch.from_numpy(one) for one in figures.features(float(shift)))
    theirs = KNOWN["features"][shift]
    ours = mauve(p, q, seeds=10)
    assert (ours.buckets, ours.texts) == (20, 200)
    spread = statistics.stdev(theirs)
    # Both are means over ten quantizations; k-means++ finds tighter buckets than one random start, hence the last term.
    assert ours.score == pytest.approx(
        statistics.mean(theirs), abs=4 * (spread**2 / 10 + ours.spread**2 / 10) ** 0.5 + spread
    )


def test_k_means_finds_clusters_that_lie_apart():
    centers = torch.tensor([[0.0, 0], [10, 0], [0, 10]], dtype=torch.float64)
    which = torch.arange(60) % 3
    x = centers[which] + 0.1 * torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = k_means(x, 3)
    assert len(set(zip(which.tolist(), labels.tolist(), strict=True))) == 3
    assert torch.equal(labels, k_means(x, 3))


def test_reduction_keeps_the_variance_asked_for():
    x = torch.randn(100, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [9.0, 5, 1, 1, 1, 1]
    )
    whole = x / x.norm(dim=1, keepdim=True)
    whole = whole - whole.mean(0)
    kept = reduced(x)
    share = kept.square().sum() / whole.square().sum()
    assert 0.9 <= share < 1
    assert kept.shape[1] < 6


@pytest.mark.parametrize(
    ("p", "q", "says"),
    [
        (torch.zeros(20, 3), torch.zeros(20, 4), r"expected \[n, d\]"),
        (torch.zeros(5, 3), torch.zeros(20, 3), "at least 10"),
        (torch.full((20, 3), torch.nan), torch.zeros(20, 3), "not finite"),
    ],
)
def test_bad_features(p, q, says):
    with pytest.raises(UserError, match=says):
        mauve(p, q)
