"""Have a sampler's chains come to the posterior? R-hat and effective sample size, through ArviZ (extra `arviz`).

Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and localization: an improved R-hat",
arXiv:1903.08008.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.inference.posterior import ARVIZ

CLOSE = 1.01
"""R-hat up to which chains agree (arXiv:1903.08008)."""
NUMBERS = 32
"""Numbers of a sequence's thoughts that are looked at, evenly spaced, beside the squared length of all."""
LEAST_DRAWS = 4
TAIL = (0.05, 0.95)
"""Quantiles whose sample sizes are those of the tails (arXiv:1903.08008)."""
CHAIN_FIGURES = ("rhat", "ess_bulk", "ess_tail")


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """How far the chains of a sampler have come. Of each sequence the worst of the numbers that are looked at.

    Attributes:
        rhat, ess_bulk, ess_tail: medians over sequences; None where they are not known or infinite: chains that do
            not move. share_above: of sequences whose R-hat is above 1.01.
        chains, draws: of each sequence, after the warm-up. rhat_by_sequence: of each.
    """

    rhat: float | None
    ess_bulk: float | None
    ess_tail: float | None
    share_above: float
    chains: int
    draws: int
    rhat_by_sequence: list[float | None] = field(default_factory=list)

    @classmethod
    def of(cls, figures: Mapping[str, Tensor], *, chains: int, draws: int) -> Convergence:
        """Summary of what `chain_figures` found of each sequence."""
        medians = {name: _finite(float(figures[name].median())) for name in CHAIN_FIGURES}
        rhat = figures["rhat"]
        return cls(
            **medians,
            share_above=float((rhat > CLOSE).double().mean()),
            chains=chains,
            draws=draws,
            rhat_by_sequence=[_finite(value) for value in rhat.tolist()],
        )

    def __str__(self) -> str:
        rhat = "not known" if self.rhat is None else f"{self.rhat:.3f}"
        sizes = " and ".join("-" if size is None else f"{size:.0f}" for size in (self.ess_bulk, self.ess_tail))
        return (
            f"R-hat {rhat} at the median sequence, above {CLOSE} in {self.share_above:.0%}; of {self.chains} x "
            f"{self.draws} draws {sizes} count (bulk and tail)"
        )


def chain_figures(chains: Tensor) -> dict[str, Tensor]:
    """`CHAIN_FIGURES` [B] of chains [C, S, B, N, D]: the largest R-hat and smallest sample sizes of a sequence.

    R-hat is infinite, and sample sizes zero, where a chain does not move.

    Raises:
        UserError: the extra `arviz` is not installed, or fewer than `LEAST_DRAWS` draws.
    """
    stats = array_stats()
    if chains.shape[1] < LEAST_DRAWS:
        raise UserError(f"R-hat of {chains.shape[1]} draws a chain: at least {LEAST_DRAWS}; give more fast steps")
    flat = chains.double().flatten(3)  # [C, S, B, N D]
    step = max(1, math.ceil(flat.shape[-1] / NUMBERS))
    looked = torch.cat([flat[..., ::step], flat.square().sum(-1, keepdim=True)], -1)
    values = looked.permute(2, 3, 0, 1).cpu().numpy()  # [B, Q, C, S]
    with np.errstate(all="ignore"):  # of chains that do not move
        rhat = torch.as_tensor(stats.rhat(values)).nan_to_num(nan=math.inf)
        bulk, tail = stats.ess(values, method="bulk"), stats.ess(values, method="tail", prob=TAIL)
    sizes = {"ess_bulk": torch.as_tensor(bulk), "ess_tail": torch.as_tensor(tail)}
    return {"rhat": rhat.amax(1)} | {name: size.nan_to_num(nan=0.0).amin(1) for name, size in sizes.items()}


def array_stats() -> Any:
    """ArviZ's statistics of arrays. Raises UserError where the extra `arviz` is not installed."""
    try:
        from arviz_stats.base import array_stats as stats
    except ModuleNotFoundError as error:
        raise UserError(f"R-hat needs another package ({error.name}): {ARVIZ}") from None
    return stats


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
