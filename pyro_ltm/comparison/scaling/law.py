"""A law of scaling fitted to cells: nats a token as a floor and a power of each factor.

    L = E + sum over factors k of A_k x_k^-alpha_k

with the parameters P and the tokens read D as in Hoffmann et al. (arXiv:2203.15556), and for the inference of a
latent-thought model its fast steps T and its thoughts N. As there, the Huber loss of the error of log L is minimized,
from many starts; the minimizer is Levenberg and Marquardt's, for all starts and all resamplings at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.comparison.scaling.result import Row

FACTORS = {"P": "parameters", "D": "tokens", "T": "fast_steps", "N": "thoughts"}
"""Symbols of a law, and what they are in a `Row`."""

VALUES = 3
"""Different values of a factor that its power needs, at the least: of two any power gives the same difference."""

HUBER = 1e-3
"""Relative errors beyond this count by their size alone, not by their square (arXiv:2203.15556)."""

STARTS, RESAMPLINGS, ITERATIONS = 32, 200, 200
SETTLED = 1e-7
"""A fit has ended whose step lowers the loss by less than this share of it."""
HELD_OUT = 0.2
"""Share of the settings, those of the most training operations, that a law is tried on."""


@dataclass(frozen=True)
class Observations:
    """Cells that a law is fitted to.

    Attributes:
        factors: symbols of the factors that vary. x: float64 [n, k], their values. loss: float64 [n], nats a token.
        groups: int64 [n], the setting of each cell, of which its seeds are repetitions.
        cost: float64 [n], training operations.
        constant: factors that do not vary, with their value. unfit: factors that vary too little for a power.
    """

    factors: tuple[str, ...]
    x: Tensor
    loss: Tensor
    groups: Tensor
    cost: Tensor
    constant: Mapping[str, float] = field(default_factory=dict)
    unfit: Sequence[str] = ()

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Observations:
        """Those of cells of one family that have figures; cells of which a factor is zero are left out."""
        used = [name for name in FACTORS.values() if any(getattr(row, name) for row in rows)]
        kept = [row for row in rows if row.bound and all(getattr(row, name) for name in used)]
        values = {symbol: {getattr(row, name) for row in kept} for symbol, name in FACTORS.items() if name in used}
        factors = [symbol for symbol, some in values.items() if len(some) >= VALUES]
        constant = {symbol: float(*some) for symbol, some in values.items() if len(some) == 1}
        settings = sorted({row.settings for row in kept})
        table = [[float(getattr(row, FACTORS[symbol])) for symbol in factors] for row in kept]
        return cls(
            tuple(factors),
            torch.tensor(table, dtype=torch.float64).reshape(len(kept), len(factors)),
            torch.tensor([row.bound.nats_per_token for row in kept if row.bound], dtype=torch.float64),
            torch.tensor([settings.index(row.settings) for row in kept], dtype=torch.int64),
            torch.tensor([row.training_operations for row in kept], dtype=torch.float64),
            constant,
            [symbol for symbol in values if symbol not in factors and symbol not in constant],
        )

    @property
    def settings(self) -> int:
        """Different settings: cells that differ in more than their seed."""
        return len(self.groups.unique())

    def select(self, rows: Tensor) -> Observations:
        """Some of the cells."""
        parts = (self.x[rows], self.loss[rows], self.groups[rows], self.cost[rows])
        return Observations(self.factors, *parts)


@dataclass(frozen=True)
class Law:
    """A fitted law, with 95% intervals by bootstrap over settings and seeds.

    Attributes:
        floor: E, nats a token. coefficients: A of each factor. exponents: alpha of each factor.
        floor_interval, exponent_intervals: where 95 of 100 resamplings lie.
        error: root mean square of what the law misses in the cells that it was fitted to, nats a token.
        settings, cells: how many it was fitted to.
        held_out: the same of the largest cells, by a law fitted to the others; None: too few.
        held_out_constant: of the lowest level of those others, for comparison. held_out_cells: how many those were.
        remarks: where it fails, in words. constant: factors that it says nothing of, with their one value.
    """

    floor: float
    coefficients: dict[str, float]
    exponents: dict[str, float]
    floor_interval: tuple[float, float]
    exponent_intervals: dict[str, tuple[float, float]]
    error: float
    settings: int
    cells: int
    held_out: float | None = None
    held_out_constant: float | None = None
    held_out_cells: int = 0
    remarks: list[str] = field(default_factory=list)
    constant: Mapping[str, float] = field(default_factory=dict)


def why_no_law(seen: Observations) -> str:
    """Why no law can be fitted; empty where one can."""
    if seen.unfit:
        what = FACTORS[seen.unfit[0]].replace("_", " ")
        return f"{what} varies, and a power of it needs {VALUES} different values"
    if not seen.factors:
        return "no factor varies"
    needed = numbers(seen.factors) + 2
    if seen.settings < needed:
        what = f"a law of {' and '.join(seen.factors)} has {numbers(seen.factors)} numbers and needs {needed} settings"
        return f"{what}; there are {seen.settings}"
    return ""


def numbers(factors: Sequence[str]) -> int:
    """Numbers that are fitted: the floor, and two for each factor."""
    return 1 + 2 * len(factors)


def fit_law(seen: Observations, *, resamplings: int = RESAMPLINGS, seed: int = 0) -> Law:
    """The law of `seen`, which must be enough (`why_no_law`). Figures depend on the cells and `seed` alone."""
    scale = _scale(seen)
    best = _best(seen, torch.ones(1, len(seen.loss), dtype=torch.float64), scale, seed=seed)
    weights = _resampled(seen.groups, resamplings, seed)
    around = best + 0.1 * torch.randn(4, len(best[0]), dtype=torch.float64, generator=_generator(seed + 1))
    drawn = _best(seen, weights, scale, starts=torch.cat([best, around]))
    (floor, powers, exponents), theirs = _named(best, scale), _named(drawn, scale)
    miss = predicted(best, seen.x, scale)[0].exp() - seen.loss
    law = Law(
        float(floor),
        dict(zip(seen.factors, powers[0].tolist(), strict=True)),
        dict(zip(seen.factors, exponents[0].tolist(), strict=True)),
        _interval(theirs[0]),
        {name: _interval(theirs[2][:, index]) for index, name in enumerate(seen.factors)},
        float(miss.square().mean().sqrt()),
        seen.settings,
        len(seen.loss),
        constant=dict(seen.constant),
        **_held_out(seen, seed),
    )
    law.remarks.extend(_remarks(law))
    return law


def _held_out(seen: Observations, seed: int) -> dict[str, Any]:
    """Errors on the largest settings of a law fitted to the others."""
    costs = torch.stack([seen.cost[seen.groups == group].max() for group in range(int(seen.groups.max()) + 1)])
    count = max(1, round(HELD_OUT * seen.settings))
    largest = torch.isin(seen.groups, costs.argsort()[-count:])
    rest, left = seen.select(~largest), seen.select(largest)
    if why_no_law(rest) or any(len(column.unique()) < VALUES for column in rest.x.T):
        return {}
    scale = _scale(rest)
    best = _best(rest, torch.ones(1, len(rest.loss), dtype=torch.float64), scale, seed=seed)
    miss = predicted(best, left.x, scale)[0].exp() - left.loss
    return {
        "held_out": float(miss.square().mean().sqrt()),
        "held_out_constant": float((left.loss - rest.loss.min()).square().mean().sqrt()),
        "held_out_cells": len(left.loss),
    }


def _remarks(law: Law) -> list[str]:
    """Where a law fails, or says nothing."""
    lines = []
    for name, (low, high) in law.exponent_intervals.items():
        what = FACTORS[name].replace("_", " ")
        if low <= 0 <= high:
            lines.append(f"the exponent of {what} may be 0: these cells do not tell how nats depend on it")
        elif high < 0:
            lines.append(f"nats rise with {what}, and not fall")
    if law.floor_interval[0] <= 0.01:
        lines.append("the floor E may be nothing: no cell comes near enough to it to tell")
    if law.held_out is None:
        lines.append("not tried on cells held out: without the largest, too few are left to fit a law to")
    elif law.held_out_constant is not None and law.held_out >= law.held_out_constant:
        lines.append(
            f"it does not reach the largest cells, left out: it misses them by {law.held_out:.3f} nats a token, and "
            f"the lowest of the smaller ones by {law.held_out_constant:.3f}"
        )
    elif law.held_out > 3 * law.error:
        lines.append(
            f"it misses the largest cells, left out, by {law.held_out:.3f} nats a token, where it misses those it is "
            f"fitted to by {law.error:.3f}: do not rely on it beyond them"
        )
    return lines


def predicted(theta: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Log L [M, n] of M laws `theta` [M, 1 + 2k] (log E, k log coefficients, k exponents) at x [n, k] / scale [k]."""
    return _parts(theta, x, scale).logsumexp(-1)


