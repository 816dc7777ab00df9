"""The independent implementation (benchmarks/plain.py) on weights of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.func import functional_call

from benchmarks.plain import Plain, Shape


def plain_logits(
    weights: Mapping[str, Tensor], tokens: Tensor, thoughts: Tensor | None, *, turns: Tensor | None = None, **shape: Any
) -> Tensor:
    """Logits [B, T, V] of `tokens` [B, T] and `thoughts` [B, N, D] (None: without), in the precision of `weights`.

    `turns` are the rotary embedding's unit complex numbers [max_length, d / 2]; None: worked out by the plain decoder.
    """
    embedding = weights["tok_embeddings.weight"]
    whole = Shape(
        vocab_size=len(embedding),
        dim=embedding.shape[1],
        thoughts=0 if thoughts is None else thoughts.shape[1],
        **shape,
    )
    model = Plain(whole).to(embedding.dtype)
    model.turns = model.turns if turns is None else turns
    own = {name: weights[name] for name, _ in model.named_parameters()}  # a checkpoint names the tied head besides
    logits: Tensor = functional_call(model, own, (tokens, thoughts))
    return logits
