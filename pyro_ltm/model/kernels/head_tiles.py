"""The vocabulary head in single or double precision on a CPU: positions against the vocabulary, a tile at a time.

A tile's logits stay in the processor's cache. Whole rows of logits do not, and a product that writes rows so long
takes up to three times as long.

Shapes: R positions, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ltm.model.kernels.attention import FUSED, readable

POSITIONS, LOGITS = 1 << 10, 1 << 20
"""At most so many positions, and logits, in one tile."""


def with_gradients(hidden: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [R], logs of the sums under them [R], and gradients [R, D], by torch's fused attention kernel.

    The gradient of log p(token) is W[token] less the mean of W under the softmax: what attention computes where
    the hidden states are queries and the vocabulary is both keys and values; and the kernel gives the log of the sum,
    too.
    """
    vocabulary, queries = readable(weight.detach())[None, None], readable(hidden.detach())[None, None]
    mean, log_sums = FUSED(queries, vocabulary, vocabulary, 0.0, False, scale=1.0)
    own = weight[tokens]
    log_probs = _log_probs(hidden, own, log_sums[0, 0])
    return log_probs, log_sums[0, 0], own.sub_(mean[0, 0])


def values(hidden: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [R] alone, and the logs of the sums under them [R]."""
    blocks = weight.split(_columns(hidden))
    with torch.autocast("cpu", enabled=False):  # of whoever calls; the precision is that of `hidden`
        log_sums = torch.cat(
            [
                torch.stack([(rows @ block.t()).logsumexp(-1) for block in blocks]).logsumexp(0)
                for rows in hidden.split(POSITIONS)
            ]
        )
    return _log_probs(hidden, weight[tokens], log_sums), log_sums


def to_weight(hidden: Tensor, weight: Tensor, tokens: Tensor, weights: Tensor, log_sums: Tensor) -> Tensor:
    """[V, D]: sum over positions of `weights` [R] times (one-hot - probabilities) hidden^T."""
    counted = hidden * weights[:, None]
    slope, less = torch.empty_like(weight), -counted
    columns = _columns(hidden)
    for block, its in zip(weight.split(columns), slope.split(columns), strict=True):
        keep = 0  # the first positions write, the others add
        for rows, parts, sums in zip(*(each.split(POSITIONS) for each in (hidden, less, log_sums)), strict=True):
            with torch.autocast("cpu", enabled=False):
                probabilities = (block @ rows.t()).sub_(sums).exp_()
            its.addmm_(probabilities, parts, beta=keep)
            keep = 1
    return slope.index_add_(0, tokens, counted)


def _columns(hidden: Tensor) -> int:
    """Of the vocabulary in one tile."""
    return LOGITS // min(len(hidden), POSITIONS)


def _log_probs(hidden: Tensor, own: Tensor, log_sums: Tensor) -> Tensor:
    # The token's own logit adds up in another order than in the sum: off by a rounding of its size, also above the sum.
    return ((hidden * own).sum(-1) - log_sums).clamp_(max=0)
