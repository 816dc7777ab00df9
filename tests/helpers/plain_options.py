"""The decoder with every option of `ModelConfig`, written from the formulas: no kernel, no cache, no code of ours.

Shapes: B sequences, T tokens, L layers, N thoughts in all (N/L per layer), D width, V vocabulary, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def option_logits(
    weights: Mapping[str, Tensor], config: Any, tokens: Tensor, thoughts: Tensor | None, dropped: Any = None
) -> Tensor:
    """Logits [B, T, V], in the precision of `weights`; `dropped(name, x)` is what dropout leaves of an output `x`."""
    keep = dropped or (lambda name, x: x)
    h = keep("embedding", weights["tok_embeddings.weight"][tokens] * config.embedding_scale)
    places = torch.arange(tokens.shape[1])
    ago = places[:, None] - places[None, :]
    sees = (ago >= 0) & (ago < config.window)
    each = config.thoughts // config.layers
    stands = torch.arange(each) * (config.thought_stride or config.max_length // max(config.thoughts, 1))
    for at in range(config.layers):
        own = {name.removeprefix(f"layers.{at}."): w for name, w in weights.items() if name.startswith(f"layers.{at}.")}
        table = weights.get(f"value_embeddings.{at}.weight")
        x = norm(h, own["attention_norm.weight"], config)
        h = h + keep(f"{at}.attention", attention(x, x, sees, places, places, "attention.", own, config, table, tokens))
        if thoughts is not None and config.thoughts:
            x, z = norm(h, own["cross_attention_norm.weight"], config), thoughts[:, at * each : (at + 1) * each]
            every = torch.ones(len(places), each, dtype=torch.bool)
            crossed = attention(x, z, every, places, stands, "cross_attention.", own, config)
            h = h + keep(f"{at}.cross_attention", crossed)
        x = norm(h, own["ffn_norm.weight"], config)
        up = x @ own["feed_forward.w1.weight"].T
        if config.feed_forward == "relu2":
            wide = torch.where(up > 0, up, 0 * up) ** 2
        else:
            wide = up / (1 + torch.exp(-up)) * (x @ own["feed_forward.w3.weight"].T)
        h = h + keep(f"{at}.feed_forward", wide @ own["feed_forward.w2.weight"].T)
    head = weights["tok_embeddings.weight"] if config.tied else weights["output.weight"]
    logits = norm(h, weights["norm.weight"], config) @ head.T
    cap = config.logit_softcap
    return cap * torch.tanh(logits / cap) if cap else logits


def norm(x: Tensor, weight: Tensor, config: Any) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight


def attention(
    x: Tensor,
    source: Tensor,
    sees: Tensor,
    places: Tensor,
    stands: Tensor,
    name: str,
    own: Mapping[str, Tensor],
    config: Any,
    table: Tensor | None = None,
    tokens: Tensor | None = None,
) -> Tensor:
    q, k, v = (y @ own[f"{name}{w}.weight"].T for w, y in (("wq", x), ("wk", source), ("wv", source)))
    if table is not None:
        ours, theirs = own[f"{name}value_mix"]
        v = ours * v + theirs * table[tokens]
    width, heads = config.dim // config.heads, []
    for head in range(config.heads):
        columns = slice(head * width, (head + 1) * width)
        a, b = q[..., columns], k[..., columns]
        if config.qk_norm:
            a, b = norm(a, own[f"{name}q_norm.weight"], config), norm(b, own[f"{name}k_norm.weight"], config)
        scores = turned(a, places, config) @ turned(b, stands, config).transpose(1, 2) / width**0.5
        heads.append(torch.where(sees, scores, torch.tensor(-torch.inf, dtype=x.dtype)).softmax(-1) @ v[..., columns])
    return torch.cat(heads, -1) @ own[f"{name}wo.weight"].T


def turned(x: Tensor, places: Tensor, config: Any) -> Tensor:
    """Rotary embedding; its angles are in single precision, as the decoder's table is."""
    width = x.shape[-1]
    frequencies = config.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = places[:, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
