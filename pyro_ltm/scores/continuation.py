"""Scores of a text after another: log p(continuation | context), thoughts fitted to the context only.

q is fitted to each context, and its continuation is scored under the mixture over K fresh draws from q,
log mean_k p(continuation | context, z_k): a distribution over continuations, whatever q is. Before any text there is
nothing to fit, and the draws come from the prior. Contexts may differ in length; none knows of the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_ltm.inference import FastLoop
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.model.sampling import check_in_order
from pyro_ltm.noise import Noise, draw, fold
from pyro_ltm.types import Batch

Tokens = tuple[int, ...]

LOGITS = 1 << 24
"""Logits that are held at a time."""


@dataclass(frozen=True, order=True)
class Context:
    """A text to read: at least one token, the first of which is given. Its noise is keyed by `name`."""

    tokens: Tokens
    name: int


@dataclass(frozen=True)
class Piece:
    """Tokens to score after a context; together at most one more than the model's length."""

    context: Context
    continuation: Tokens


@dataclass(frozen=True)
class Scored:
    """log p(continuation | context) in nats, and whether each of its tokens is the mixture's most likely one."""

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class Predictor:
    """Scores continuations, and draws thoughts for those who write some.

    What comes out does not depend on the batch size or on the order of the pieces, but for rounding.

    Args:
        loop: fits q. An objective that compares sequences gets one at a time.
        particles: draws K of the mixture; the twin needs none.
        batch_size: sequences at a time.

    Raises:
        UserError: the model does not foretell one token after the other.
    """

    model: LatentThoughtModel
    loop: FastLoop
    particles: int = 16
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_in_order(self.model.decoder)

    @torch.no_grad()
    def score(self, pieces: Sequence[Piece], progress: Callable[[int, float], None] | None = None) -> list[Scored]:
        """Each piece's score, in their order; pieces of one context share its fit and its draws.

        Args:
            progress: called with the pieces done and the nats a token so far.
        """
        found: dict[int, Scored] = {}
        places: dict[Context, list[int]] = {}
        for place, piece in enumerate(pieces):
            places.setdefault(piece.context, []).append(place)
        nats, tokens = 0.0, 0
        for contexts in self._batches(places):
            thoughts = self.thoughts(contexts)
            rows = [(row, place) for row, context in enumerate(contexts) for place in places[context]]
            for some in _cut(rows, self.batch_size):
                scored = self._score([pieces[place] for _, place in some], thoughts[:, [row for row, _ in some]])
                found |= {place: one for (_, place), one in zip(some, scored, strict=True)}
                nats -= sum(one.log_likelihood for one in scored)
                tokens += sum(len(pieces[place].continuation) for _, place in some)
                if progress:
                    progress(len(found), nats / max(tokens, 1))
        return [found[place] for place in range(len(pieces))]

    @torch.no_grad()
    def thoughts(self, contexts: Sequence[Context], particles: int | None = None) -> Tensor:
        """Fresh draws [K, B, N, D] from each context's posterior; K = 1 where there are no thoughts."""
        model, device = self.model, self.model.device
        thoughtful = bool(model.config.thoughts)
        count = (particles or self.particles) if thoughtful else 1
        prior = model.prior()
        drawn: list[Tensor] = []
        for context in contexts:
            noise = Noise(torch.tensor([context.name], device=device), seed=fold(self.seed, "score"))
            drawn.append(draw(prior.expand(torch.Size([count, 1])), noise))
        read = [row for row, context in enumerate(contexts) if thoughtful and len(context.tokens) > 1]
        if read:
            batch = Batch.from_lists([contexts[row].tokens for row in read], pad=0)
            names = torch.tensor([contexts[row].name for row in read])
            batch = Batch(inputs=batch.inputs, targets=batch.targets, mask=batch.mask, ids=names).to(device)
            posterior = self.loop.fit_to_score(model, batch, seed=fold(self.seed, "fit"))
            sampled = posterior.with_noise(fold(self.seed, "score")).sample(count)
            for column, row in enumerate(read):
                drawn[row] = sampled[:, column : column + 1]
        return torch.cat(drawn, dim=1)

    def batches(self, contexts: Sequence[Context]) -> Iterator[list[Context]]:
        """The contexts, each once, in the batches in which they are fitted: those of like lengths together."""
        return self._batches(dict.fromkeys(contexts))

    def _batches(self, contexts: Iterable[Context]) -> Iterator[list[Context]]:
        # Sorted by all that they are, so that a batch does not depend on the order in which they came.
        ordered = sorted(contexts, key=lambda context: (len(context.tokens), context))
        yield from _cut(ordered, self.batch_size)

    def _score(self, pieces: Sequence[Piece], thoughts: Tensor) -> list[Scored]:
        """Scores under thoughts [K, B, N, D]."""
        decoder = self.model.decoder
        whole = [(*piece.context.tokens, *piece.continuation) for piece in pieces]
        batch = Batch.from_lists([tokens if len(tokens) > 1 else (*tokens, 0) for tokens in whole], pad=0)
        context = decoder.context(batch.inputs.to(self.model.device))
        # The hidden state before a token predicts it.
        spans = [(len(piece.context.tokens) - 1, len(tokens) - 1) for piece, tokens in zip(pieces, whole, strict=True)]
        hidden: list[list[Tensor]] = [[] for _ in pieces]
        for z in thoughts:
            states = decoder(context, z)
            for row, (start, end) in enumerate(spans):
                hidden[row].append(states[row, start:end])
        return [self._mixture(torch.stack(states), p.continuation) for states, p in zip(hidden, pieces, strict=True)]

    def _mixture(self, hidden: Tensor, continuation: Tokens) -> Scored:
        """The score of one continuation of C tokens from the K particles' hidden states [K, C, D] before them."""
        decoder, vocab = self.model.decoder, self.model.config.vocab_size
        log_likelihood = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)  # of each particle, so far
        greedy = True
        at = torch.tensor(continuation, dtype=torch.int64, device=hidden.device)
        chunk = max(1, LOGITS // (len(hidden) * vocab))
        for start in range(0, len(continuation), chunk):
            targets = at[start : start + chunk]
            log_probs = F.log_softmax(decoder.logits(hidden[:, start : start + chunk]).double(), dim=-1)  # [K, c, V]
            each = log_probs.gather(-1, targets.expand(len(hidden), -1)[..., None])[..., 0]  # [K, c]
            after = log_likelihood[:, None] + each.cumsum(1)
            before = after - each
            mixed = torch.logsumexp(before[..., None] + log_probs, dim=0)  # [c, V], but for a factor of each position
            greedy = greedy and bool((mixed.argmax(-1) == targets).all())
            log_likelihood = after[:, -1]
        return Scored(float(torch.logsumexp(log_likelihood, 0)) - math.log(len(hidden)), greedy)


def windows(tokens: Tokens, names: Callable[[int], int], *, given: int, length: int, stride: int) -> list[Piece]:
    """`tokens` after the first `given` in blocks of at most `stride`, each after as much as fits of what comes before.

    Every token is scored once, and the scores' sum is log p(tokens after the first `given` | those).

    Args:
        names: the name of the block that starts at this token.
        given: tokens that are not scored, at least one.
        length: of the model, T: a context and its block have at most one token more.
    """
    blocks = []
    for start in range(given, len(tokens), stride):
        end = min(start + stride, len(tokens))
        context = tokens[max(0, end - length - 1) : start]
        blocks.append(Piece(Context(context, names(start)), tokens[start:end]))
    return blocks


def _cut(items: Sequence, size: int) -> Iterator[list]:
    """Lists of at most `size`."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


__all__ = ["Context", "Piece", "Predictor", "Scored", "windows"]
