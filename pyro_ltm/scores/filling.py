"""Scores of a text after another by a masked diffusion, which fills it in.

What an answer costs is the bound on log p(continuation | context): the mean over orders in which its tokens may be
written, what comes after them being hidden, in the room of a whole sequence. Of one token alone it is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import fold
from pyro_ltm.scores.continuation import Piece, Scored
from pyro_ltm.types import Batch

Span = tuple[int, int, int]
"""First target of a continuation, the one behind its last, and the targets of the whole sequence."""


@dataclass(frozen=True)
class Filler:
    """Scores continuations by a masked diffusion: what `Predictor` is of models that write in order.

    `is_greedy` is meant as there: each token is the likeliest, after the right ones before it, the rest being hidden.

    Args:
        room: tokens in a sequence, as in training; a longer piece has the room that it needs.
        particles: draws K of what is hidden, of each context's own noise. batch_size: sequences at a time.
    """

    model: LatentThoughtModel
    room: int
    particles: int = 16
    batch_size: int = 16
    seed: int = 0

    @torch.no_grad()
    def score(self, pieces: Sequence[Piece]) -> list[Scored]:
        """Each piece's score, in their order."""
        places: dict[Span, list[int]] = {}
        for place, piece in enumerate(pieces):
            start = len(piece.context.tokens) - 1
            end = start + len(piece.continuation)
            places.setdefault((start, end, max(end, self.room)), []).append(place)
        found: dict[int, Scored] = {}
        for span, some in places.items():
            for rows in torch.tensor(some).split(self.batch_size):
                batch = self._batch([pieces[row] for row in rows.tolist()], span)
                nats, greedy = self.model.log_prob_without_thoughts(batch).double().tolist(), self._greedy(batch, span)
                scored = map(Scored, nats, greedy.tolist())
                found |= dict(zip(rows.tolist(), scored, strict=True))
        return [found[place] for place in range(len(pieces))]

    def _batch(self, pieces: Sequence[Piece], span: Span) -> Batch:
        start, end, room = span
        tokens = torch.zeros(len(pieces), room + 1, dtype=torch.int64)
        tokens[:, : end + 1] = torch.tensor([(*piece.context.tokens, *piece.continuation) for piece in pieces])
        names = torch.tensor([piece.context.name for piece in pieces])
        batch = Batch.from_tokens(tokens.to(self.model.device), ids=names)
        hiding = (fold(self.seed, "score"), self.particles)
        return dataclasses.replace(batch, token_slice=slice(start, end), hiding=hiding)

    def _greedy(self, batch: Batch, span: Span) -> Tensor:
        """Whether each token is the likeliest where it and all after it are hidden, bool [B]."""
        decoder, targets = self.model.decoder, batch.targets
        assert targets is not None  # they are what is scored
        greedy = torch.ones(batch.size, dtype=torch.bool, device=batch.device)
        for place in range(*span[:2]):
            seen = targets.clone()
            seen[:, place:] = decoder.config.vocab_size
            states = decoder(decoder.context(torch.cat([batch.inputs[:, :1], seen], dim=1)), None)
            greedy &= decoder.logits(states[:, 1 + place]).argmax(-1) == targets[:, place]
        return greedy


__all__ = ["Filler"]
