"""The protocol `prefix`: what a model predicts of a text whose beginning it has read. Comparable with any other model.

Protocol: q is fitted to the first m tokens alone; the tokens after them are scored under the mixture of the decoder
over K fresh draws from q, -log mean_k p(after | first m, z_k). That is a predictive distribution over texts, so no
such figure lies below the entropy in expectation, and an autoregressive model's exact figure on the same tokens stands
beside it. Sequentially, q is fitted again at every `stride` tokens, the first block being scored under the prior: then
every token of the text is predicted from those before it. A masked diffusion has a bound on the same: of each block
given those before it, what comes after it being hidden.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ltm.distributed import team
from pyro_ltm.errors import UserError
from pyro_ltm.inference import FastLoop
from pyro_ltm.model import LatentThoughtModel, TokenSequence
from pyro_ltm.noise import Noise, draw, fold
from pyro_ltm.scores.estimate import Count, Figure, Tally
from pyro_ltm.types import Batch, evaluating


@dataclass(frozen=True, kw_only=True, repr=False)
class AfterPrefix(Figure):
    """Nats a token of the tokens after the first `prefix`, given those."""

    prefix: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Prefix(Figure):
    """Predictions of a model. The figure itself is the sequential one: all tokens, each from those before it.

    Attributes:
        stride: tokens between two fits.
        by_prefix: of the tokens after the first m alone, for each m.
        particles, fast_steps, seed, sequences: how it was measured.
    """

    stride: int
    by_prefix: list[AfterPrefix]
    particles: int
    fast_steps: int
    seed: int
    sequences: int


@torch.no_grad()
def evaluate_prefix(
    model: LatentThoughtModel,
    batches: Iterable[Batch],
    loop: FastLoop,
    *,
    particles: int = 16,
    prefixes: Sequence[int] | None = (),
    stride: int = 0,
    seed: int = 0,
    progress: Count | None = None,
) -> Prefix:
    """Fits q to the beginnings of every sequence and scores what comes after.

    Args:
        particles: draws K of the mixture.
        prefixes: several m; none: a quarter, a half and three quarters of the sequences' length; None: the sequential
            figure alone.
        stride: tokens between two fits of the sequential form; 0: an eighth of the length.
        progress: called after each batch.

    Raises:
        UserError: a prefix that leaves nothing to score, or no sequences.
    """
    reader, tally = _Reader(model, loop, particles, seed), Tally(progress)
    after: dict[int, list[tuple[Tensor, Tensor]]] = {}
    chosen: Sequence[int] = ()
    with evaluating(model):
        for read in batches:
            batch = model.precompute(read)
            if not after:
                stride = stride or max(1, batch.length // 8)
                chosen = () if prefixes is None else prefixes or quarters(batch.length)
                _check(chosen, stride, batch.length)
            for prefix in chosen:
                pair = reader.nats(batch, prefix, batch.length), batch.mask[:, prefix:].sum(-1).cpu()
                after.setdefault(prefix, []).append(pair)
            blocks = range(0, batch.length, stride)
            tally.add(batch, sum((reader.nats(batch, at, at + stride) for at in blocks), torch.zeros(batch.size)))
    sequences, _, places = tally.whole()
    parts, (stride, *_) = team().gather([after]), team().gather([stride])  # the first has sequences, if there are any
    return tally.figure(
        Prefix,
        "predictive figure",
        stride=stride,
        by_prefix=[
            AfterPrefix.of(torch.cat([n for n, _ in pairs]), torch.cat([t for _, t in pairs]), places, prefix=prefix)
            for prefix, pairs in ((at, [pair for part in parts for pair in part.get(at, [])]) for at in parts[0])
        ],
        particles=particles,
        fast_steps=loop.steps,
        seed=seed,
        sequences=len(sequences),
    )


def quarters(length: int) -> list[int]:
    """The beginnings that are given where none are named: a quarter, a half and three quarters of the length."""
    return sorted({max(1, length * share // 4) for share in (1, 2, 3)})


@dataclass
class _Reader:
    """Reads beginnings, and scores what comes after."""

    model: LatentThoughtModel
    loop: FastLoop
    particles: int
    seed: int

    def nats(self, batch: Batch, start: int, end: int) -> Tensor:
        """[B] -log p(tokens from `start` to `end` | those before), float64 on the CPU."""
        noise = Noise(batch.ids, device=batch.device, seed=fold(self.seed, "score", start))
        if self.model.config.is_diffusion:
            return self._bound(batch, start, end)
        if not self.model.config.thoughts:
            return -self._log_likelihood(batch.beginning(end), self._prior(batch, 1, noise)[0], start)
        if start:
            posterior = self.loop.fit_to_score(self.model, batch.beginning(start), seed=fold(self.seed, "fit", start))
            q = posterior.distribution
            thoughts = draw(q.expand(torch.Size([self.particles, batch.size])), noise)
        else:
            thoughts = self._prior(batch, self.particles, noise)
        each = torch.stack([self._log_likelihood(batch.beginning(end), z, start) for z in thoughts])
        return math.log(len(each)) - torch.logsumexp(each, 0)

    def _bound(self, batch: Batch, start: int, end: int) -> Tensor:
        """[B] a masked diffusion's bound on the same nats, on draws of their own for each start."""
        assert batch.targets is not None  # a batch without targets has nothing to score
        hiding = (fold(self.seed, "score", start), self.particles)
        scored = dataclasses.replace(batch, token_slice=slice(start, min(end, batch.length)), hiding=hiding)
        none = torch.zeros(batch.size, 0, self.model.config.thought_width, device=batch.device)
        return -self.model.likelihood(none, scored).log_prob(batch.targets).double().cpu()

    def _prior(self, batch: Batch, particles: int, noise: Noise) -> Tensor:
        return draw(self.model.prior().expand(torch.Size([particles, batch.size])), noise)

    def _log_likelihood(self, batch: Batch, thoughts: Tensor, start: int) -> Tensor:
        assert batch.targets is not None  # a batch without targets has nothing to score
        # What lies before `start` is worked out as far as the tokens after it look back, and no further.
        scored = dataclasses.replace(batch, token_slice=slice(start, batch.length)) if start else batch
        return TokenSequence(self.model.decoder, thoughts, scored).log_prob(batch.targets).double().cpu()


def _check(prefixes: Sequence[int], stride: int, length: int) -> None:
    bad = [prefix for prefix in prefixes if not 0 < prefix < length]
    if bad:
        raise UserError(f"prefix = {bad[0]}: must be at least 1 and leave something of {length} tokens to score")
    if stride < 1:
        raise UserError(f"stride = {stride}: at least 1 token")
