"""Weights in the order in which MKL reads them, for generation on a processor.

A step of generation is one row a sequence against every weight. For a product of so few rows MKL spends more time on
copying the weight into its own order than on the product itself; this copies once, and gives the same numbers.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_ltm.model.decoder import Decoder

ROWS = range(4, 257)
"""Where it pays: fewer rows are read by another routine of MKL's, which copies nothing; with more, the copy is lost."""
WEIGHTS = 1 << 22
"""Smaller decoders stay in the processor's cache, and gain nothing."""
TOKENS = 64
"""Packing takes as long as a few dozen tokens gain."""


def packed(decoder: Decoder, rows: int, tokens: int) -> Decoder:
    """A decoder with the same weights that reads `rows` rows faster; `decoder` itself where that would gain nothing.

    Takes the memory of the weights once more. `tokens`: how many steps it is for.
    """
    weight = decoder.tok_embeddings.weight
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 == decoder.compute_dtype
    small = sum(each.numel() for each in decoder.parameters()) < WEIGHTS
    if not plain or small or rows not in ROWS or tokens < TOKENS or not _known():
        return decoder
    weights = [*decoder.parameters(), *decoder.buffers()]
    faster = copy.deepcopy(decoder, {id(each): each for each in weights})  # new modules around the same tensors
    for module in list(faster.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Packed(child.weight, rows))
    faster.head = Packed(weight, rows)
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


def _known() -> bool:
    """Whether this torch has the two functions, which it does not promise."""
    return hasattr(torch.ops.mkl, "_mkl_linear") and hasattr(torch.ops.mkl, "_mkl_reorder_linear_weight")
