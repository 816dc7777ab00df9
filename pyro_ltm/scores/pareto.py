"""Pareto k: whether the importance weights of a sequence have a tail that a bound with so many draws can trust.

Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", arXiv:1507.02646v9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

LEAST_TAIL = 5
"""Weights in the tail below which nothing is fitted to it."""
LEAST_DRAWS = 21
"""Draws whose largest fifth has `LEAST_TAIL` weights."""


def tail_size(draws: int) -> int:
    """How many of the largest weights are the tail: a fifth of the draws, or three times their root if that is less."""
    return math.ceil(min(0.2 * draws, 3 * math.sqrt(draws)))


def threshold(draws: int) -> float:
    """The k up to which so many draws give a reliable estimate: min(1 - 1 / log10(draws), 0.7)."""
    return min(1 - 1 / math.log10(draws), 0.7)


def pareto_k(log_weight: Tensor) -> Tensor:
    """[B] shape k of a generalized Pareto distribution fitted to the largest of K weights, for log weights [K, B].

    The weights have 1 / k moments. Zero where all weights of the tail are equal, as those of the exact posterior; by
    Hill's estimate where they span more than floating-point numbers do.

    Raises:
        ValueError: fewer than `LEAST_DRAWS` draws.
    """
    draws = len(log_weight)
    if draws < LEAST_DRAWS:
        raise ValueError(f"Pareto k of {draws} draws: at least {LEAST_DRAWS}")
    size = tail_size(draws)
    ordered = log_weight.double().sort(0).values
    tail, below = ordered[-size:], ordered[-size - 1]
    excess = (tail - ordered[-1]).exp() - (below - ordered[-1]).exp()
    equal, spans = excess[-1] == 0, excess[_quartile(size)] == 0
    return torch.where(equal, 0.0, torch.where(spans, (tail - below).mean(0), _shape(excess)))


def _quartile(size: int) -> int:
    """Index of the first quartile of so many numbers in order."""
    return int(size / 4 + 0.5) - 1


def _shape(excess: Tensor) -> Tensor:
    """[B] k of ascending excesses [M, B] over a threshold: Zhang and Stephens 2009, drawn to 1/2 as by ten more."""
    size = len(excess)
    count = 30 + int(math.sqrt(size))
    grid = 1 - torch.sqrt(count / (torch.arange(1, count + 1).to(excess) - 0.5))
    theta = grid[:, None] / (3 * excess[_quartile(size)]) + 1 / excess[-1]  # [J, B]
    shape = torch.log1p(-theta[:, None] * excess).mean(1)
    share = (size * (torch.log(-theta / shape) - shape - 1)).softmax(0)
    found = torch.log1p(-(share * theta).sum(0) * excess).mean(0)
    return (size * found + 10 * 0.5) / (size + 10)


@dataclass(frozen=True, kw_only=True)
class ParetoK:
    """Pareto k of each sequence's importance weights. Above its threshold, more draws would still move the bound.

    Attributes:
        median, largest: over sequences. threshold: for so many draws. share_above: of sequences above the threshold.
        by_sequence: of each.
    """

    median: float
    largest: float
    threshold: float
    share_above: float
    by_sequence: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, values: Tensor, draws: int) -> ParetoK:
        """Summary of the k [S] of sequences with so many draws each."""
        limit = threshold(draws)
        return cls(
            median=float(values.median()),
            largest=float(values.max()),
            threshold=limit,
            share_above=float((values > limit).double().mean()),
            by_sequence=values.tolist(),
        )


def why_no_pareto_k(draws: int, thoughts: int) -> str:
    """Why weights of so many draws have no Pareto k; empty where they have one."""
    if not thoughts:
        return "without thoughts all weights are equal"
    return "" if draws >= LEAST_DRAWS else f"{draws} draws are too few for a tail: at least {LEAST_DRAWS}"
