"""An encoder: from a sequence's tokens to the mean and variance of its thoughts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_ltm.errors import UserError
from pyro_ltm.types import Batch, State


class Encoder(nn.Module):
    """A Transformer that reads a whole sequence both ways; N learned queries gather from it, one for each thought.

    Its last layer starts at zero, so that what it says at first is the prior.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        vocab_size: tokens V. max_length: longest sequence T.
        width: of the encoder. layers: of it. heads: of its attention.
    """

    def __init__(
        self, thoughts: int, dim: int, *, vocab_size: int, max_length: int, width: int, layers: int, heads: int
    ):
        super().__init__()
        if not (1 <= layers <= 128 and 1 <= heads <= width <= 1 << 14) or width % heads:
            raise UserError(
                f"guide: width = {width}, layers = {layers}, heads = {heads}: width a multiple of heads and at most "
                "16384, layers from 1 to 128"
            )
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.queries = nn.Parameter(torch.randn(thoughts, width))
        self.gather = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2 * dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> State:
        """`loc` and `log_variance`, each [B, N, D], of the targets [B, T] that count.

        Raises:
            UserError: there are no targets to read.
        """
        if batch.targets is None:
            raise UserError("an encoder needs the tokens that it is to read: the batch has no targets")
        return self.read(self.tokens(batch.targets), ~batch.mask)

    def read(self, embedded: Tensor, silent: Tensor | None = None) -> State:
        """The same of texts whose tokens are `embedded` [B, T, width]; those that are `silent` [B, T] count nothing."""
        h = self.body(embedded + self.positions[: embedded.shape[1]], src_key_padding_mask=silent)
        queries = self.queries.expand(len(embedded), -1, -1)
        gathered, _ = self.gather(queries, h, h, key_padding_mask=silent, need_weights=False)
        loc, log_variance = self.head(self.norm(queries + gathered)).chunk(2, dim=-1)
        return {"loc": loc, "log_variance": log_variance}
