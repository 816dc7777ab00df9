"""The paper's decoder in plain torch, the obvious way: for tests to compare with, and independent of pyro_ltm.

Written from the description of the reference implementation (arXiv:2502.01567): pre-norm layers of windowed causal
self-attention, cross-attention to the layer's own thoughts, and SwiGLU; no biases; tied output; rotary embedding on
interleaved pairs. Weights go in as a state dict with the reference's names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def plain_logits(
    weights: Mapping[str, Tensor],
    tokens: Tensor,
    thoughts: Tensor | None,
    *,
    layers: int,
    heads: int,
    window: int,
    max_length: int,
    theta: float = 10000.0,
    eps: float = 1e-5,
    turns: Tensor | None = None,
) -> Tensor:
    """Logits [B, T, V] of `tokens` [B, T] and `thoughts` [B, N, D] (None: without).

    `turns` are the rotary embedding's unit complex numbers [max_length, d / 2]; None: worked out here.
    """
    embedding = weights["tok_embeddings.weight"]
    length, width = tokens.shape[1], embedding.shape[1] // heads
    turns = plain_turns(max_length, width, theta) if turns is None else turns
    total = 0 if thoughts is None else thoughts.shape[1]
    h = embedding[tokens]
    for i in range(layers):
        layer = {name.removeprefix(f"layers.{i}."): w for name, w in weights.items() if name.startswith(f"layers.{i}.")}
        x = _norm(h, layer["attention_norm.weight"], eps)
        sees = torch.tensor([[t - window < s <= t for s in range(length)] for t in range(length)])
        h = h + _attend(layer, "attention", x, x, sees, turns[:length], turns[:length], heads)
        if total:
            each = total // layers
            z = thoughts[:, i * each : (i + 1) * each]
            stands = turns[[j * (max_length // total) for j in range(each)]]
            x = _norm(h, layer["cross_attention_norm.weight"], eps)
            everything = torch.ones(length, each, dtype=torch.bool)
            h = h + _attend(layer, "cross_attention", x, z, everything, turns[:length], stands, heads)
        x = _norm(h, layer["ffn_norm.weight"], eps)
        gate = x @ layer["feed_forward.w1.weight"].T
        up = x @ layer["feed_forward.w3.weight"].T
        h = h + (gate / (1 + torch.exp(-gate)) * up) @ layer["feed_forward.w2.weight"].T
    return _norm(h, weights["norm.weight"], eps) @ embedding.T


def plain_turns(positions: int, width: int, theta: float) -> Tensor:
    """e^(i p theta^(-2k/d)) at positions p and pairs k: complex128 [P, d / 2]."""
    rows = [[complex(math.cos(a), math.sin(a)) for a in _angles(p, width, theta)] for p in range(positions)]
    return torch.tensor(rows, dtype=torch.complex128)


def _angles(position: int, width: int, theta: float) -> list[float]:
    return [position * theta ** (-2 * k / width) for k in range(width // 2)]


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    """Interleaved pairs of `x` [B, P, d] as complex numbers, times `turns` [P, d / 2]."""
    pairs = torch.complex(x[..., 0::2], x[..., 1::2])
    turned = pairs * turns.to(pairs.dtype)
    return torch.view_as_real(turned).flatten(-2)


def _attend(
    layer: Mapping[str, Tensor],
    name: str,
    x: Tensor,
    source: Tensor,
    sees: Tensor,
    query_turns: Tensor,
    key_turns: Tensor,
    heads: int,
) -> Tensor:
    """One head after the other: softmax over the positions of `source` that each position of `x` sees."""
    q, k, v = (y @ layer[f"{name}.{w}.weight"].T for w, y in (("wq", x), ("wk", source), ("wv", source)))
    out = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = _turn(qh, query_turns) @ _turn(kh, key_turns).transpose(1, 2) / math.sqrt(qh.shape[-1])
        raised = torch.exp(scores - scores.amax(-1, keepdim=True)) * sees
        out.append(raised / raised.sum(-1, keepdim=True) @ vh)
    return torch.cat(out, -1) @ layer[f"{name}.wo.weight"].T
