"""MAUVE against its authors' own package: against figures of it (mauve_figures.py says how they were made), and, where
it is installed, against itself."""

from __future__ import annotations

import importlib.util
import json
import statistics
from pathlib import Path

import pytest
import torch

from pyro_ltm.errors import UserError
from pyro_ltm.tasks.mauve import k_means, mauve, reduced, score_of

HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "data" / "mauve.json").read_text())
_spec = importlib.util.spec_from_file_location("mauve_figures", HERE / "mauve_figures.py")
figures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(figures)


def close(ours, theirs):
    """Both are means over ten quantizations; k-means++ finds tighter buckets than one random start: the last term."""
    spread = statistics.stdev(theirs)
    error = (spread**2 / 10 + ours.spread**2 / 10) ** 0.5
    assert ours.score == pytest.approx(statistics.mean(theirs), abs=4 * error + spread)


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
    close(ours, theirs)


def clusters(counts):
    """Points [sum of counts, 4] around so many directions that lie far apart, in an order of their own."""
    generator = torch.Generator().manual_seed(sum(counts))
    which = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    which = which[torch.randperm(len(which), generator=generator)]
    noise = torch.randn(len(which), 4, dtype=torch.float64, generator=generator)
    return torch.eye(4, dtype=torch.float64)[which] + 0.02 * noise


@pytest.fixture
def package():
    """The authors' own package."""
    return pytest.importorskip("mauve", reason="the extra mauve is not installed: pip install -e '.[mauve]'")


@pytest.mark.parametrize(
    "counts", [((20, 20, 20), (20, 20, 20)), ((60, 30, 10), (15, 25, 50)), ((50, 0, 10), (0, 9, 8))]
)
def test_where_buckets_are_beyond_doubt_it_agrees_with_the_package(package, counts):
    """Both find the same clusters, so only rounding is left: ours in float64, theirs partly in float32."""
    p, q = map(clusters, counts)
    theirs = package.compute_mauve(p_features=p.numpy(), q_features=q.numpy(), num_buckets=3, verbose=False)
    ours = mauve(p, q, buckets=3)
    assert ours.score == pytest.approx(theirs.mauve, abs=1e-6)
    assert ours.spread == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shift", [0.5, 1.5])
def test_on_overlapping_features_it_agrees_with_the_package_up_to_k_means(package, shift):
    """Over ten seeds, within the tolerance that the committed figures have; theirs of one histogram to rounding."""
    p, q = figures.features(shift)
    theirs = [package.compute_mauve(p_features=p, q_features=q, seed=seed, verbose=False) for seed in range(10)]
    for one in theirs:
        histograms = (torch.from_numpy(counts).double() for counts in (one.p_hist, one.q_hist))
        assert score_of(*histograms) == pytest.approx(one.mauve, abs=1e-9)
    ours = mauve(torch.from_numpy(p), torch.from_numpy(q), seeds=10)
    assert ours.buckets == theirs[0].num_buckets
    close(ours, [one.mauve for one in theirs])


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
