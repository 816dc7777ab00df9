"""A figure of a corpus: total nats over total tokens, its standard error, and what differences need."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Nats a token of S sequences.

    Attributes:
        nats_per_token: total nats / total tokens. nats_per_token_stderr: its standard error over sequences.
        tokens: how many were scored.
        sequence_nats, sequence_tokens: float64 [S], of each sequence; not in `plain`.
    """

    nats_per_token: float
    nats_per_token_stderr: float
    tokens: int
    sequence_nats: Tensor = field(repr=False, compare=False)
    sequence_tokens: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, nats: Tensor, tokens: Tensor, **more: Any) -> Any:
        """The figure of sequences whose nats and tokens are [S]."""
        nats, tokens = nats.double().cpu(), tokens.double().cpu()
        total = float(tokens.sum())
        return cls(
            nats_per_token=float(nats.sum()) / total if total else math.nan,
            nats_per_token_stderr=ratio_stderr(nats, tokens),
            tokens=int(total),
            sequence_nats=nats,
            sequence_tokens=tokens,
            **more,
        )


@dataclass(frozen=True)
class Difference:
    """How many nats a token one figure lies below another on the same tokens, with the paired standard error."""

    nats_per_token: float
    stderr: float


def difference(higher: Tensor, lower: Tensor, tokens: Tensor) -> Difference:
    """(sum(higher) - sum(lower)) / sum(tokens) of nats [S] of the same sequences, paired."""
    gap = higher.double() - lower.double()
    return Difference(float(gap.sum() / tokens.sum()), ratio_stderr(gap, tokens.double()))


@dataclass(frozen=True)
class Share:
    """What share one distance has of another, with its standard error over sequences."""

    share: float
    stderr: float


def share(part: Tensor, whole: Tensor) -> Share:
    """sum(part) / sum(whole) of nats [S] of the same sequences."""
    part, whole = part.double(), whole.double()
    return Share(float(part.sum() / whole.sum()), ratio_stderr(part, whole))


def ratio_stderr(nats: Tensor, tokens: Tensor) -> float:
    """Standard error of sum(nats) / sum(tokens) over sequences [S] (linearized ratio); NaN where one alone has any."""
    count = len(nats)
    if int(((nats != 0) | (tokens != 0)).sum()) < 2:
        return math.nan
    residual = nats - tokens * (nats.sum() / tokens.sum())
    return float((residual.square().sum() * count / (count - 1)).sqrt() / tokens.sum())


def plain(result: Any) -> dict[str, Any]:
    """A dataclass as a dictionary for JSON: figures that are not known are None, tensors are left out."""

    def one(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if dataclasses.is_dataclass(value):
            return plain(value)
        if isinstance(value, dict):
            return {name: one(entry) for name, entry in value.items()}
        return [one(entry) for entry in value] if isinstance(value, list | tuple) else value

    fields = {entry.name: getattr(result, entry.name) for entry in dataclasses.fields(result)}
    return {name: one(value) for name, value in fields.items() if not isinstance(value, torch.Tensor)}
