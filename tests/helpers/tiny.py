"""Small models and batches, with weights large enough that every part of the decoder matters."""

from __future__ import annotations

from typing import Any

import torch

from pyro_ltm.config import ModelConfig
from pyro_ltm.model import Decoder, LatentThoughtModel
from pyro_ltm.types import Batch

V, D, L, N, T = 30, 16, 2, 4, 12


def tiny_config(**changes: Any) -> ModelConfig:
    shape = {"vocab_size": V, "dim": D, "layers": L, "heads": 2, "thoughts": N, "max_length": T, "window": 5}
    return ModelConfig(**(shape | changes))


def tiny_decoder(config: ModelConfig | None = None, *, seed: int = 0) -> Decoder:
    """Weights in the default dtype, about unit gain: at the usual 0.02 the logits hardly move."""
    decoder = Decoder(config or tiny_config())
    enlarge(decoder, seed=seed)
    return decoder


def tiny_model(config: ModelConfig | None = None, *, seed: int = 0) -> LatentThoughtModel:
    model = LatentThoughtModel(config or tiny_config())
    enlarge(model.decoder, seed=seed)
    return model


@torch.no_grad()
def enlarge(decoder: Decoder, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        if parameter.dim() == 2:
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(draw / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64))


def tiny_tokens(size: int = 3, length: int = T, *, vocab: int = V, seed: int = 0) -> torch.Tensor:
    """[B, T + 1] tokens."""
    return torch.randint(vocab, (size, length + 1), generator=torch.Generator().manual_seed(seed))


def tiny_batch(size: int = 3, length: int = T, *, vocab: int = V, seed: int = 0) -> Batch:
    return Batch.from_tokens(tiny_tokens(size, length, vocab=vocab, seed=seed))


def telling_model(size: int = 4) -> tuple[LatentThoughtModel, Batch]:
    """A model whose thoughts matter, and sequences that it wrote: a good posterior is worth many nats."""
    model = tiny_model()
    with torch.no_grad():
        model.decoder.norm.weight.mul_(2)
        for layer in model.decoder.layers:
            layer.cross_attention.wo.weight.mul_(3)
    blank = tiny_batch(size)
    tokens = model(blank.unobserved())
    return model, Batch.from_tokens(torch.cat([blank.inputs[:, :1], tokens], 1))
