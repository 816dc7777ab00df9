"""Trainings that will come to nothing: thoughts that nobody reads, and thoughts that run away. Each is said once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_ltm.training.kept import Counters

UNUSED = 0.1
"""Nats that thoughts carry of a sequence, below which they are not used."""

UNUSED_STEPS, RUNAWAY_STEPS = 200, 20
"""Slow steps in a row, with the whole weight of the KL, after which it is no passing thing."""

GROWTH = 4.0
"""A rate that runs away is so many times the lowest so far: one that only begins high (the reference's) is none."""


@dataclass(frozen=True)
class Health:
    """A look at the rate after a slow step; its memory are counters, so that a resumed run says the same.

    Attributes:
        tokens: of a sequence, on average. vocab_size: tokens that there are.
        has_density: of the guide: without one its rate says nothing of how much thoughts carry.
    """

    tokens: float
    vocab_size: int
    has_density: bool = True

    def remark(self, rate: float, counters: Counters) -> str | None:
        """A line on a step with this rate, nats a sequence, where there is something to say."""
        if not math.isfinite(rate):
            return None
        unused = self.has_density and rate < UNUSED
        if counters.unused_in_a_row < UNUSED_STEPS:
            counters.unused_in_a_row = counters.unused_in_a_row + 1 if unused else 0
            if counters.unused_in_a_row == UNUSED_STEPS:
                return (
                    f"thoughts carry less than {UNUSED} nats of a sequence since {UNUSED_STEPS} steps: the decoder "
                    "does without them; in a new run, hold their rate with --rate NATS, or let the decoder learn first "
                    "with --set slow.decoder_warmup=0.2"
                )
        lowest = counters.lowest_rate = min(rate, rate if counters.lowest_rate is None else counters.lowest_rate)
        guessing = self.tokens * math.log(self.vocab_size)
        away = rate > guessing and rate > GROWTH * lowest
        if counters.runaway_in_a_row < RUNAWAY_STEPS:
            counters.runaway_in_a_row = counters.runaway_in_a_row + 1 if away else 0
            if counters.runaway_in_a_row == RUNAWAY_STEPS:
                return (
                    f"thoughts cost {rate:.3g} nats a sequence, {GROWTH:g} times their least and more than guessing "
                    f"every token ({guessing:.3g}): they run away; lower optimizer.lr or slow.lr in a new run"
                )
        return None
