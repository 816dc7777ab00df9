"""The decoder as the rest of the project sees it: what a model's program, its scores and generation ask of one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ltm.config import ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.types import Batch


class TokenDecoder(nn.Module):
    """p(next token | tokens, thoughts), up to the softmax: a `Decoder`, or one made of an existing language model.

    Called as `decoder(context, thoughts, token_slice=None, mask=None)` it gives hidden states [B, T, D'] from the
    `context` of the inputs and the thoughts [B, N, D]; None: no thoughts, as its twin. `mask` is `dropout_mask`.

    Attributes:
        config: shape of its thoughts, its vocabulary and the longest sequence that it reads.
        compute_dtype: precision of its matrix products.
        recompute: where weights learn, the backward pass computes each layer again instead of keeping what it did.
    """

    config: ModelConfig
    compute_dtype: torch.dtype
    recompute: bool

    def take_transport(self, transport: nn.Module) -> None:
        """Makes `transport` a part of the decoder: its layers read what this gives of the thoughts.

        Raises:
            UserError: this decoder has no place for one.
        """
        raise UserError(
            f"{type(self).__name__} reads thoughts as they are, and has no place for the map of a prior: "
            "choose one without a map, such as the prior 'gaussian'"
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [..., D] of `tokens` [...], by which a prior that reads prompts knows them.

        Raises:
            UserError: its embeddings are not as wide as thoughts.
        """
        raise UserError(f"{type(self).__name__} has no embeddings for a prior that reads prompts: choose another prior")

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        raise NotImplementedError

    def dropout_mask(self, batch: Batch) -> Tensor | None:
        """The mask of a slow step's dropout, whose second dimension is B; None: nothing is dropped."""
        raise NotImplementedError

    def context(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of `inputs` [B, T] all that thoughts cannot touch, [B, T, ...]: computed once for many passes."""
        raise NotImplementedError

    def forward_slice(self, context: Tensor, thoughts: Tensor, where: slice) -> Tensor:
        """The hidden states at the tokens `where` alone, [B, P, D']; never compiled."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D']."""
        raise NotImplementedError

    def token_log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Nats [R] of the `tokens` [R] after the hidden states [R, D']."""
        raise NotImplementedError

    def prefill(self, tokens: Tensor, thoughts: Tensor) -> tuple[Tensor, Any]:
        """Reads `tokens` [B, P]: the last hidden state [B, D'] and the cache from which `step` goes on."""
        raise NotImplementedError

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Reads one token of each sequence, [B], into `cache` and gives the hidden state [B, D'] after it."""
        raise NotImplementedError

    def fused_weights(self) -> AbstractContextManager[None]:
        """Within it no weight changes: copies that make many passes faster may be kept."""
        raise NotImplementedError

    def drop_fused_weights(self) -> None:
        """Drops those copies."""
        raise NotImplementedError
