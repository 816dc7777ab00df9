"""Weights in the order in which the processor's matrix library reads them, for generation.

A step of generation is one row a sequence against every weight. For a product of so few rows MKL spends more time on
copying the weight into its own order than on the product itself, and half precision converts each weight besides; this
does both once, and gives the same numbers.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_ltm.model.decoder import Decoder
from pyro_ltm.model.head import packs_half

ROWS = range(4, 257)
"""Where it pays in single precision: fewer rows are read by another routine of MKL's, which copies nothing; with more,
the copy is lost."""
WEIGHTS = 1 << 22
"""In single precision smaller decoders stay in the processor's cache, and gain nothing."""
TOKENS = 64
"""In single precision packing takes as long as a few dozen tokens gain."""
HALF_TOKENS = 4
"""In half precision the first tokens gain already: each would convert all weights."""


def packed(decoder: Decoder, rows: int, tokens: int) -> Decoder:
    """A decoder with the same weights that reads `rows` rows faster; `decoder` itself where that would gain nothing.

    Takes the memory of the weights once more. `tokens`: how many steps it is for.
    """
    kind = _kind(decoder, rows, tokens)
    if kind is None:
        return decoder
    shared = [*decoder.parameters(), *decoder.buffers()]
    # New modules around the same tensors; what a fit that is under way has laid out is not theirs.
    faster = copy.deepcopy(decoder, {id(each): each for each in shared} | {id(decoder.head_weight): None})
    faster.let_go()
    for module in list(faster.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child.weight, rows))
    faster.head = kind(decoder.tok_embeddings.weight, rows)
    return faster


class Packed(nn.Module):
    """`x @ weight.T` for x of `rows` rows in single precision; any other x takes the usual way."""

    def __init__(self, weight: Tensor, rows: int):
        super().__init__()
        self.weight, self.rows = weight, rows
        self.order = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), rows)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        if x.numel() != self.rows * x.shape[-1] or x.dtype != torch.float32:
            return F.linear(x, self.weight)
        product: Tensor = torch.ops.mkl._mkl_linear(x, self.order, self.weight, None, self.rows)
        return product


class PackedHalf(nn.Module):
    """`x @ weight.T` with both rounded to bfloat16; fastest for x of `rows` rows."""

    def __init__(self, weight: Tensor, rows: int):
        super().__init__()
        self.weight = weight
        self.order = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(torch.bfloat16), rows)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], bfloat16."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self.order, None, "none", [], "")
        return product


def _kind(decoder: Decoder, rows: int, tokens: int) -> type[Packed] | type[PackedHalf] | None:
    """How to pack; None where that would gain nothing."""
    weight = decoder.tok_embeddings.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    if decoder.compute_dtype == torch.bfloat16:
        return PackedHalf if tokens >= HALF_TOKENS and packs_half() else None
    small = sum(each.numel() for each in decoder.parameters()) < WEIGHTS
    return None if small or rows not in ROWS or tokens < TOKENS or not _known() else Packed


def _known() -> bool:
    """Whether this torch has the two functions for single precision, which it does not promise."""
    return hasattr(torch.ops.mkl, "_mkl_linear") and hasattr(torch.ops.mkl, "_mkl_reorder_linear_weight")
