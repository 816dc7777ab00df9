"""The exchange rate: nats of distortion that thoughts save, for each nat of their rate.

What they save is counted from what the texts cost without thoughts: under the twin, where one is scored on the same
tokens, and under the same decoder where it reads no thoughts, so that its cross-attention adds nothing. Against the
twin it says what thoughts do to the likelihood: the bound lies rate * (exchange rate - 1) nats below the twin's figure,
so it is lower exactly where the exchange rate is above 1. Against the own decoder it flatters, for a decoder that leans
on its thoughts is worse without them than one that never had any; but it needs no second run.

It is not counted from thoughts of the prior or of another sequence. Wrong thoughts mislead, and that is no saving: for
the exact posterior, E_p[-log p(x | z)] >= -log p(x) = distortion + rate, so that this would be at least 1 whatever the
thoughts waste.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.scores.dependence import Blocks, Places
from pyro_ltm.scores.estimate import ratio_error
from pyro_ltm.types import Batch

LEAST_RATE = 0.1
"""Nats a sequence; what is saved by less is noise divided by nearly nothing."""


@dataclass(frozen=True)
class ExchangeRate:
    """Nats of distortion saved a nat of rate; its standard error, paired by sequence, and over what that was taken.

    The error is None for a single sequence.
    """

    nats_per_nat: float
    stderr: float | None
    blocks: Blocks


def exchange_rate(without: Tensor, distortion: Tensor, rate: Tensor, places: Places | None) -> ExchangeRate | None:
    """(sum(without) - sum(distortion)) / sum(rate) of the same sequences, nats [S] each.

    None below `LEAST_RATE`: see `why_no_exchange_rate`. `places` as in `Figure`.
    """
    if why_no_exchange_rate(rate):
        return None
    saved, rate = without.double() - distortion.double(), rate.double()
    error = ratio_error(saved, rate, places)
    stderr = error.stderr if math.isfinite(error.stderr) else None
    return ExchangeRate(float(saved.sum() / rate.sum()), stderr, error.blocks)


def nats_without_thoughts(model: Any, batch: Batch, thoughts: Tensor) -> Tensor:
    """[B] -log p of the batch's tokens where the decoder reads none of its `thoughts` [B, N, D], float64."""
    if isinstance(getattr(model, "decoder", None), TokenDecoder):
        # Not from thoughts of zero: of these a transport prior's map makes others.
        return -model.log_prob_without_thoughts(batch).double()
    # A decoder of one's own need not write without thoughts.
    return -LogJoint(model, batch).parts(torch.zeros_like(thoughts))[0].double()


def why_no_exchange_rate(rate: Tensor) -> str:
    """Why thoughts of this rate, nats [S], have no exchange rate; empty where they have one."""
    mean = float(rate.double().mean())
    if mean >= LEAST_RATE:
        return ""
    return f"the rate is {mean:.2g} nats a sequence, and below {LEAST_RATE} there is nothing to divide by"
