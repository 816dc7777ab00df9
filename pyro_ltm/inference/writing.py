"""Writing texts row by row; fitting the thoughts again to what was written, and writing again (arXiv:2602.06584)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.inference.codec import Codec, continuation
from pyro_ltm.inference.fast_loop import FastLoop
from pyro_ltm.inference.posterior import Posterior
from pyro_ltm.model import DecodingOptions, LatentThoughtModel
from pyro_ltm.noise import fold
from pyro_ltm.plugins import blamed
from pyro_ltm.types import Batch

LogReward = Callable[[Tensor, str], float]
"""log_reward(z, text): how good a text is; more is better. z [N, D]: the thoughts that it was written from. text: the
prompt and what was written after it."""


@dataclass(frozen=True, kw_only=True)
class Rethinking:
    """How often thoughts are fitted to what was written from them, and which of the texts is kept.

    Args:
        rounds: R times the thoughts are fitted to prompt and continuation, drawn anew, and the continuation is written
            again from them. 0: never.
        keep: of the R + 1 texts, the one with the highest value of this function, the first of equals; None: the one
            whose bound is highest, in nats a token of prompt and continuation together.
        refit_every: while a text is written, the thoughts are fitted anew to all of it so far after every so many
            tokens, and what follows is written from a fresh draw; None: never.
        particles: draws of the bound by which is kept, the same noise for all texts and unseen by their fits.

    Raises:
        UserError: a number out of its range.
    """

    rounds: int = 0
    keep: LogReward | None = None
    refit_every: int | None = None
    particles: int = 8

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise UserError(f"rounds = {self.rounds}: at least 0 (0: no rethinking)")
        if self.refit_every is not None and self.refit_every < 1:
            raise UserError(f"refit_every = {self.refit_every}: at least 1 token")
        if self.particles < 1:
            raise UserError(f"particles = {self.particles}: at least 1 draw")

    def check(self, model: LatentThoughtModel, loop: FastLoop) -> None:
        """Raises UserError where the model has no thoughts to fit, or its posteriors no bound to keep a text by."""
        if not self.rounds and self.refit_every is None:
            return
        if not model.config.thoughts:
            raise UserError(f"this model has no thoughts ({model.config.no_thoughts}): nothing to fit again")
        if self.rounds and self.keep is None and not loop.guide.has_density:
            raise UserError(
                f"{type(loop.guide).__name__} has no density, so no bound says which text to keep: "
                "give a function of your own, log_reward(z, text)"
            )


@dataclass(frozen=True)
class Row:
    """A text to write.

    Attributes:
        prompt: its tokens, the first of which is end-of-text; text: the same for people.
        room: new tokens that it may get.
        key: names its noise among all rows.
    """

    prompt: list[int]
    text: str
    room: int
    key: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """New tokens of a row, with the end-of-text token if they got so far, and the thoughts [N, D] they come from.

    Attributes:
        drafts: with rethinking, the text of each round; scores: theirs; kept: which of them this is.
    """

    tokens: list[int]
    thoughts: Tensor
    drafts: tuple[Written, ...] = ()
    scores: tuple[float, ...] = ()
    kept: int = 0


@dataclass(frozen=True)
class Writer:
    """Writes rows together. What a row gets does not depend on the others, but for rounding.

    Args:
        sampler: how tokens are drawn; None: `DecodingOptions()`.
        rethinking: how often thoughts are fitted to what was written, and it is written again.
        seed: of all noise.

    Raises:
        UserError: there is to be rethinking, and model and fast loop do not allow it.
    """

    model: LatentThoughtModel
    loop: FastLoop
    codec: Codec
    sampler: DecodingOptions | None = None
    rethinking: Rethinking = field(default_factory=Rethinking)
    seed: int = 0

    def __post_init__(self) -> None:
        self.rethinking.check(self.model, self.loop)

    def write(self, rows: Sequence[Row], thoughts: Tensor) -> list[Written]:
        """The text of each row that is kept; `thoughts` [B, N, D]: those of its first text."""
        texts = [self._write(rows, thoughts, 0)]
        if not self.rethinking.rounds:
            return texts[0]
        by_bound, scores = self.rethinking.keep is None, []
        for turn in range(1, self.rethinking.rounds + 1):
            batch, posterior = self._fit(rows, texts[-1], turn)
            scores.append(self._bound(batch, posterior) if by_bound else self._rewards(rows, texts[-1]))
            texts.append(self._write(rows, self._draw(posterior, turn), turn))
        last = texts[-1]
        scores.append(self._bound(*self._fit(rows, last, len(texts))) if by_bound else self._rewards(rows, last))
        return [_best(*of_row) for of_row in zip(zip(*texts, strict=True), zip(*scores, strict=True), strict=True)]

    def _write(self, rows: Sequence[Row], thoughts: Tensor, turn: int) -> list[Written]:
        """The text of each row in this `turn`; with `refit_every`, piece by piece."""
        turns = ("round", turn) if turn else ()
        seeds = [fold(self.seed, "tokens", *row.key, *turns) for row in rows]
        generators = [torch.Generator(self.model.device).manual_seed(seed) for seed in seeds]
        written = [Written([], z) for z in thoughts]
        going, piece = list(range(len(rows))), 0
        while going:
            room = [rows[at].room - len(written[at].tokens) for at in going]
            if self.rethinking.refit_every:
                room = [min(each, self.rethinking.refit_every) for each in room]
            new = self._sample([rows[at] for at in going], [written[at] for at in going], room, generators, going)
            for at, tokens in zip(going, new, strict=True):
                written[at].tokens.extend(tokens)
            going, piece = [at for at in going if not self._is_whole(rows[at], written[at])], piece + 1
            if going:
                key = turn, "piece", piece
                _, posterior = self._fit([rows[at] for at in going], [written[at] for at in going], *key)
                for at, z in zip(going, self._draw(posterior, *key), strict=True):
                    written[at] = dataclasses.replace(written[at], thoughts=z)
        return written

    def _sample(
        self,
        rows: Sequence[Row],
        written: Sequence[Written],
        room: list[int],
        generators: Sequence[torch.Generator],
        places: list[int],
    ) -> list[list[int]]:
        """Up to `room` more tokens of each row, to the end of its text."""
        before = [[*row.prompt, *one.tokens] for row, one in zip(rows, written, strict=True)]
        lengths, end = [len(tokens) for tokens in before], self.codec.end_of_text
        padded = [tokens + [end] * (max(lengths) - len(tokens)) for tokens in before]
        found = self.model.write(
            torch.stack([one.thoughts for one in written]),
            torch.tensor(padded, device=self.model.device),
            room,
            lengths=lengths,
            sampler=self.sampler,
            end=end,
            generator=[generators[place] for place in places],
        ).tolist()
        new = [row[length : length + most] for row, length, most in zip(found, lengths, room, strict=True)]
        return [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in new]

    def _is_whole(self, row: Row, written: Written) -> bool:
        """Whether the row gets no more tokens."""
        return len(written.tokens) >= row.room or self.codec.end_of_text in written.tokens

    def _fit(self, rows: Sequence[Row], written: Sequence[Written], *key: int | str) -> tuple[Batch, Posterior]:
        """Posteriors given prompt and all that was written, and what they were fitted to."""
        texts = [[*row.prompt, *one.tokens] for row, one in zip(rows, written, strict=True)]
        ids = torch.tensor([fold("text", *row.key) for row in rows])
        batch = dataclasses.replace(Batch.from_lists(texts, pad=self.codec.end_of_text), ids=ids)
        batch = self.model.precompute(batch.to(self.model.device))
        return batch, self.loop.fit_to_score(self.model, batch, seed=fold(self.seed, "refit", *key))

    def _draw(self, posterior: Posterior, *key: int | str) -> Tensor:
        """Thoughts [B, N, D] on noise that no fit has seen."""
        return posterior.with_noise(fold(self.seed, "redraw", *key)).sample()[0]

    def _bound(self, batch: Batch, posterior: Posterior) -> list[float]:
        """The bound of each text, in nats a token."""
        unseen = posterior.with_noise(fold(self.seed, "keep"))
        terms = unseen.score(self.model, batch, particles=self.rethinking.particles)
        bound: list[float] = (-(terms.distortion + terms.rate) / batch.mask.sum(1)).tolist()
        return bound

    def _rewards(self, rows: Sequence[Row], written: Sequence[Written]) -> list[float]:
        """The user's function of each text. Raises UserError where it fails or gives no number."""
        reward = self.rethinking.keep
        assert reward is not None
        return [_reward(reward, one.thoughts, self.text(row, one)) for row, one in zip(rows, written, strict=True)]

    def text(self, row: Row, written: Written) -> str:
        """Prompt and continuation, as people read them."""
        return row.text + added(self.codec, row, written)


def added(codec: Codec, row: Row, written: Written) -> str:
    """The continuation, as people read it."""
    return continuation(codec, row.prompt, [token for token in written.tokens if token != codec.end_of_text])


def _best(texts: Sequence[Written], scores: Sequence[float]) -> Written:
    """The text of the highest score, the first of equals, with all texts and their scores."""
    kept = max(range(len(scores)), key=lambda turn: scores[turn])
    return dataclasses.replace(texts[kept], drafts=tuple(texts), scores=tuple(scores), kept=kept)


def _reward(reward: LogReward, thoughts: Tensor, text: str) -> float:
    name = getattr(reward, "__qualname__", type(reward).__name__)
    with blamed(f"{name}(z, text) failed"):
        value = float(reward(thoughts, text))
    if math.isnan(value):
        raise UserError(f"{name}(z, text) gave NaN for the text {one_line(text, 60)!r}: expected a number")
    return value
