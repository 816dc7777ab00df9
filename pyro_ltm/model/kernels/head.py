"""The vocabulary head: log-probabilities of given tokens, without ever holding logits for all positions.

With a large vocabulary the head is more than half of a fast step's work, and R x V logits with their gradients most of
its memory. Here positions go in chunks (half precision, and a GPU) or in tiles (`head_tiles`), and where only the
hidden states learn (the fast loop), the gradient is taken while the probabilities are at hand: that of a token's
log-probability is (one-hot - probabilities) W, whatever it is multiplied by later. With capped logits, c tanh(x / c),
each row of W counts by the slope of its cap.

Shapes: R positions, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_ltm.model.kernels import head_tiles
from pyro_ltm.model.kernels.device import device_type

CHUNK, GPU_CHUNK = 1 << 25, 1 << 28
"""Most bytes of logits in memory at a time, on a CPU and on a GPU. Products slow down with fewer positions at once,
and with a number of them that is no power of two."""


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    dtype: torch.dtype | None = None,
    cast: FrozenWeight | None = None,
    compiled: bool = False,
    cap: float = 0.0,
) -> Tensor:
    """Log softmax(hidden W^T)[token] at each position, in nats, [R].

    Shapes:
        hidden: [R, D]. weight: W, [V, D]. tokens: [R] int64.
        dtype: of the two matrix products; that of `weight` when None. Sums are in that of `weight`, and exponentials,
            but for a gradient to `hidden` alone.
        cast: `weight` in that dtype already, where nothing learns from it.
        compiled: the softmax of chunks of logits is compiled.
        cap: c, where the softmax is of c tanh(logits / c); 0: of the logits. Exponentials are then in the dtype of
            `weight` always.
    """
    dtype = dtype or weight.dtype
    log_probs: Tensor = _TokenLogProbs.apply(hidden.to(dtype), weight, tokens, cast, compiled, cap)
    return log_probs


class _TokenLogProbs(torch.autograd.Function):
    """The gradient to `hidden` comes with the value; that to `weight` from chunks, or tiles, done again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, cast: FrozenWeight | None, compiled: bool, cap: float
    ) -> Tensor:
        gradient: Tensor | None = None
        log_sums: Tensor | None = None
        tiles, learns = _in_tiles(hidden, weight), ctx.needs_input_grad[0]
        if tiles and learns:
            log_probs, log_sums, gradient = head_tiles.with_gradients(hidden, weight, tokens, cap)
        elif tiles:
            log_probs, log_sums = head_tiles.values(hidden, weight, tokens, cap)
        else:
            cast = cast or FrozenWeight(weight.detach().to(hidden.dtype))
            if learns:
                log_probs, gradient = _chunked(hidden, weight, tokens, cast, compiled, cap)
            else:
                log_probs = _values(hidden, weight, tokens, cast, cap)
        ctx.cap = cap
        ctx.save_for_backward(hidden, weight, tokens, gradient, log_sums)
        return log_probs

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = outer  # [R]: what each log-probability counts
        hidden, weight, tokens, gradient, log_sums = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return *_differentiable(hidden, weight, tokens, weights, ctx.needs_input_grad, ctx.cap), *[None] * 4
        to_hidden = None if gradient is None else gradient * weights[:, None].to(gradient.dtype)
        to_weight: Tensor | None = None
        if ctx.needs_input_grad[1] and log_sums is not None:
            to_weight = head_tiles.to_weight(hidden, weight, tokens, weights, log_sums, ctx.cap)
        elif ctx.needs_input_grad[1]:
            to_weight = _to_weight(hidden, weight, tokens, weights, ctx.cap)
        return to_hidden, to_weight, *[None] * 4


