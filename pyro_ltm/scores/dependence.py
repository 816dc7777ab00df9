"""How far a sum over sequences may be off, where neighbours of one text depend on one another.

Sequences that are cut from one stream are no independent draws: a document's are alike, and so are neighbours. Rule:

1. Where documents are known, and no few of them hold most of the text, the sums over documents are the units; else
   the sequences are. With few documents both are tried, and the larger error stands.
2. A unit that holds much of the text draws the level to itself, and its residual is small for that: as small as none
   where it is nearly all. So each counts by how far the level moves without it (the jackknife): its residual is divided
   by the share of the text that others hold. For units of one size that gives the usual formula.
3. Units stand in the order of the text. The length b of the blocks within which they depend is chosen from the data:
   Politis and White, Automatic block-length selection for the dependent bootstrap, Econometric Reviews 23 (2004)
   53-70, as corrected by Patton, Politis and White, Econometric Reviews 28 (2009) 372-375.
4. The variance is that of the circular block bootstrap, in closed form. It falls short by about a constant / b; twice
   the length falls short by half as much, and so the two together tell what is missing: 2 V(2b) - V(b), the flat-top
   lag window of Politis and Romano, Journal of Time Series Analysis 16 (1995) 67-103.
5. Blocks only ever enlarge an error: the variance is never below that of independent units, which b = 1 gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.types import Batch

FEW_DOCUMENTS = 10.0
"""Fewer documents than this, each counted by its share of the text, are too few to be trusted alone."""

FEW_UNITS = 20
"""Among fewer units dependence is hardly seen, whatever there is."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where S sequences stand in their text: which of them depend on one another.

    Attributes:
        ids: int64 [S], the order of the text (`Batch.ids`).
        documents: int64 [S], the document in which each begins; None where that is not known.
    """

    ids: Tensor
    documents: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch) -> Places:
        """Those of a batch."""
        return cls(batch.ids.cpu(), None if batch.documents is None else batch.documents.cpu())

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        """Those of several batches; documents only where all know theirs."""
        documents = [part.documents for part in parts if part.documents is not None]
        known = len(documents) == len(parts)
        return cls(torch.cat([part.ids for part in parts]), torch.cat(documents) if known else None)

    def to_dict(self) -> dict[str, list[int] | None]:
        """For JSON."""
        return {"ids": self.ids.tolist(), "documents": None if self.documents is None else self.documents.tolist()}

    def first(self, count: int) -> Places:
        """Those of the first `count` sequences."""
        return Places(self.ids[:count], None if self.documents is None else self.documents[:count])


@dataclass(frozen=True)
class Blocks:
    """Over what a standard error was taken.

    Attributes:
        count: independent blocks, `units / length`; where few documents hold most of the text, how many of one size
            they are worth. length: units in a block; 1: they are taken as independent.
        of: what the units are: `sequences`, or `documents`. units: how many there are.
    """

    count: int
    length: int
    of: str
    units: int

    def __post_init__(self) -> None:
        if self.length < 1 or self.count < 0 or self.units < 0:  # of a file: there are no such blocks
            raise ValueError(f"{self.count} blocks of {self.length} from {self.units} units")

    def __str__(self) -> str:
        if self.units < 2:
            return "a single sequence, which has none"
        if self.count < self.units // self.length:
            return f"{self.units:,} {self.of} of unlike sizes, worth {self.count:,} of one size"
        if self.length > 1:
            return f"{self.units:,} {self.of} in {self.count:,} independent blocks of {self.length}"
        if self.units < FEW_UNITS:
            return f"{self.units:,} {self.of}, taken as independent: too few to see whether neighbours are"
        return f"{self.units:,} {self.of}, independent as far as can be seen"


NOT_SAID = "sequences, taken as independent by the release that measured this: too small for packed text"
"""Description of errors whose blocks are not known."""


def describe_blocks(blocks: Mapping[str, Any] | None) -> str:
    """Over what errors in JSON were taken, which have `blocks` or are of an earlier release."""
    return str(Blocks(**blocks)) if blocks else NOT_SAID


def error_of_sum(residual: Tensor, weight: Tensor, places: Places | None) -> tuple[float, Blocks]:
    """Standard error of the sum of `residual` [S], which sums to zero, and over what it was taken.

    Args:
        weight: [S] how much of the text each sequence is, such as its tokens.
        places: None: the sequences are independent texts.
    """
    count = len(residual)
    if places is None:
        return math.sqrt(block_variance(_left_out(residual, weight), 1)), Blocks(count, 1, "sequences", count)
    order = torch.argsort(places.ids, stable=True)
    residual, weight = residual[order], weight[order]
    found = _error(_left_out(residual, weight), "sequences")
    if places.documents is None:
        return found
    documents = torch.unique(places.documents[order], return_inverse=True)[1]
    if not 1 < (distinct := int(documents.max()) + 1) < count:
        return found
    sizes, sums = (one.new_zeros(distinct).index_add(0, documents, one) for one in (weight, residual))
    error, blocks = _error(_left_out(sums, sizes), "documents")
    worth = float(sizes.abs().sum() ** 2 / sizes.square().sum())
    if not worth < FEW_DOCUMENTS:
        return error, blocks
    return max(found, (error, replace(blocks, count=min(blocks.count, round(worth)))), key=_size)


def _left_out(residual: Tensor, weight: Tensor) -> Tensor:
    """Residuals [n] of units of this `weight` [n] as the jackknife has them, on the scale of units of one size."""
    count = len(weight)
    return residual * ((1 - 1 / count) / (1 - weight / weight.sum()))


def _size(found: tuple[float, Blocks]) -> float:
    return found[0]


def _error(units: Tensor, of: str) -> tuple[float, Blocks]:
    """Standard error of the sum of units [n] in the order of the text."""
    count, length = len(units), block_length(units)
    independent = block_variance(units, 1)
    dependent = independent if length == 1 else _without_bias(units, length)
    if not dependent > independent:
        return math.sqrt(independent), Blocks(count, 1, of, count)
    return math.sqrt(dependent), Blocks(count // length, length, of, count)


def _without_bias(units: Tensor, length: int) -> float:
    """The block variance with what its blocks miss, read off blocks of twice the length."""
    short, double = block_variance(units, length), min(2 * length, len(units) // 2)
    if double <= length:
        return short
    return max(short, (double * block_variance(units, double) - length * short) / (double - length))


def block_variance(units: Tensor, length: int) -> float:
    """Variance of the sum of n units that sum to zero, float64 [n], under the circular block bootstrap.

    In closed form: the mean square of the n sums of `length` neighbours (the last has the first for its neighbour), for
    each of n / length blocks. The factor n / (n - length) makes up for the mean having been taken from the same units:
    with it the value is unbiased for independent units, and with blocks of one the usual n / (n - 1).
    """
    count = len(units)
    if not 1 <= length < count:
        return math.nan
    sums = torch.cat([units.new_zeros(1), torch.cat([units, units[: length - 1]]).cumsum(0)])
    squares = (sums[length:] - sums[:-length]).square().sum()
    return float(squares) / length * (count / (count - length))


def block_length(units: Tensor) -> int:
    """The length of blocks by Politis and White (2004, 2009), rounded up; at most min(3 sqrt(n), n / 3), at least 1.

    Correlations are looked at up to the lag m after which the next few are insignificant, under their flat-top window.
    """
    count = len(units)
    longest = int(min(3 * math.sqrt(count), count / 3))
    if longest < 2:
        return 1
    ahead = max(5, math.ceil(math.sqrt(math.log10(count))))
    farthest = min(math.ceil(math.sqrt(count)) + ahead, count - 1)
    covariance = _autocovariance(units, min(farthest + ahead, count - 1))
    if not float(covariance[0]) > 0.0:
        return 1
    lag = _last_lag(covariance[1:] / covariance[0], 2 * math.sqrt(math.log10(count) / count), ahead, farthest)
    if lag == 0:
        return 1
    lags = torch.arange(min(2 * lag, farthest) + 1, dtype=units.dtype)
    window = (2 * (1 - lags / lags[-1])).clamp(max=1.0)
    windowed = window * covariance[: len(lags)]
    spectrum = float(2 * windowed.sum() - windowed[0])  # at frequency 0
    slope = float(2 * (lags * windowed).sum())
    if spectrum <= 0.0:
        return longest
    best = (2 * slope**2 / (4 / 3 * spectrum**2) * count) ** (1 / 3)
    return max(1, min(math.ceil(best), longest))


def _last_lag(correlation: Tensor, limit: float, ahead: int, farthest: int) -> int:
    """The smallest lag after which `ahead` correlations lie within `limit`; `correlation[0]` is that of lag 1."""
    outside = [lag for lag, one in enumerate(correlation.abs().tolist(), 1) if one >= limit]
    last = 0
    for lag in outside:
        if lag > last + ahead:
            break
        last = lag
    return min(last, farthest)


def _autocovariance(units: Tensor, lags: int) -> Tensor:
    """[lags + 1] autocovariances of units [n] about their mean, divided by n."""
    count = len(units)
    transformed = torch.fft.rfft(units - units.mean(), 2 * count)
    return torch.fft.irfft(transformed.abs().square(), 2 * count)[: lags + 1] / count
