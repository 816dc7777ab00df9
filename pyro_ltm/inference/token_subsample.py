"""A stretch of the tokens for one fast step: the head reads only that, and each layer only what it can see."""

from __future__ import annotations

import dataclasses
import random

from pyro_ltm.noise import fold
from pyro_ltm.types import Batch


def subsampled(batch: Batch, every: int, *, step: int, seed: int) -> Batch:
    """`batch` with one of `every` equal stretches of its tokens, each token counting for `every`.

    So a plate of tokens would scale its subsample: at given parameters each stretch is as likely as any other, so that
    the log-likelihood, every bound that is linear in it and their gradients are right on average.

    Stretches come in a random order, and all of them before one comes again: a round of `every` steps has no error from
    the choice at fixed parameters. Within a round, though, what is still to come is what the fit has not seen yet:
    given the steps before it, a step of a round is not unbiased.

    A stretch, and not tokens from all over, because what lies beyond its windows need not be computed at all: with
    short windows a step costs 1 / `every`, in every layer (but the first one's self-attention, where an encoder learns
    through the fit). Sequences share it, so that in a batch of unlike lengths the stretches of one depend on the
    longest.

    Args:
        every: stretches in a round; no more than there are tokens.
        step: fast steps before this one.
        seed: of the order of the stretches, the same for all sequences.
    """
    parts = min(every, batch.length)
    turn, place = divmod(step, parts)
    chosen = random.Random(fold(seed, "tokens", turn)).sample(range(parts), parts)[place]
    first, last = (index * batch.length // parts for index in (chosen, chosen + 1))
    return dataclasses.replace(batch, token_slice=slice(first, last), token_scale=parts)