def _to_weight(hidden: Tensor, weight: Tensor, tokens: Tensor, weights: Tensor, cap: float) -> Tensor:
    """[V, D]: sum over positions of `weights` [R] times (one-hot - probabilities) hidden^T."""
    cast, counted = FrozenWeight(weight.detach().to(hidden.dtype)), hidden * weights[:, None].to(hidden.dtype)
    slope = torch.zeros_like(cast.rows)  # in the precision of the products, as autocast leaves every other gradient
    scratch = _Scratch(hidden, cast, weight.dtype)
    own = torch.empty_like(weights)
    for rows in scratch.chunks:
        if cap:
            logits = scratch.logits(hidden[rows], cast)
            _, probabilities, own[rows] = _capped_softmax(logits, tokens[rows], weight.dtype, cap)
        else:
            _, probabilities = scratch.softmax(hidden[rows], cast)
        slope.addmm_(probabilities.t(), counted[rows], alpha=-1)
    counted = counted.to(weight.dtype) * own[:, None] if cap else counted.to(weight.dtype)
    return slope[: len(weight)].to(weight.dtype).index_add_(0, tokens, counted)


def _in_tiles(hidden: Tensor, weight: Tensor) -> bool:
    # In half precision the fused kernel is slower than the products alone.
    return device_type(hidden) == "cpu" and hidden.dtype == weight.dtype != torch.bfloat16 and len(hidden) > 0


class FrozenWeight:
    """The head's weight in the precision of its products, for passes through which it does not learn.

    Args:
        matrix: [V, D].
        many: passes enough that it pays to keep one's chunks of memory for the next, and to pack bfloat16 in the
            order in which the processor's library reads it, which takes its memory once more.

    Attributes:
        rows: [V', D] the matrix as products read it: on a GPU in bfloat16 with more rows, of zeros, where V is no
            multiple of `STEP`. What they say is minus infinity.
    """

    def __init__(self, matrix: Tensor, *, many: bool = False):
        self.rows = _in_step(matrix) if _pads(matrix) else matrix
        self.matrix = self.rows[: len(matrix)]
        self._many = many
        self._latest = threading.local()  # two threads must not write over one another's logits
        self._order: Tensor | None = None
        if many and matrix.dtype == torch.bfloat16 and device_type(matrix) == "cpu" and packs_half():
            self._order = torch.ops.mkldnn._reorder_linear_weight(matrix.t().contiguous(), PACKED_ROWS)

    def logits(self, hidden: Tensor, out: Tensor) -> Tensor:
        """[r, V'] of `hidden` [r, D], in `out`: memory that is asked for anew takes as long as the product."""
        torch.mm(hidden, self.rows.t(), out=out)
        if len(self.rows) > len(self.matrix):
            out[:, len(self.matrix) :].fill_(-torch.inf)
        return out

    def mean(self, probabilities: Tensor) -> Tensor:
        """[r, D]: the mean of the rows of the matrix under `probabilities` [r, V']."""
        if self._order is None:
            return probabilities @ self.rows
        product: Tensor = torch.ops.mkldnn._linear_pointwise(probabilities, self._order, None, "none", [], "")
        return product

    def scratch(self, hidden: Tensor, dtype: torch.dtype) -> _Scratch:
        """Memory for the chunks of `hidden` [R, D]; that of the last call where it fits."""
        latest: _Scratch | None = self._latest.__dict__.get("scratch")
        if latest is not None and latest.fits(hidden):
            return latest
        scratch = _Scratch(hidden, self, dtype)
        self._latest.scratch = scratch if self._many else None
        return scratch


STEP = 64
"""GPT-2's vocabulary of 50,257, an odd number, takes several times as long as the next multiple (H100)."""


def _pads(matrix: Tensor) -> bool:
    # By itself so that the tests can have a GPU's layout on a CPU.
    return device_type(matrix) == "cuda" and matrix.dtype == torch.bfloat16


def _in_step(matrix: Tensor) -> Tensor:
    """`matrix` [V, D] with rows of zeros up to a multiple of `STEP`."""
    return F.pad(matrix, (0, 0, 0, -len(matrix) % STEP))


