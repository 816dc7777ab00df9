"""Figures as text."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}{unit}"


def plus_minus(value: float | None, stderr: float | None, digits: int = 3) -> str:
    """A figure and its standard error, where that is known."""
    return number(value, digits) + ("" if stderr is None else f" ± {stderr:.{digits}f}")