def _parts(theta: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Logarithms [M, n, 1 + k] of the floor and of each power."""
    count = x.shape[1]
    powers = theta[:, None, 1 : 1 + count] - theta[:, None, 1 + count :] * (x / scale).log()
    return torch.cat([theta[:, None, :1].expand(-1, len(x), 1), powers], -1)


def _scale(seen: Observations) -> Tensor:
    """Geometric means, by which factors are divided so that numbers of a fit are of one size."""
    return seen.x.log().mean(0).exp()


def _named(theta: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Floors [M], coefficients [M, k] and exponents [M, k] in the factors' own units."""
    count = len(scale)
    exponents = theta[:, 1 + count :]
    return theta[:, 0].exp(), (theta[:, 1 : 1 + count] + exponents * scale.log()).exp(), exponents


def _best(seen: Observations, weights: Tensor, scale: Tensor, *, starts: Tensor | None = None, seed: int = 0) -> Tensor:
    """The best law [R, 1 + 2k] for each of R weightings [R, n] of the cells, over all starts [S, 1 + 2k]."""
    starts = _starts(seen, seed) if starts is None else starts
    theta = starts.repeat(len(weights), 1)
    theta, loss = _minimize(theta, seen, weights.repeat_interleave(len(starts), 0), scale)
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


def _minimize(theta: Tensor, seen: Observations, weights: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Levenberg and Marquardt's steps on the Huber loss, each law by itself: the laws [M, p] and their losses [M].

    A step solves the least squares that the Huber loss is near the law (iterated weights); one that would raise the
    loss is not taken, and the next is shorter.
    """
    target, damping = seen.loss.log(), torch.full((len(theta), 1, 1), 1e-2, dtype=torch.float64)
    loss = _loss(theta, seen.x, target, weights, scale)
    settled = torch.zeros(len(theta), dtype=torch.bool)
    for _ in range(ITERATIONS):
        parts = _parts(theta, seen.x, scale)
        miss = target - parts.logsumexp(-1)
        shares = parts.softmax(-1)
        slopes = torch.cat([shares, -shares[..., 1:] * (seen.x / scale).log()], -1)
        counted = weights * (HUBER / miss.abs().clamp(min=HUBER))
        squares = slopes.transpose(1, 2) @ (counted[..., None] * slopes)
        diagonal = torch.diag_embed(squares.diagonal(dim1=1, dim2=2) + 1e-12)
        toward = (slopes * (counted * miss)[..., None]).sum(1)
        step = torch.linalg.solve(squares + damping * diagonal, toward)
        tried = (theta + step.clamp(-1, 1)).clamp(-60, 60)
        found = _loss(tried, seen.x, target, weights, scale)
        better = found < loss
        settled |= (better & (loss - found <= SETTLED * loss)) | (damping[:, 0, 0] > 1e6)
        theta, loss = torch.where(better[:, None], tried, theta), torch.where(better, found, loss)
        damping = torch.where(better[:, None, None], damping / 3, damping * 3).clamp(min=1e-9)
        if bool(settled.all()):
            break
    return theta, loss


def _loss(theta: Tensor, x: Tensor, target: Tensor, weights: Tensor, scale: Tensor) -> Tensor:
    miss = (predicted(theta, x, scale) - target).abs()
    huber = torch.where(miss <= HUBER, 0.5 * miss.square(), HUBER * (miss - 0.5 * HUBER))
    return torch.nan_to_num((weights * huber).sum(-1), nan=math.inf)


def _resampled(groups: Tensor, count: int, seed: int) -> Tensor:
    """Weights [count, n] of a Bayesian bootstrap (Rubin, 1981): of settings, and of the seeds of each."""
    generator = _generator(seed + 2)

    def draw(size: int) -> Tensor:
        return -torch.rand(count, size, dtype=torch.float64, generator=generator).clamp(min=1e-12).log()

    settings, seeds = draw(int(groups.max()) + 1), draw(len(groups))
    sums = torch.zeros_like(settings).index_add(1, groups, seeds)
    sizes = torch.bincount(groups, minlength=settings.shape[1]).double()
    return settings[:, groups] * (seeds / sums[:, groups]) * sizes[groups]


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


__all__ = ["Law", "Observations", "fit_law", "why_no_law"]