PACKED_ROWS = 256
"""Rows for which weights are packed; products with other numbers of rows are right, too."""


def packs() -> bool:
    """Whether this torch has the functions that pack weights in oneDNN's order; it does not promise them."""
    ours = torch.ops.mkldnn
    there = hasattr(ours, "_linear_pointwise") and hasattr(ours, "_reorder_linear_weight")
    return there and torch.backends.mkldnn.is_available()


def packs_half() -> bool:
    """The same for half precision, in which not every processor multiplies."""
    return packs() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _chunked(
    hidden: Tensor, weight: Tensor, tokens: Tensor, cast: FrozenWeight, compiled: bool, cap: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [R] and their gradients [R, D], from chunks of logits."""
    log_probs, gradient = hidden.new_empty(len(hidden), dtype=weight.dtype), torch.empty_like(hidden)
    scratch = cast.scratch(hidden, weight.dtype)
    for rows in scratch.chunks:
        own = cast.matrix[tokens[rows]]
        if cap:
            softmax = _compiled(_capped_softmax) if compiled else _capped_softmax
            logits = scratch.logits(hidden[rows], cast)
            log_probs[rows], probabilities, slope = softmax(logits, tokens[rows], weight.dtype, cap)
            own = own * slope[:, None].to(own.dtype)
        elif compiled:
            logits = scratch.logits(hidden[rows], cast)
            log_probs[rows], probabilities = _compiled(_plain_softmax)(logits, tokens[rows], weight.dtype)
        else:
            log_probs[rows], probabilities = _softmax(scratch, hidden[rows], tokens[rows], cast)
        torch.sub(own, cast.mean(probabilities), out=gradient[rows])
    return log_probs, gradient


def _softmax(scratch: _Scratch, hidden: Tensor, tokens: Tensor, cast: FrozenWeight) -> tuple[Tensor, Tensor]:
    """Log-probabilities [r] of `tokens`, and all probabilities [r, V'], by torch's own softmax."""
    logits, probabilities = scratch.softmax(hidden, cast)
    dtype = scratch.dtype
    own = probabilities.gather(1, tokens[:, None])[:, 0].to(dtype)
    if _may_look(own) and bool(own.all()):
        return own.log(), probabilities
    # A probability may be too small for a number; then the largest one gives the log of the sum.
    most, likeliest = logits.max(-1)
    log_sum = most.to(dtype) - probabilities.gather(1, likeliest[:, None])[:, 0].to(dtype).log()
    return logits.gather(1, tokens[:, None])[:, 0].to(dtype) - log_sum, probabilities


@functools.cache
def _compiled(softmax: Callable[..., Any]) -> Any:
    """One of the two below, for the compiler to make two passes over memory of."""
    return torch.compile(softmax)


def _plain_softmax(logits: Tensor, tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same from logits [r, V']."""
    wide = logits.to(dtype)
    most = wide.amax(-1, keepdim=True)
    log_sum = most + (wide - most).exp().sum(-1, keepdim=True).log()
    return (wide.gather(1, tokens[:, None]) - log_sum)[:, 0], (wide - log_sum).exp().to(logits.dtype)


def _capped_softmax(logits: Tensor, tokens: Tensor, dtype: torch.dtype, cap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [r] of `tokens` under capped `logits` [r, V'], and how each logit moves them.

    That is: all probabilities [r, V'] times the slopes of their caps, and the slope of the token's own [r].
    """
    turned = torch.tanh(logits.to(dtype) / cap)
    # A row of zeros has no token: it stays at minus infinity, and its slope is 0.
    log_probs = torch.log_softmax((cap * turned).masked_fill_(logits == -torch.inf, -torch.inf), dim=-1)
    slope, own = 1 - turned.square(), tokens[:, None]
    sloped = (log_probs.exp() * slope).to(logits.dtype)
    return log_probs.gather(1, own)[:, 0], sloped, slope.gather(1, own)[:, 0]


def _may_look(x: Tensor) -> bool:
    # A GPU would have to be waited for. By itself so that the tests can have the GPU's way on a CPU.
    return device_type(x) == "cpu"


def _values(hidden: Tensor, weight: Tensor, tokens: Tensor, cast: FrozenWeight, cap: float) -> Tensor:
    """Log-probabilities [R] alone."""
    log_probs = hidden.new_empty(len(hidden), dtype=weight.dtype)
    scratch = _Scratch(hidden, cast, weight.dtype)
    for rows in scratch.chunks:
        if cap:
            logits = scratch.logits(hidden[rows], cast)
            log_probs[rows], _, _ = _capped_softmax(logits, tokens[rows], weight.dtype, cap)
        else:
            log_probs[rows] = scratch.log_softmax(hidden[rows], cast).gather(1, tokens[rows, None])[:, 0]
    return log_probs


def _differentiable(
    hidden: Tensor, weight: Tensor, tokens: Tensor, weights: Tensor, needed: tuple[bool, ...], cap: float
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients as a graph of their own, all positions at once."""
    matrix = weight.to(hidden.dtype)
    logits = (hidden @ matrix.t()).to(weight.dtype)
    turned = torch.tanh(logits / cap) if cap else None
    probabilities = (logits if turned is None else cap * turned).softmax(-1)
    rows = torch.arange(len(tokens), device=tokens.device)
    one_hot = torch.zeros_like(probabilities).index_put((rows, tokens), torch.ones_like(weights))
    slope = (one_hot - probabilities) * weights[:, None]
    slope = (slope if turned is None else slope * (1 - turned.square())).to(hidden.dtype)
    to_weight = (slope.t() @ hidden).to(weight.dtype) if needed[1] else None
    return slope @ matrix if needed[0] else None, to_weight


class _Scratch:
    """Memory for one chunk's logits and (log-)probabilities, used again by the next: asking for it anew takes time."""

    def __init__(self, hidden: Tensor, cast: FrozenWeight, dtype: torch.dtype):
        chunk = CHUNK if device_type(hidden) == "cpu" else GPU_CHUNK
        most = max(16, chunk // (hidden.element_size() * len(cast.rows)))
        size = min(1 << (most.bit_length() - 1), max(len(hidden), 1))
        self.chunks = [slice(first, first + size) for first in range(0, len(hidden), size)]
        self._rows = len(hidden)
        self._logits = hidden.new_empty(size, len(cast.rows))
        self.dtype = dtype
        self._second: Tensor | None = None

    def fits(self, hidden: Tensor) -> bool:
        """Whether these are the chunks of `hidden`, too."""
        return len(hidden) == self._rows and hidden.dtype == self._logits.dtype

    def logits(self, hidden: Tensor, cast: FrozenWeight) -> Tensor:
        """[r, V'] after `hidden` [r, D], in its precision; good until the next call."""
        return cast.logits(hidden, self._logits[: len(hidden)])

    def log_softmax(self, hidden: Tensor, cast: FrozenWeight) -> Tensor:
        """[r, V'] log-probabilities of all tokens after `hidden` [r, D]; good until the next call."""
        logits = self.logits(hidden, cast)
        return torch.log_softmax(logits.to(self.dtype), dim=-1, out=self._out(self.dtype, len(hidden)))

    def softmax(self, hidden: Tensor, cast: FrozenWeight) -> tuple[Tensor, Tensor]:
        """Logits and probabilities [r, V'] after `hidden` [r, D], both in its precision; good until the next call."""
        logits = self.logits(hidden, cast)
        return logits, torch.softmax(logits, dim=-1, out=self._out(logits.dtype, len(hidden)))

    def _out(self, dtype: torch.dtype, rows: int) -> Tensor:
        """Where `rows` rows of (log-)probabilities go."""
        if self._second is None or self._second.dtype != dtype:
            self._second = torch.empty_like(self._logits, dtype=dtype)
        return self._second[:rows]
