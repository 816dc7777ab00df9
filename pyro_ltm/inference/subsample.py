"""A stretch of the tokens for one fast step: the head reads only those, and each layer only what they can see."""

from __future__ import annotations

import dataclasses
import random

from pyro_ltm.noise import fold
from pyro_ltm.types import Batch


def subsampled(batch: Batch, every: int, *, step: int, seed: int) -> Batch:
    """`batch` with one of `every` equal stretches of its tokens, each token counting for `every`.

    So a plate of tokens would scale its subsample: the log-likelihood, and with it every bound that is linear in it,
    has the right expectation and gradient. Stretches come in a random order, and all of them before one comes again
    (random reshuffling: the mean over `every` steps in a row has no error from the choice). A stretch, and not tokens
    from all over, because what lies beyond its windows need not be computed at all: with short windows a step costs
    1 / `every`, in every layer. All sequences share it; what one draws does not depend on the others.

    Args:
        step: fast steps before this one.
    """
    parts = min(every, batch.length)
    turn, place = divmod(step, parts)
    chosen = random.Random(fold(seed, "tokens", turn)).sample(range(parts), parts)[place]
    first, last = (index * batch.length // parts for index in (chosen, chosen + 1))
    return dataclasses.replace(batch, stretch=slice(first, last), weight=parts)
