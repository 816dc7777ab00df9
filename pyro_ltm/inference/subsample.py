"""A sample of the tokens for one fast step: the head, more than half of a step's work, reads only those."""

from __future__ import annotations

import dataclasses

import torch

from pyro_ltm.noise import Noise
from pyro_ltm.types import Batch


def subsampled(batch: Batch, every: int, noise: Noise) -> Batch:
    """`batch` with one token drawn from each `every` in a row, each counting for `every`.

    So a plate of tokens would scale its subsample: the log-likelihood, and with it every bound that is linear in it,
    has the right expectation and gradient. One from each stretch, and not so many from all, because neighbours are
    alike: the estimate varies less. Each token has the same chance, the last stretch's too: where it is cut short, a
    draw beyond the end counts nothing.

    Args:
        noise: of the sequences of `batch`; what a sequence draws does not depend on the others.
    """
    length = batch.length
    stretches = -(-length // every)
    uniform = torch.special.ndtr(noise.normal(torch.Size([batch.size, stretches]), event_dims=1))
    within = (uniform * every).long().clamp(max=every - 1)
    positions = torch.arange(stretches, device=within.device) * every + within
    weights = every * (positions < length).to(uniform.dtype)
    return dataclasses.replace(batch, positions=positions.clamp(max=length - 1), weights=weights)
