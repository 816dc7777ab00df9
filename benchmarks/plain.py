"""The paper's decoder written the obvious way in plain torch, for examples/algorithm_1.py: the yardstick.

Written from the paper (arXiv:2502.01567) and from what is known of the reference implementation, and imports nothing of
pyro_ltm. What a reader of the paper would write: self-attention masked at full length, all of the head in each fast
step, decoder gradients computed in each fast step (`loss.backward()`), single precision, no cache in generation.
Weights have the reference's names, so that those of a `Decoder` load.

Shapes: B sequences, T tokens, L layers, N thoughts in all (N/L per layer), D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of the decoder."""

    vocab_size: int
    dim: int
    layers: int
    heads: int
    thoughts: int
    max_length: int
    window: int
    hidden: int = 0
    theta: float = 10000.0
    eps: float = 1e-5
    embedding_scale: float = 1.0
    init_std: float = 0.02
    causal: bool = True


class PlainAttention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(shape.dim, shape.dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor, sees: Tensor | None, x_turns: Tensor, source_turns: Tensor) -> Tensor:
        q, k, v = (w(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w, y in self._pairs(x, source))
        mixed = F.scaled_dot_product_attention(turn(q, x_turns), turn(k, source_turns), v, attn_mask=sees)
        return self.wo(mixed.transpose(1, 2).flatten(2))

    def _pairs(self, x: Tensor, source: Tensor) -> list[tuple[nn.Linear, Tensor]]:
        return [(self.wq, x), (self.wk, source), (self.wv, source)]


class PlainFeedForward(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        hidden = shape.hidden or -(-(8 * shape.dim // 3) // 32) * 32
        self.w1 = nn.Linear(shape.dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, shape.dim, bias=False)
        self.w3 = nn.Linear(shape.dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class PlainNorm(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.eps = shape.eps
        self.weight = nn.Parameter(torch.ones(shape.dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class PlainLayer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.attention_norm, self.attention = PlainNorm(shape), PlainAttention(shape)
        if shape.thoughts:
            self.cross_attention_norm, self.cross_attention = PlainNorm(shape), PlainAttention(shape)
        self.ffn_norm, self.feed_forward = PlainNorm(shape), PlainFeedForward(shape)


class Plain(nn.Module):
    """Logits [B, T, V] of tokens [B, T] and thoughts [B, N, D]; in single precision unless `half` asks for autocast."""

    def __init__(self, shape: Shape, half: bool = False):
        super().__init__()
        self.shape, self.half = shape, half
        self.tok_embeddings = nn.Embedding(shape.vocab_size, shape.dim)
        self.layers = nn.ModuleList(PlainLayer(shape) for _ in range(shape.layers))
        self.norm = PlainNorm(shape)
        self.turns = unit_turns(shape.max_length, shape.dim // shape.heads, shape.theta)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                depth = math.sqrt(2 * shape.layers) if name.endswith(("wo.weight", "w3.weight")) else 1.0
                nn.init.normal_(weight, std=shape.init_std / depth)

    def forward(self, tokens: Tensor, thoughts: Tensor | None, last: bool = False) -> Tensor:
        """All logits, or those after the `last` token alone, [B, 1, V]."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.half):
            return self._logits(tokens, thoughts, last)

    def _logits(self, tokens: Tensor, thoughts: Tensor | None, last: bool) -> Tensor:
        shape, length, device = self.shape, tokens.shape[1], tokens.device
        turns, places = self.turns[:length].to(device), torch.arange(length, device=device)
        ago = places[:, None] - places[None, :]
        ago = ago if shape.causal else ago.abs()
        sees = (ago >= 0) & (ago < shape.window)
        h = self.tok_embeddings(tokens) * shape.embedding_scale
        each = shape.thoughts // shape.layers
        stands = self.turns[:: shape.max_length // max(shape.thoughts, 1)][:each].to(device)
        for index, layer in enumerate(self.layers):
            x = layer.attention_norm(h)
            h = h + layer.attention(x, x, sees, turns, turns)
            if thoughts is not None and shape.thoughts:
                z = thoughts[:, index * each : (index + 1) * each]
                h = h + layer.cross_attention(layer.cross_attention_norm(h), z, None, turns, stands)
            h = h + layer.feed_forward(layer.ffn_norm(h))
        h = h[:, -1:] if last else h
        return F.linear(self.norm(h), self.tok_embeddings.weight)


def unit_turns(positions: int, width: int, theta: float) -> Tensor:
    """e^(i p theta^(-2k/d)) at positions p and pairs k: complex128 [P, d / 2]."""
    angles = [[p * theta ** (-2 * k / width) for k in range(width // 2)] for p in range(positions)]
    angle = torch.tensor(angles, dtype=torch.float64)
    return torch.polar(torch.ones_like(angle), angle)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Interleaved pairs of `x` [..., P, d] as complex numbers, times `turns` [P, d / 2]: rotary embedding."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32  # there are no complex numbers of bfloat16
    if torch.compiler.is_compiling():  # whose code has no complex numbers either
        even, odd = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = torch.view_as_real(turns).to(wide).unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns.to(pairs.dtype)).flatten(-2).to(x.dtype)
