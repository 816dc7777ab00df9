"""Importance weights of many draws: the bounds that they give, and how many of the draws count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CurvePoint:
    """The importance-weighted bound with so many draws: an upper bound on the nats a token, and its standard error."""

    particles: int
    nats_per_token: float
    stderr: float


def doublings(particles: int) -> list[int]:
    """1, 2, 4, ... up to and with `particles`."""
    return sorted({1 << power for power in range(particles.bit_length()) if 1 << power <= particles} | {particles})


def importance_nats(log_weight: Tensor, particles: int) -> Tensor:
    """[B] minus the importance-weighted bound with `particles` draws (arXiv:1509.00519), for log weights [K, B].

    The mean over the K / particles groups of draws that share none, so that each is an unbiased estimate of its own
    bound, and with all draws the lowest in expectation.
    """
    groups = len(log_weight) // particles
    grouped = log_weight[: groups * particles].unflatten(0, (groups, particles))
    return -(torch.logsumexp(grouped, 1) - math.log(particles)).mean(0)


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """[B] how many of K draws count, (sum w)^2 / sum w^2, for log weights [K, B]: K for equal weights, 1 for one."""
    return (2 * torch.logsumexp(log_weight, 0) - torch.logsumexp(2 * log_weight, 0)).exp()
