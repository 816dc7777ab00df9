"""A latent-thought model of a world's documents whose evidence is the floor itself: no bound has room for an error."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_ltm.config import ModelConfig
from pyro_ltm.data import TokenDataset, World
from pyro_ltm.model import LatentThoughtModel


class FactorMixture(nn.Module):
    """In place of a decoder: p(x | z) = sum_c softmax(scale z)_c p(x | c), for the world's C combinations c of factors.

    The thoughts are C numbers, all alike under the prior, so that E[softmax(scale z)_c] = 1 / C; and the world draws
    its factors evenly. Hence p(x) = E[p(x | z)] is `World.log_prob`, exactly. At a wider `scale` thoughts can tell more
    of the factors, and posteriors are further from any Normal.

    It knows no single tokens: the nats of a document stand at its first one.
    """

    def __init__(self, data: TokenDataset, world: World, scale: float):
        super().__init__()
        self.world, self.scale = world, scale
        self.tokenizer, self.end = data.folder.tokenizer(), data.folder.end_of_text

    def context(self, inputs: Tensor) -> Tensor:
        """log p(x | c), [B, 1, C], of whole documents: all their tokens but the end are among the inputs."""
        texts = [self.tokenizer.decode(row[row != self.end].tolist()) for row in inputs]
        return torch.from_numpy(np.stack([self.world.log_prob_by_factors(text) for text in texts]))[:, None]

    def forward(self, context: Tensor, thoughts: Tensor) -> Tensor:
        """log p(x | z), [B, 1, 1]."""
        log_share = (self.scale * thoughts.flatten(1)).log_softmax(-1)
        return (log_share + context[:, 0]).logsumexp(-1)[:, None, None]

    def token_log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats of B T targets, for `hidden` [B, 1]: the document's, and T - 1 zeros."""
        return F.pad(hidden, (0, len(targets) // len(hidden) - 1)).flatten()

    def fused_weights(self) -> nullcontext[None]:
        """There are no weights to lay out."""
        return nullcontext()


def world_program(data: TokenDataset, *, scale: float = 2.0) -> LatentThoughtModel:
    """The program for a prepared folder of one world, in double precision."""
    world = World.of(data.folder)
    assert world is not None
    thoughts = {"thoughts": 4, "dim": world.combinations // 4, "layers": 2, "heads": 2}
    model = LatentThoughtModel(ModelConfig(**thoughts, vocab_size=data.vocab_size, max_length=data.sequence_length))
    model.decoder = FactorMixture(data, world, scale)
    return model.double()
