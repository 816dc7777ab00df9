"""Texts that a model writes itself, with the thoughts that it wrote them from: exact draws of each text's posterior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.model import LatentThoughtModel, sample_tokens
from pyro_ltm.noise import Noise, draw, fold
from pyro_ltm.types import Batch

Written = tuple[Batch, Tensor]
"""A batch of texts, and their thoughts [B, N, D]."""


@torch.no_grad()
def write_texts(
    model: LatentThoughtModel,
    count: int,
    *,
    start: int,
    length: int,
    end: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Iterator[Written]:
    """`count` texts of `length` tokens from the program itself: thoughts from the prior, tokens one after the other.

    A text depends on its number and `seed`, not on its batch.

    Args:
        start: the token before the first, as a rule that between documents.
        end: a token that ends a text: what would follow it counts nothing, as in sequences of one document each. None:
            texts go on to their length, as where documents are packed one after the other.

    Raises:
        UserError: the model has no thoughts, or `length` is more than it reads.
    """
    if not model.config.thoughts:
        raise UserError(f"this model has no thoughts ({model.config.no_thoughts}): it knows no posterior")
    if not 1 <= length <= model.config.max_length:
        raise UserError(f"length = {length}: from 1 to {model.config.max_length} tokens, as this model reads")
    for first in range(0, count, batch_size):
        ids = torch.arange(first, min(first + batch_size, count))
        noise = Noise(ids, device=model.device, seed=fold(seed, "thoughts"))
        thoughts = draw(model.prior().expand(torch.Size([len(ids)])), noise)
        generators = [torch.Generator(model.device).manual_seed(fold(seed, "tokens", name)) for name in ids.tolist()]
        prompt = torch.full((len(ids), 1), start, device=model.device)
        tokens = sample_tokens(model.decoder, thoughts, prompt, length, end=end, generator=generators)
        batch = Batch.from_tokens(F.pad(tokens, (0, length + 1 - tokens.shape[1]), value=end or 0), ids=ids)
        if end is not None:
            ended = batch.inputs[:, 1:] == end  # the first input may be the same token, and ends nothing
            batch = replace(batch, mask=F.pad(ended.cumsum(1) == 0, (1, 0), value=True))
        yield batch, thoughts
