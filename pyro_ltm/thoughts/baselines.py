"""Features of texts that cost less than thoughts: what a probe of thoughts has to be better than."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_ltm.inference import build
from pyro_ltm.noise import fold
from pyro_ltm.runs.run import Run
from pyro_ltm.thoughts.diagnostics import Thoughts
from pyro_ltm.types import Batch

UNTRAINED, WORDS, EMBEDDING, SHUFFLED = "untrained decoder", "bag of words", "mean token embedding", "shuffled"
SINGULAR = 64
"""Singular vectors of a bag of words: as many numbers a text as such a baseline usually has."""


def baselines(run: Run, thoughts: Thoughts, *, progress: Callable[[int], None] | None = None) -> dict[str, Tensor]:
    """Features [S, ...] of the texts of `thoughts`, by name.

    `untrained decoder`: posterior means under the run's first weights, fitted alike. `bag of words`: see the function.
    `mean token embedding`: of the trained model. `shuffled`: the thoughts themselves, of other texts.
    """
    order = torch.randperm(len(thoughts.means), generator=torch.Generator().manual_seed(fold(thoughts.seed, "order")))
    found = {
        UNTRAINED: untrained_thoughts(run, thoughts, progress=progress).means,
        WORDS: bag_of_words(thoughts.batches, run.config.model.vocab_size),
        SHUFFLED: thoughts.means[order],
    }
    # A decoder of another project may keep its embeddings where only it knows.
    embedding = getattr(run.model.decoder, "tok_embeddings", None)
    return found if embedding is None else found | {EMBEDDING: mean_embeddings(embedding, thoughts.batches)}


def untrained_thoughts(run: Run, thoughts: Thoughts, *, progress: Callable[[int], None] | None = None) -> Thoughts:
    """The same texts under the weights that the run began with, in the same fast loop."""
    model, first = build(dataclasses.replace(run.config, compile=False), device=run.device)
    learns = thoughts.loop.guide.learning != "none"
    loop = dataclasses.replace(thoughts.loop, guide=first.guide) if learns else thoughts.loop
    batches = [dataclasses.replace(batch, context=None, context_of=None) for batch in thoughts.batches]
    return Thoughts.fit(model.eval(), batches, loop, seed=thoughts.seed, progress=progress)


def bag_of_words(batches: Sequence[Batch], vocab_size: int) -> Tensor:
    """TF-IDF of the tokens of each text, of length 1, on its first singular vectors: [S, at most `SINGULAR`]."""
    counts = torch.cat([_counts(batch, vocab_size) for batch in batches])
    frequency = (1 + counts.clamp(min=1).log()) * (counts > 0)
    seen = (counts > 0).double().sum(0)
    rarity = ((1 + len(counts)) / (1 + seen)).log() + 1
    weighted = torch.nn.functional.normalize(frequency * rarity, dim=1)
    left, singular, _ = torch.linalg.svd(weighted[:, seen > 0], full_matrices=False)
    return left[:, :SINGULAR] * singular[:SINGULAR]


def mean_embeddings(embedding: nn.Embedding, batches: Sequence[Batch]) -> Tensor:
    """[S, D] the mean of the embeddings of each text's tokens."""
    weight = embedding.weight.detach().double().cpu()
    counts = torch.cat([_counts(batch, len(weight)) for batch in batches])
    return counts @ weight / counts.sum(1, keepdim=True)


def _counts(batch: Batch, vocab_size: int) -> Tensor:
    """[B, V] how often each token is among a text's targets, float64 on the CPU."""
    assert batch.targets is not None  # texts have them
    counts = torch.zeros(batch.size, vocab_size, dtype=torch.float64)
    return counts.scatter_add_(1, batch.targets.cpu(), batch.mask.double().cpu())
