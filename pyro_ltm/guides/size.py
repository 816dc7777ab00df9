"""How large a posterior family may be."""

from __future__ import annotations

from pyro_ltm.errors import UserError

MOST_NUMBERS = 1 << 22
"""Local parameters of one sequence: 16 MiB in float32, of which the fast loop holds a few copies for each sequence."""


def check_size(family: str, numbers: int, instead: str) -> None:
    """Raises UserError when a sequence's posterior would have more than `MOST_NUMBERS` local parameters."""
    if numbers > MOST_NUMBERS:
        raise UserError(
            f"guide: {family} keeps {numbers:,} numbers for each sequence, at most {MOST_NUMBERS:,} go: {instead}"
        )
