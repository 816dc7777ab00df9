"""MAUVE (Pillutla et al., arXiv:2102.01454): how close two sets of texts are, by features that the caller supplies.

Features are quantized together, and the two histograms compared along the frontier of their mixtures. Published figures
use features of GPT-2 large; of other features a figure can be compared only with figures of the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ltm.errors import UserError

SCALE = 5.0
"""The paper's scaling of divergences."""
POINTS = 25
"""Mixtures along the frontier."""


@dataclass(frozen=True)
class Mauve:
    """The score of two sets of features, from 0 to 1; its mean and spread over the seeds of the quantization.

    Attributes:
        score: mean over seeds. spread: standard deviation over them; NaN for one.
        buckets: k of k-means. texts: smaller number of texts of the two.
    """

    score: float
    spread: float
    buckets: int
    texts: int
    seeds: int


def mauve(p: Tensor, q: Tensor, *, buckets: int = 0, seeds: int = 5, seed: int = 0) -> Mauve:
    """MAUVE of features `p` [n, d] and `q` [m, d].

    Args:
        buckets: 0: a tenth of the smaller number of texts, at least 2, as the authors' own package has it.
        seeds: quantizations over which the score is averaged.

    Raises:
        UserError: other shapes, fewer than 10 texts, or features that are not finite.
    """
    if p.dim() != 2 or q.dim() != 2 or p.shape[1] != q.shape[1]:
        raise UserError(f"features of shape {list(p.shape)} and {list(q.shape)}: expected [n, d] and [m, d]")
    fewer = min(len(p), len(q))
    if fewer < 10:
        raise UserError(f"features of {fewer} texts: at least 10 on either side")
    if not bool(torch.isfinite(p).all() and torch.isfinite(q).all()):
        raise UserError("features are not finite")
    buckets = buckets or max(2, round(fewer / 10))
    if not 2 <= buckets <= len(p) + len(q):
        raise UserError(f"buckets = {buckets}: from 2 to {len(p) + len(q)}")
    x = reduced(torch.cat([q, p]).double())
    scores = []
    for run in range(seeds):
        labels = k_means(x, buckets, seed=seed + run)
        q_counts, p_counts = (
            torch.bincount(part, minlength=buckets).double() for part in labels.split([len(q), len(p)])
        )
        scores.append(score_of(p_counts / p_counts.sum(), q_counts / q_counts.sum()))
    whole = torch.tensor(scores, dtype=torch.float64)
    return Mauve(float(whole.mean()), float(whole.std()) if seeds > 1 else math.nan, buckets, fewer, seeds)


def score_of(p: Tensor, q: Tensor) -> float:
    """The area under the frontier of two histograms [k], by trapezoids, the mean of both ways to sort its points."""
    curve = [(0.0, math.inf)]
    for weight in torch.linspace(1e-6, 1 - 1e-6, POINTS, dtype=torch.float64).tolist():
        mixture = weight * p + (1 - weight) * q
        curve.append((_divergence(q, mixture), _divergence(p, mixture)))
    curve.append((math.inf, 0.0))
    points = torch.exp(-SCALE * torch.tensor(curve, dtype=torch.float64))
    x, y = points.unbind(1)
    by_x, by_y = x.argsort(stable=True), y.argsort(stable=True)
    return float(torch.trapezoid(y[by_x], x[by_x]) + torch.trapezoid(x[by_y], y[by_y])) / 2


def _divergence(p: Tensor, q: Tensor) -> float:
    """KL(p || q) in nats."""
    seen = p > 0
    return float((p[seen] * (p[seen] / q[seen]).log()).sum()) if bool((q[seen] > 0).all()) else math.inf


def reduced(x: Tensor, explained: float = 0.9) -> Tensor:
    """Features [n, d] of length one, on the principal axes that explain so much of their variance."""
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    x = x - x.mean(0)
    left, singular, _ = torch.linalg.svd(x, full_matrices=False)
    share = singular.square().cumsum(0) / singular.square().sum().clamp(min=1e-30)
    count = int((share < explained).sum()) + 1
    return left[:, :count] * singular[:count]


def k_means(x: Tensor, buckets: int, *, seed: int = 0, restarts: int = 5, steps: int = 100) -> Tensor:
    """The bucket [n] of each point of [n, d]: Lloyd's algorithm from k-means++ starts, the best of several."""
    generator = torch.Generator().manual_seed(seed)
    best, nearest = math.inf, torch.zeros(len(x), dtype=torch.int64)
    for _ in range(restarts):
        centers = _start(x, buckets, generator)
        for _ in range(steps):
            labels = torch.cdist(x, centers).argmin(1)
            sums = torch.zeros_like(centers).index_add_(0, labels, x)
            counts = torch.bincount(labels, minlength=buckets)[:, None]
            moved = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
            if torch.equal(moved, centers):
                break
            centers = moved
        distance, labels = torch.cdist(x, centers).min(1)
        total = float(distance.square().sum())
        if total < best:
            best, nearest = total, labels
    return nearest


def _start(x: Tensor, buckets: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next center is a point drawn by its squared distance to those before (Arthur and others 2007)."""
    first = torch.randint(len(x), (1,), generator=generator)
    centers = x[first]
    for _ in range(buckets - 1):
        distance = torch.cdist(x, centers).min(1).values.square()
        weights = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        centers = torch.cat([centers, x[torch.multinomial(weights, 1, generator=generator)]])
    return centers
