"""Runs in double precision, whose figures and weights are equal but for sums in another order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

EXACT = 1e-9
"""By so much, as a share, figures may differ whose sums are in another order."""


@contextmanager
def double() -> Iterator[None]:
    """Within it new tensors are of double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same_rows(rows: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> None:
    """Of the metrics of two runs, without the seconds."""
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {"seconds"}:
            assert_close(row[key], other[key], (row["kind"], row["step"], key))


def assert_close(value: Any, other: Any, where: object) -> None:
    """All numbers within are equal but for rounding, and all else is equal."""
    if isinstance(value, float):
        assert value == pytest.approx(other, rel=EXACT, abs=EXACT), where
    elif isinstance(value, list):
        for one, another in zip(value, other, strict=True):
            assert_close(one, another, where)
    elif isinstance(value, dict):
        assert_close(list(value.values()), list(other.values()), where)
    else:
        assert value == other, where


def assert_same_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Optimizers divide by what may be small: weights differ by more than figures do."""
    for name, value in expected.items():
        torch.testing.assert_close(
            weights[name], value, rtol=1e-7, atol=1e-9, msg=lambda said, at=name: f"{at}: {said}"
        )
