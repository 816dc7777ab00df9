"""Weights in the order in which the processor's matrix library reads them, for generation.

A step of generation is one row a sequence against every weight. The usual product of so few rows is far from what
memory gives: it copies the weight into its own order first, or reads it in one that is slow, and half precision
converts each weight besides. Here all that is done once.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pyro_ltm.model.decoder import Decoder
from pyro_ltm.model.kernels.head import packs, packs_half
from pyro_ltm.model.protocol import TokenDecoder

ROWS = 256
"""In single precision more rows than these gain nothing."""
WEIGHTS = 1 << 22
"""In single precision smaller decoders stay in the processor's cache, and gain nothing."""
TOKENS, HALF_TOKENS = 32, 4
"""From how many tokens on packing takes no longer than it gains, in single precision and in half; there the usual way
would convert all weights for each."""


def packed(decoder: TokenDecoder, rows: int, tokens: int) -> TokenDecoder:
    """A decoder with the same weights that reads `rows` rows faster; `decoder` itself where that would gain nothing.

    Takes the memory of the weights once more. `tokens`: how many steps it is for.
    """
    if not isinstance(decoder, Decoder) or not _gains(decoder, rows, tokens):
        return decoder
    shared = [*decoder.parameters(), *decoder.buffers()]
    # New modules around the same tensors; copies made by a fit under way are not theirs.
    faster = copy.deepcopy(decoder, {id(each): each for each in shared} | {id(decoder.head_weight): None})
    faster.drop_fused_weights()
    for module in list(faster.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Packed(child.weight, rows, decoder.compute_dtype))
    own: nn.Module | None = faster.output
    faster.head = own or Packed(decoder.output_weight, rows, decoder.compute_dtype)
    return faster


class Packed(nn.Module):
    """`x @ weight.T`, both rounded to `dtype`; fastest for x of `rows` rows."""

    def __init__(self, weight: Tensor, rows: int, dtype: torch.dtype):
        super().__init__()
        self.weight, self.dtype = weight, dtype
        self.order = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), rows)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], in `dtype`."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.order, None, "none", [], "")
        return product


def _gains(decoder: Decoder, rows: int, tokens: int) -> bool:
    weight = decoder.tok_embeddings.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    if decoder.compute_dtype == torch.bfloat16:
        return tokens >= HALF_TOKENS and packs_half()
    large = sum(each.numel() for each in decoder.parameters()) >= WEIGHTS
    known = packs() and torch.backends.mkl.is_available()  # as torch's own compiler asks before it does so
    return large and 0 < rows <= ROWS and tokens >= TOKENS and known
