"""A law of scaling fitted to cells: nats a token as a floor and a power of each factor.

    L = E + sum over factors k of A_k x_k^-alpha_k

with the parameters P and the tokens read D as in Hoffmann et al. (arXiv:2203.15556), and for the inference of a
latent-thought model its fast steps T and its thoughts N. As there, the Huber loss of the error of log L is minimized,
from many starts; the minimizer is Levenberg and Marquardt's, for all starts and all resamplings at once.

Few cells, or cells that hardly differ, fit many laws equally well. `Law.doubts` says where that is so: what is fitted
then is no law, and should not be quoted as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.comparison.scaling.law_fit import (
    ITERATIONS,
    best_fit,
    named,
    one_thread,
    predicted,
    refitted,
    resampled,
    scale_of,
)
from pyro_ltm.comparison.scaling.result import Row

FACTORS = {"P": "parameters", "D": "tokens", "T": "fast_steps", "N": "thoughts"}
"""Symbols of a law, and what they are in a `Row`."""

VALUES = 3
"""Different values of a factor that its power needs, at the least: of two any power gives the same difference."""

ALIKE = 1.01
"""Tokens read of no larger ratio are as many: with another seed documents of unlike length come in another order."""

RESAMPLINGS = 200
"""For intervals."""
HELD_OUT = 0.2
"""Share of the settings, those of the most training operations, that a law is tried on."""

STEEPEST, WIDEST, UNEXPLAINED = 4.0, 10.0, 0.5
"""Beyond these the cells do not determine a law: an exponent, or an end of its interval, of this size; an interval
whose ends differ by this factor; misses of this share of the standard deviation of the cells. A power of 4 is 16 times
less for twice as much of a factor; exponents of published laws lie below 1."""
FLOOR_WITHIN = 0.5
"""An interval of E wider than this share of the lowest level does not determine it."""


def values_of(rows: Sequence[Row], symbol: str) -> list[int]:
    """A factor of each cell; of tokens that are alike the fewest."""
    found = [int(getattr(row, FACTORS[symbol])) for row in rows]
    if symbol != "D":
        return found
    fewest: dict[int, int] = {}
    for tokens in sorted(set(found)):
        last = max(fewest.values(), default=0)
        fewest[tokens] = last if tokens <= ALIKE * last else tokens
    return [fewest[tokens] for tokens in found]


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
        """Those of cells of one family that have figures; cells of which a factor is zero are left out.

        They are put in order by name, so that the order in which cells were done changes no figure.
        """
        used = {symbol: name for symbol, name in FACTORS.items() if any(getattr(row, name) for row in rows)}
        kept = [row for row in rows if row.bound and all(getattr(row, name) for name in used.values())]
        kept.sort(key=lambda row: (row.settings, row.seed, row.name))
        values = {symbol: values_of(kept, symbol) for symbol in used}
        factors = [symbol for symbol, some in values.items() if len(set(some)) >= VALUES]
        constant = {symbol: float(some[0]) for symbol, some in values.items() if len(set(some)) == 1}
        settings = sorted({row.settings for row in kept})
        table = list(zip(*(values[symbol] for symbol in factors), strict=True))
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
        doubts: why the cells do not determine a law, in words; empty where they do.
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
    doubts: list[str] = field(default_factory=list)


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
    with one_thread():
        scale = scale_of(seen)
        best, settled = best_fit(seen, scale, seed)
        drawn = refitted(seen, resampled(seen.groups, resamplings, seed), scale, best, seed)
        held_out = _held_out(seen, seed)
    (floor, powers, exponents), theirs = named(best, scale), named(drawn, scale)
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
        **held_out,
    )
    law.doubts.extend(_doubts(law, seen, settled))
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
    scale = scale_of(rest)
    best, _ = best_fit(rest, scale, seed)
    miss = predicted(best, left.x, scale)[0].exp() - left.loss
    return {
        "held_out": float(miss.square().mean().sqrt()),
        "held_out_constant": float((left.loss - rest.loss.min()).square().mean().sqrt()),
        "held_out_cells": len(left.loss),
    }


def _doubts(law: Law, seen: Observations, settled: bool) -> list[str]:
    """Why the cells do not determine a law."""
    lines = [] if settled else [f"its fit had not settled after {ITERATIONS:,} steps"]
    for name, interval in law.exponent_intervals.items():
        low, high = interval
        what = f"the exponent of {FACTORS[name].replace('_', ' ')}"
        steep = max(abs(law.exponents[name]), abs(low), abs(high)) > STEEPEST
        if low <= 0 <= high:
            lines.append(f"{what} may be 0 ({_range(interval)}), and then its power and E are one")
        elif steep or max(abs(low), abs(high)) > WIDEST * min(abs(low), abs(high)):
            lines.append(f"{what} may be anything from {_range(interval)}")
        if not _within(law.exponents[name], interval):
            lines.append(f"{what}, {law.exponents[name]:.3g}, lies outside of its own interval, {_range(interval)}")
    low, high = law.floor_interval
    if high - low > FLOOR_WITHIN * float(seen.loss.min()):
        lines.append(f"E may be anything from {low:.3f} to {high:.3f}")
    if not _within(law.floor, law.floor_interval):
        lines.append(f"E, {law.floor:.3f}, lies outside of its own interval, {low:.3f} to {high:.3f}")
    differ = float(seen.loss.std(correction=0))
    if law.error > UNEXPLAINED * differ:
        misses = f"it misses its own cells by {law.error:.2g} nats a token"
        lines.append(f"{misses}, and they differ from one another by {differ:.2g} (standard deviation)")
    return lines


def _within(value: float, interval: tuple[float, float]) -> bool:
    """Whether it is in the interval, but for rounding where cells follow a law exactly."""
    low, high = interval
    slack = 1e-4 * (1 + abs(value))
    return low - slack <= value <= high + slack


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3g} to {interval[1]:.3g}"


def _remarks(law: Law) -> list[str]:
    """Where a law fails, or says nothing."""
    lines = []
    for name, (_, high) in law.exponent_intervals.items():
        if high < 0:
            lines.append(f"nats rise with {FACTORS[name].replace('_', ' ')}, and not fall")
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


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


__all__ = ["Law", "Observations", "fit_law", "values_of", "why_no_law"]
