"""The minimizer behind a law of scaling: all starts and all resamplings settle at once, each by itself.

Levenberg and Marquardt's steps on the Huber loss of the error of log L. A law is `theta` [1 + 2k]: log E, k log
coefficients, k exponents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyro_ltm.comparison.scaling.law import Observations

HUBER = 1e-3
"""Relative errors beyond this count by their size alone, not by their square (arXiv:2203.15556)."""

STARTS, FINALISTS = 32, 6
"""Laws to begin from; of these the best go on until they have settled."""
FIRST, ITERATIONS, RESAMPLED, AT_ONCE = 200, 4000, 1000, 50
"""Steps of all starts, of a fit and of a resampling's at the most, and between two looks whether one has settled."""
SETTLED = 1e-5
"""A fit has settled whose loss fell by less than this share of it between two looks."""
NOTHING = 1e-4
"""A floor of this share of the lowest level is none: lower ones fit the same, and a fit would go on for ever."""


def predicted(theta: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Log L [M, n] of M laws `theta` [M, 1 + 2k] (log E, k log coefficients, k exponents) at x [n, k] / scale [k]."""
    return _parts(theta, x, scale).logsumexp(-1)


def _parts(theta: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Logarithms [M, n, 1 + k] of the floor and of each power."""
    count = x.shape[1]
    powers = theta[:, None, 1 : 1 + count] - theta[:, None, 1 + count :] * (x / scale).log()
    return torch.cat([theta[:, None, :1].expand(-1, len(x), 1), powers], -1)


def scale_of(seen: Observations) -> Tensor:
    """Geometric means, by which factors are divided so that numbers of a fit are of one size."""
    return seen.x.log().mean(0).exp()


def named(theta: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Floors [M], coefficients [M, k] and exponents [M, k] in the factors' own units."""
    count = len(scale)
    exponents = theta[:, 1 + count :]
    return theta[:, 0].exp(), (theta[:, 1 : 1 + count] + exponents * scale.log()).exp(), exponents


def best_fit(seen: Observations, scale: Tensor, seed: int) -> tuple[Tensor, bool]:
    """The best law [1, 1 + 2k] over all starts, and whether its fit has settled."""

    def fit(theta: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
        weights = torch.ones(len(theta), len(seen.loss), dtype=torch.float64)
        return _minimize(theta, seen, weights, scale, most)

    theta, loss, _ = fit(_starts(seen, seed), FIRST)
    theta, loss, settled = fit(theta[loss.argsort()[:FINALISTS]], ITERATIONS)
    best = loss.argmin()
    return theta[best : best + 1], bool(settled[best])


def refitted(seen: Observations, weights: Tensor, scale: Tensor, best: Tensor, seed: int) -> Tensor:
    """Laws [R, 1 + 2k] of R weightings [R, n] of the cells, each begun from the `best` of all cells and around it."""
    around = best + 0.1 * torch.randn(2, len(best[0]), dtype=torch.float64, generator=_generator(seed + 1))
    starts = torch.cat([best, around])
    theta = starts.repeat(len(weights), 1)
    theta, loss, _ = _minimize(theta, seen, weights.repeat_interleave(len(starts), 0), scale, RESAMPLED)
    index = loss.view(len(weights), len(starts)).argmin(1)
    return theta.view(len(weights), len(starts), -1)[torch.arange(len(weights)), index]


def _starts(seen: Observations, seed: int) -> Tensor:
    """Laws to begin from: floors below the lowest level, and what is left shared among powers of all kinds."""
    count, generator = len(seen.factors), _generator(seed)
    low, high = float(seen.loss.min()), float(seen.loss.max())
    floor = torch.rand(STARTS, 1, dtype=torch.float64, generator=generator) * 0.95 * low + 0.02 * low
    shares = torch.rand(STARTS, count, dtype=torch.float64, generator=generator) + 0.1
    powers = shares / shares.sum(1, keepdim=True) * (0.5 * (low + high) - floor).clamp(min=0.05)
    exponents = torch.rand(STARTS, count, dtype=torch.float64, generator=generator) * 1.5 + 0.05
    return torch.cat([floor.log(), powers.log(), exponents], 1)


def _minimize(
    theta: Tensor, seen: Observations, weights: Tensor, scale: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The laws [M, p] that `theta` settles at in `most` steps, their losses [M], and whether each has settled [M].

    Each law goes on by itself until a look finds it settled; only the others take further steps.
    """
    theta = theta.clone()
    damping = torch.full((len(theta), 1, 1), 1e-2, dtype=torch.float64)
    loss = _huber(predicted(theta, seen.x, scale) - seen.loss.log(), weights)
    going = torch.arange(len(theta))
    for _ in range(0, most, AT_ONCE):
        before = loss[going]
        state = (theta[going], before, damping[going])
        theta[going], loss[going], damping[going] = _steps(*state, seen, weights[going], scale)
        going = going[before - loss[going] > SETTLED * before]
        if not len(going):
            break
    settled = torch.ones(len(theta), dtype=torch.bool)
    settled[going] = False
    return theta, loss, settled


def _steps(
    theta: Tensor, loss: Tensor, damping: Tensor, seen: Observations, weights: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`AT_ONCE` of Levenberg and Marquardt's steps on the Huber loss: laws, their losses, and the damping [M, 1, 1].

    A step solves the least squares that the Huber loss is near the law (iterated weights); one that would raise the
    loss is not taken, and the next is shorter.
    """
    target, along = seen.loss.log(), (seen.x / scale).log()
    lowest = torch.full((theta.shape[1],), -60.0, dtype=torch.float64)
    lowest[0] = target.min() + math.log(NOTHING)
    parts = _parts(theta, seen.x, scale)
    for _ in range(AT_ONCE):
        levels = parts.logsumexp(-1, keepdim=True)
        miss = target - levels[..., 0]
        shares = (parts - levels).exp()
        slopes = torch.cat([shares, -shares[..., 1:] * along], -1)
        counted = weights * (HUBER / miss.abs().clamp(min=HUBER))
        squares = slopes.transpose(1, 2) @ (counted[..., None] * slopes)
        diagonal = torch.diag_embed(squares.diagonal(dim1=1, dim2=2) + 1e-12)
        toward = (slopes * (counted * miss)[..., None]).sum(1)
        step = torch.linalg.solve(squares + damping * diagonal, toward)
        tried = (theta + step.clamp(-1, 1)).clamp(min=lowest).clamp(max=60)
        theirs = _parts(tried, seen.x, scale)
        found = _huber(theirs.logsumexp(-1) - target, weights)
        better = found < loss
        theta, loss = torch.where(better[:, None], tried, theta), torch.where(better, found, loss)
        parts = torch.where(better[:, None, None], theirs, parts)
        damping = torch.where(better[:, None, None], damping / 3, damping * 3).clamp(min=1e-9, max=1e9)
    return theta, loss, damping


def _huber(miss: Tensor, weights: Tensor) -> Tensor:
    """The Huber loss [M] of errors of log L [M, n]."""
    size = miss.abs()
    huber = torch.where(size <= HUBER, 0.5 * size.square(), HUBER * (size - 0.5 * HUBER))
    return torch.nan_to_num((weights * huber).sum(-1), nan=math.inf)


def resampled(groups: Tensor, count: int, seed: int) -> Tensor:
    """Weights [count, n] of a Bayesian bootstrap (Rubin, 1981): of settings, and of the seeds of each."""
    generator = _generator(seed + 2)

    def draw(size: int) -> Tensor:
        return -torch.rand(count, size, dtype=torch.float64, generator=generator).clamp(min=1e-12).log()

    settings, seeds = draw(int(groups.max()) + 1), draw(len(groups))
    sums = torch.zeros_like(settings).index_add(1, groups, seeds)
    sizes = torch.bincount(groups, minlength=settings.shape[1]).double()
    return settings[:, groups] * (seeds / sums[:, groups]) * sizes[groups]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are of one order, whatever the number of threads; the fits are too small for several to be faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


__all__ = ["ITERATIONS", "best_fit", "named", "one_thread", "predicted", "refitted", "resampled", "scale_of"]
