"""Simulation-based calibration: is the truth, in texts that the model wrote, where q says that it is?

Texts with known thoughts are drawn from the program itself. Under exact posteriors the true thoughts are one more draw
of q, so their rank among draws is uniform, in every statistic (Talts et al., arXiv:1804.06788; statistics of the data
as well: Modrák et al., arXiv:2211.02383).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import Noise, draw, fold
from pyro_ltm.scores.ais import start_of
from pyro_ltm.scores.estimate import Count, plain
from pyro_ltm.scores.own_texts import Written
from pyro_ltm.types import Batch, evaluating

LEVELS = (0.5, 0.8, 0.9)
"""Of central intervals whose coverage is measured."""
MOST_BINS, LEAST_IN_BIN, DIRECTIONS = 20, 5, 4
"""Bins of a histogram; texts that each expects; random directions in which thoughts are looked at."""


@dataclass(frozen=True, kw_only=True)
class RankTest:
    """Ranks of the truth in one statistic: `histogram`, texts a bin, and the chi-square p-value of their uniformity."""

    statistic: str
    histogram: list[int]
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Share of the numbers in thoughts that lie in q's central interval of this `level`, and its error over texts."""

    level: float
    share: float
    stderr: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Figures of q by the ranks of the truth under it.

    Attributes:
        tests: one a statistic: log likelihood, squared length of each layer's thoughts, random directions.
        p_value: the smallest of theirs, times their number: how likely exact posteriors are to look so wrong.
        coverage: of central intervals of single numbers, over all of them.
        spread: twelve times the mean square of rank / draws - 1/2 of single numbers: 1 where q is as wide as it
            should be, above where it is too narrow or beside the truth, below where it is too wide. spread_stderr.
        histogram: ranks of all single numbers, as shares; those of one text depend on one another.
        texts, tokens, draws, guide, fast_steps, seed: how it was measured.
    """

    tests: list[RankTest]
    p_value: float
    coverage: list[Coverage]
    spread: float
    spread_stderr: float
    histogram: list[float]
    texts: int
    tokens: int
    draws: int
    guide: str
    fast_steps: int
    seed: int
    ranks: dict[str, Tensor] = field(repr=False, compare=False)

    @property
    def verdict(self) -> str:
        """A conclusion in words."""
        off = (self.spread - 1) / self.spread_stderr if self.spread_stderr else math.nan
        if abs(off) > 3:
            return "q is too narrow, or beside the truth" if off > 0 else "q is too wide"
        if self.p_value < 0.01:
            return "q is not the posterior, though its widths are about right"
        return "no fault found with so many texts"

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary for JSON; figures that are not known are None."""
        return {**plain(self), "verdict": self.verdict}


@torch.no_grad()
def evaluate_calibration(
    model: LatentThoughtModel,
    written: Iterable[Written],
    loop: FastLoop,
    *,
    layers: int,
    draws: int = 99,
    seed: int = 0,
    progress: Count | None = None,
) -> Calibration:
    """Fits q to each text and ranks the thoughts that it was written from among draws of q.

    Args:
        written: texts of the model itself (`write_texts`). layers: in which thoughts are looked at apart.
        draws: K of each posterior; ranks are 0 to K. Each is a decoder pass. progress: called after each batch.

    Raises:
        UserError: q is a point; fewer than 10 texts, or draws whose ranks fall into no bins of equal size.
    """
    found: dict[str, list[Tensor]] = {}
    tokens = texts = 0
    with evaluating(model):
        for read, thoughts in written:
            batch = model.precompute(read)
            for name, rank in _ranks(model, batch, thoughts, loop, layers=layers, draws=draws, seed=seed).items():
                found.setdefault(name, []).append(rank.cpu())
            tokens, texts = tokens + int(batch.tokens()), texts + batch.size
            if progress:
                progress(texts, math.nan)
    ranks = {name: torch.cat(some) for name, some in found.items()}
    bins = bins_of(draws, texts)
    single = ranks["single numbers"]
    tests = [_test(name, rank, draws, bins) for name, rank in ranks.items() if rank is not single]
    off = ((single.double() + 0.5) / (draws + 1) - 0.5).square().flatten(1).mean(1)
    spread = 12 * off / (1 - 1 / (draws + 1) ** 2)
    return Calibration(
        tests=tests,
        p_value=min(1.0, len(tests) * min(test.p_value for test in tests)),
        coverage=[_coverage(single, draws, level) for level in LEVELS],
        spread=float(spread.mean()),
        spread_stderr=_error(spread),
        histogram=(_histogram(single, draws, bins).double() / single.numel()).tolist(),
        texts=texts,
        tokens=tokens,
        draws=draws,
        guide=type(loop.guide).__name__,
        fast_steps=loop.steps,
        seed=seed,
        ranks=ranks,
    )


