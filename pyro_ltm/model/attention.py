"""Attention of the decoder: rotary positions, self-attention in a window, cross-attention to the thoughts.

Shapes: B sequences, T tokens, H heads, d = D / H, W window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_ltm.model.kernels.attention import (
    FUSED,
    FUSED_BACKWARD,
    attend,
    attend_in_window,
    chooses_its_kernel,
    has_window_kernel,
    readable,
)
from pyro_ltm.model.kernels.device import device_type
from pyro_ltm.model.linear import Linear
from pyro_ltm.model.norm import RMSNorm


def rotary_table(positions: Tensor, width: int, theta: float) -> Tensor:
    """Cosines and sines [2, P, width / 2] of the rotary embedding at `positions` [P] (arXiv:2104.09864)."""
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    angles = torch.outer(positions.float(), frequencies)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """`x` [..., P, d] with its interleaved pairs turned by `table` [2, P, d / 2], in the finer's precision."""
    precision = torch.promote_types(x.dtype, table.dtype)
    wide, table = x.to(precision), table.to(precision)
    # One product of complex numbers, which the compiler cannot fuse.
    if not torch.compiler.is_compiling():
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(*table)).flatten(-2).to(x.dtype)
    cos, sin = table
    even, odd = wide[..., 0::2], wide[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    block: int | None = None,
    recompute: bool = False,
    causal: bool = True,
) -> Tensor:
    """Attention in which each query sees the last `window` keys, its own included.

    Cost and memory grow with T * window, not T * T: queries go in blocks, each against the keys that it can see. On a
    GPU half precision has a kernel that does so by itself.

    Shapes:
        k, v: [B, H, T, d]. q, result: [B, H, P, d], those of the last P tokens. Half precision goes through the fused
            kernel on a CPU in single precision, in which it is faster and exact.
        block: queries in one block; None: what is fastest.
        recompute: in bands, keep `q`, `k` and `v` alone for the backward pass. Bands hold each key three times over;
            laying them out anew costs little beside the layer's products with weights.
        causal: no query sees a key after its own; False: it sees the next `window` - 1 as well.
    """
    ahead = 0 if causal else window - 1
    if k.shape[-2] <= window:
        if not causal:
            return attend(q, k, v)
        if q.shape[-2] == k.shape[-2]:
            return attend(q, k, v, is_causal=True)
        return attend(q, k, v, attn_mask=_lower_right(q, k))
    if has_window_kernel(q):
        return attend_in_window(q, k, v, window, ahead)
    chooses = chooses_its_kernel()
    if chooses and _has_blocks(q):
        wide = [readable(x if x.dtype == torch.float64 else x.float()) for x in (q, k, v)]
        blocks: Tensor = _InBlocks.apply(*wide, window, block or BLOCK, ahead)
        return blocks.to(q.dtype)
    block = block or max(16, window // 2)  # half a window: a third of the products is wasted
    if recompute and torch.is_grad_enabled() and chooses:
        inputs = (q, k, v, window, block, ahead)
        bands: Tensor = checkpoint(_in_bands, *inputs, use_reentrant=False, preserve_rng_state=False)
        return bands
    return _in_bands(q, k, v, window, block, ahead)


def _has_blocks(x: Tensor) -> bool:
    # By itself so that the tests can have bands on a CPU.
    return device_type(x) == "cpu"


BLOCK = 32
"""Queries that the fused kernel on a CPU takes at a time: with more in a call, it reads keys that none of them sees."""


class _InBlocks(torch.autograd.Function):
    """`windowed_attention` of more tokens than a window by torch's fused kernel for CPUs, a block of queries at a time.

    The blocks are views: nothing is padded or copied, and q, k, v and the result are all that is kept.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int, block: int, ahead: int) -> Tensor:
        out, sums = torch.empty_like(q), []
        for rows, seen, mask in _blocks(q, k, window, block, ahead):
            part, log_sum = FUSED(q[:, :, rows], k[:, :, seen], v[:, :, seen], 0.0, False, attn_mask=mask)
            out[:, :, rows] = part
            sums.append(log_sum)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.bands = window, block, ahead
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *sums = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again: what torch has no second derivative of, it refuses
            q, k, v = (x.view_as(x) for x in (q, k, v))  # which may be one and the same tensor
            learning = [x for x in (q, k, v) if x.requires_grad]
            whole = _in_bands(q, k, v, *ctx.bands)
            slopes = iter(torch.autograd.grad(whole, learning, grad, create_graph=True))
            return *(next(slopes) if x.requires_grad else None for x in (q, k, v)), None, None, None
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (rows, seen, mask), log_sum in zip(_blocks(q, k, *ctx.bands), sums, strict=True):
            inputs = (grad[:, :, rows], q[:, :, rows], k[:, :, seen], v[:, :, seen], out[:, :, rows])
            dq[:, :, rows], to_k, to_v = FUSED_BACKWARD(*inputs, log_sum, 0.0, False, attn_mask=mask)
            dk[:, :, seen] += to_k
            dv[:, :, seen] += to_v
        return dq, dk, dv, None, None, None


def _blocks(q: Tensor, k: Tensor, window: int, block: int, ahead: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Each block's queries, the keys that they see, and 0 where a query sees a key, else minus infinity."""
    length, before = q.shape[2], k.shape[2] - q.shape[2]
    query, key = torch.arange(block)[:, None], torch.arange(window - 1 + block + ahead)[None, :]
    mask = q.new_zeros(()).where((key >= query) & (key < query + window + ahead), -torch.inf)
    for first in range(0, length, block):
        last, unseen = min(first + block, length), before + first - (window - 1)
        seen = slice(max(unseen, 0), min(before + last + ahead, k.shape[2]))
        yield slice(first, last), seen, mask[: last - first, seen.start - unseen : seen.stop - unseen]


def _in_bands(q: Tensor, k: Tensor, v: Tensor, window: int, block: int, ahead: int) -> Tensor:
    """`windowed_attention` of more tokens than a window."""
    length, before = q.shape[-2], k.shape[-2] - q.shape[-2]
    blocks = -(-length // block)
    q = F.pad(q, (0, 0, 0, blocks * block - length)).unflatten(2, (blocks, block))
    # Block i holds queries [i * block, (i + 1) * block) and sees keys from window - 1 before its first query.
    span, padding = window - 1 + block + ahead, window - 1 - before
    pad = (0, 0, padding, blocks * block - length + ahead)
    k_band = F.pad(k, pad).unfold(2, span, block).transpose(-1, -2)
    v_band = F.pad(v, pad).unfold(2, span, block).transpose(-1, -2)
    mask = _band_mask((blocks, block), length, window, padding, ahead, q.device)
    # A batch of (B, H * blocks): one call, one mask of [blocks, block, span] repeated over the heads.
    heads = q.shape[1]
    out = attend(q.flatten(1, 2), k_band.flatten(1, 2), v_band.flatten(1, 2), attn_mask=mask.repeat(heads, 1, 1)[None])
    return out.unflatten(1, (heads, blocks)).flatten(2, 3)[:, :, :length]


def _lower_right(q: Tensor, k: Tensor) -> Tensor:
    """Which keys the last P of T tokens see in a window that holds all: bool [P, T]."""
    last, length = q.shape[-2], k.shape[-2]
    return torch.ones(last, length, dtype=torch.bool, device=q.device).tril(length - last)


def _band_mask(
    shape: tuple[int, int], length: int, window: int, padding: int, ahead: int, device: torch.device
) -> Tensor:
    """Which keys of its span each query sees: [blocks, block, window - 1 + block + ahead], of `shape` (blocks, block).

    The first `padding` keys are none; nor are those that follow the last of `length` queries, but for what pads these.
    """
    blocks, block = shape
    query = torch.arange(block, device=device)[:, None]
    key = torch.arange(window - 1 + block + ahead, device=device)[None, :]
    seen = (key >= query) & (key < query + window + ahead)
    first = torch.arange(blocks, device=device)[:, None, None] * block
    seen = seen & (first + key >= padding)
    return seen & ((first + key < length + window - 1) | (first + query >= length)) if ahead else seen


def _are_few(keys: Tensor) -> bool:
    """Whether a fast step takes fewer operations where values [B, H, P, d] are projected before they are mixed.

    A query's mixture then has H P terms, in three products (forward, back to probabilities and values); projected
    afterwards, it had H d in two. The fused kernel is slow for few keys besides. On a GPU this was not measured.
    """
    return device_type(keys) == "cpu" and 3 * keys.shape[-2] < 2 * keys.shape[-1]


def _normed(x: Tensor, norm: RMSNorm | None) -> Tensor:
    """Queries or keys [B, H, T, d] in their own precision, normed where they are to be."""
    return x if norm is None else norm(x).to(x.dtype)


class Attention(nn.Module):
    """The four projections of multi-head attention, without biases, under the reference implementation's names.

    Args:
        qk_norm_eps: with it, each head's queries and keys go through an RMSNorm before they are rotated, as in Qwen3
            (arXiv:2505.09388; first in arXiv:2010.04245); None: they do not.
        mixes: `mixed_values` has a share of value embeddings.
        read_dim: width of what keys and values are made of; None: `dim`.

    Attributes:
        fused_weight: the weights of queries, keys and values under one another, for one product instead of three
            (`Decoder.fused_weights`); None: each by itself.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qk_norm_eps: float | None = None,
        mixes: bool = False,
        read_dim: int | None = None,
    ):
        super().__init__()
        self.heads = heads
        self.fused_weight: Tensor | None = None
        self.wq = Linear(dim, dim)
        self.wk = Linear(read_dim or dim, dim)
        self.wv = Linear(read_dim or dim, dim)
        self.wo = Linear(dim, dim)
        normed = qk_norm_eps is not None
        self.q_norm = RMSNorm(dim // heads, eps=qk_norm_eps) if normed else None
        self.k_norm = RMSNorm(dim // heads, eps=qk_norm_eps) if normed else None
        if mixes:
            self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5]))

    def queries_keys_values(self, x: Tensor, table: Tensor, seen: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and plain values, [B, H, T, d], of `x` [B, T, D]; no query of the first `seen`."""
        fused = self.fused_weight  # read once: another thread may drop it
        if fused is None:
            return self.queries(x[:, seen:], table[:, seen:]), *self.keys_values(x, table)
        if seen:
            alone, both = fused.tensor_split([x.shape[-1]])
            parts = F.linear(x[:, seen:], alone), *F.linear(x, both).chunk(2, dim=-1)
        else:
            parts = F.linear(x, fused).chunk(3, dim=-1)
        q, k, v = (self._split(part) for part in parts)
        return rotate(_normed(q, self.q_norm), table[:, seen:]), rotate(_normed(k, self.k_norm), table), v

    def mixed_values(self, v: Tensor, embedded: Tensor | None) -> Tensor:
        """Values `v` [B, H, T, d] and the value embeddings [B, T, D] of their tokens, in learned shares: [B, H, T, d].

        As in modded-nanogpt (after arXiv:2410.17897). Without embeddings (None), the values as they are.
        """
        if embedded is None:
            return v
        ours, theirs = self.value_mix
        return (ours * v + theirs * self._split(embedded)).to(v.dtype)

    def queries(self, x: Tensor, table: Tensor) -> Tensor:
        """Rotated queries [B, H, T, d] of `x` [B, T, D]."""
        return rotate(_normed(self._split(self.wq(x)), self.q_norm), table)

    def keys_values(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and plain values, each [B, H, P, d], of `x` [B, P, read_dim]."""
        return rotate(_normed(self._split(self.wk(x)), self.k_norm), table), self._split(self.wv(x))

    def keys_outputs(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys [B, H, P, d] of `x` [B, P, read_dim], and what `cross` mixes.

        That is the values [B, H, P, d]; or, where they are few, what the output makes of each by itself, [B, H P, D].
        """
        k, v = self.keys_values(x, table)
        if not _are_few(k):
            return k, v
        # Each value in its own head's columns, zeros in the others'.
        own = torch.eye(self.heads, dtype=v.dtype, device=v.device)[:, None, :, None]
        return k, self.wo((v.unsqueeze(3) * own).flatten(3).flatten(1, 2))

    def cross(self, x: Tensor, table: Tensor, keys: Tensor, outputs: Tensor) -> Tensor:
        """Attention of `x` [B, T, D] to all of `keys_outputs`: [B, T, D]."""
        q = self.queries(x, table)
        if not _are_few(keys):
            return self.output(attend(q, keys, outputs))
        with torch.autocast(q.device.type, enabled=False):
            wide = torch.promote_types(q.dtype, torch.float32)
            scores = q.to(wide) @ (keys.to(wide) * keys.shape[-1] ** -0.5).transpose(-1, -2)
        return scores.softmax(-1).transpose(1, 2).flatten(2).to(outputs.dtype) @ outputs

    def output(self, heads: Tensor) -> Tensor:
        """Heads [B, H, T, d] fused and projected: [B, T, D]."""
        fused: Tensor = self.wo(heads.transpose(1, 2).flatten(2))
        return fused

    def _split(self, x: Tensor) -> Tensor:
        # On a CPU rotation and the fused kernel are faster in single precision than in half, and exact.
        if x.dtype == torch.bfloat16 and _has_blocks(x) and chooses_its_kernel():
            x = x.float()
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
