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


def with_gradients(hidden: Tensor, weight: Tensor, tokens: Tensor, cap: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [R], logs of the sums under them [R], and gradients [R, D], by torch's fused attention kernel.

    The gradient of log p(token) is W[token] less the mean of W under the softmax: what attention computes where
    the hidden states are queries and the vocabulary is both keys and values; and the kernel gives the log of the sum,
    too. It has no cap.
    """
    if cap:
        return _capped_with_gradients(hidden, weight, tokens, cap)
    vocabulary, queries = readable(weight.detach())[None, None], readable(hidden.detach())[None, None]
    mean, log_sums = FUSED(queries, vocabulary, vocabulary, 0.0, False, scale=1.0)
    own = weight[tokens]
    log_probs = _log_probs(hidden, own, log_sums[0, 0])
    return log_probs, log_sums[0, 0], own.sub_(mean[0, 0])


def _capped_with_gradients(hidden: Tensor, weight: Tensor, tokens: Tensor, cap: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same of capped logits, c tanh(x / c): each row of W counts by the slope of its cap, 1 - tanh(x / c)^2.

    A sum over the vocabulary grows by a block at a time, on a scale that follows the largest logit so far.
    """
    blocks, log_sums, means = weight.detach().split(_columns(hidden)), [], []
    with torch.autocast("cpu", enabled=False):
        for rows in hidden.detach().split(POSITIONS):
            most, total = rows.new_full((len(rows), 1), -torch.inf), rows.new_zeros(len(rows), 1)
            mean = torch.zeros_like(rows)
            for block in blocks:
                turned = (rows @ block.t()).div_(cap).tanh_()
                logits = turned * cap
                largest = torch.maximum(most, logits.amax(-1, keepdim=True))
                shrink, parts = (most - largest).exp_(), logits.sub_(largest).exp_()
                total.mul_(shrink).add_(parts.sum(-1, keepdim=True))
                mean.mul_(shrink).addmm_(parts.mul_(turned.square_().neg_().add_(1)), block)
                most = largest
            log_sums.append((most + total.log())[:, 0])
            means.append(mean.div_(total))
    own, log_sum = weight.detach()[tokens], torch.cat(log_sums)
    log_probs = _log_probs(hidden, own, log_sum, cap)
    return log_probs, log_sum, own.mul_(_slope(hidden, own, cap)[:, None]).sub_(torch.cat(means))


def values(hidden: Tensor, weight: Tensor, tokens: Tensor, cap: float = 0.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities [R] alone, and the logs of the sums under them [R]."""
    blocks = weight.split(_columns(hidden))
    with torch.autocast("cpu", enabled=False):  # of whoever calls; the precision is that of `hidden`
        log_sums = torch.cat(
            [
                torch.stack([capped(rows @ block.t(), cap).logsumexp(-1) for block in blocks]).logsumexp(0)
                for rows in hidden.split(POSITIONS)
            ]
        )
    return _log_probs(hidden, weight[tokens], log_sums, cap), log_sums


def to_weight(
    hidden: Tensor, weight: Tensor, tokens: Tensor, weights: Tensor, log_sums: Tensor, cap: float = 0.0
) -> Tensor:
    """[V, D]: sum over positions of `weights` [R] times (one-hot - probabilities) hidden^T."""
    counted = hidden * weights[:, None]
    slope, less = torch.empty_like(weight), -counted
    columns = _columns(hidden)
    for block, its in zip(weight.split(columns), slope.split(columns), strict=True):
        keep = 0  # the first positions write, the others add
        for rows, parts, sums in zip(*(each.split(POSITIONS) for each in (hidden, less, log_sums)), strict=True):
            with torch.autocast("cpu", enabled=False):
                logits = block @ rows.t()
                probabilities = _sloped(logits, sums, cap) if cap else logits.sub_(sums).exp_()
            its.addmm_(probabilities, parts, beta=keep)
            keep = 1
    if cap:
        counted = counted * _slope(hidden, weight[tokens], cap)[:, None]
    return slope.index_add_(0, tokens, counted)


def _sloped(logits: Tensor, log_sums: Tensor, cap: float) -> Tensor:
    """Probabilities times the slope of the cap, of `logits` as they were before it."""
    turned = logits.div_(cap).tanh_()
    probabilities = (turned * cap).sub_(log_sums).exp_()
    return probabilities.mul_(turned.square_().neg_().add_(1))


def capped(logits: Tensor, cap: float) -> Tensor:
    """Capped `logits`, c tanh(x / c) (Gemma 2, arXiv:2408.00118), in their memory; as they are where c is 0."""
    return logits.div_(cap).tanh_().mul_(cap) if cap else logits


def _slope(hidden: Tensor, own: Tensor, cap: float) -> Tensor:
    """The slope of the cap at each token's own logit, [R]."""
    return 1 - ((hidden * own).sum(-1) / cap).tanh().square()


def _columns(hidden: Tensor) -> int:
    """Of the vocabulary in one tile."""
    return LOGITS // min(len(hidden), POSITIONS)


def _log_probs(hidden: Tensor, own: Tensor, log_sums: Tensor, cap: float = 0.0) -> Tensor:
    # The token's own logit adds up in another order than in the sum: off by a rounding of its size, also above the sum.
    return (capped((hidden * own).sum(-1), cap) - log_sums).clamp_(max=0)