def _ranks(
    model: LatentThoughtModel,
    batch: Batch,
    thoughts: Tensor,
    loop: FastLoop,
    *,
    layers: int,
    draws: int,
    seed: int,
) -> dict[str, Tensor]:
    """Of each statistic [B, ...] of the true `thoughts` [B, N, D]: how many of q's draws lie below it; ties by lot."""
    q = start_of(model, batch, loop, "q", seed)
    target = LogJoint(model, batch)
    noise = Noise(batch.ids, device=batch.device, seed=fold(seed, "ranks"))
    truth = _statistics(target, thoughts, layers)
    below = {name: torch.zeros_like(value, dtype=torch.int64) for name, value in truth.items()}
    ties = {name: torch.zeros_like(count) for name, count in below.items()}
    for _ in range(draws):  # one at a time, so that memory does not grow with them
        for name, value in _statistics(target, draw(q, noise), layers).items():
            below[name] += value < truth[name]
            ties[name] += value == truth[name]
    for name, count in ties.items():
        lot = torch.special.ndtr(noise.normal(count.shape, event_dims=count.dim() - 1))
        below[name] += (lot * (count + 1)).long().clamp(max=count)
    return below


def _statistics(target: LogJoint, z: Tensor, layers: int) -> dict[str, Tensor]:
    """Statistics [B] of thoughts z [B, N, D], and the single numbers of z themselves."""
    found = {"log likelihood": target.parts(z)[0]}
    for layer, part in enumerate(z.chunk(layers, dim=1), 1):
        found[f"squared length, layer {layer}"] = part.square().sum((-2, -1))
    generator = torch.Generator().manual_seed(0)
    for number in range(1, DIRECTIONS + 1):
        direction = torch.randn(z.shape[1:], generator=generator, dtype=torch.float64).to(z)
        found[f"direction {number}"] = (z * direction).sum((-2, -1))
    return found | {"single numbers": z}


def bins_of(draws: int, texts: int) -> int:
    """As many bins of equal size as ranks and texts allow. Raises UserError where there are none."""
    most = min(MOST_BINS, texts // LEAST_IN_BIN)
    fitting = [bins for bins in range(2, most + 1) if (draws + 1) % bins == 0]
    if not fitting:
        raise UserError(
            f"{texts} texts, {draws} draws: at least {2 * LEAST_IN_BIN} texts, and draws + 1 with a divisor from 2 to "
            f"{MOST_BINS}, such as 99 draws"
        )
    return fitting[-1]


def _histogram(ranks: Tensor, draws: int, bins: int) -> Tensor:
    return torch.bincount(ranks.flatten() * bins // (draws + 1), minlength=bins)


def _test(name: str, ranks: Tensor, draws: int, bins: int) -> RankTest:
    counts = _histogram(ranks, draws, bins)
    expected = len(ranks) / bins
    statistic = (counts.double() - expected).square().sum() / expected
    above = torch.special.gammaincc(torch.tensor((bins - 1) / 2, dtype=torch.float64), statistic / 2)
    return RankTest(statistic=name, histogram=counts.tolist(), p_value=float(above))


def _coverage(ranks: Tensor, draws: int, level: float) -> Coverage:
    """Of the central interval of ranks whose level is nearest to `level`."""
    outside = max(1, round((1 - level) * (draws + 1) / 2))  # ranks on either side
    inside = ((ranks >= outside) & (ranks <= draws - outside)).double().flatten(1).mean(1)
    return Coverage(level=1 - 2 * outside / (draws + 1), share=float(inside.mean()), stderr=_error(inside))


def _error(values: Tensor) -> float:
    """Standard error of the mean of independent values."""
    return float(values.std() / math.sqrt(len(values)))
