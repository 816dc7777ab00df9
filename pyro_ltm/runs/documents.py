"""The thoughts of documents, fitted sequence by sequence, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ltm.data import Document
from pyro_ltm.data.tokenizer.cutting import encodable_pieces
from pyro_ltm.distributed import team
from pyro_ltm.errors import UserError
from pyro_ltm.inference.codec import continuation, encode_for
from pyro_ltm.noise import fold
from pyro_ltm.runs.partial_fits import PartialFits
from pyro_ltm.runs.thoughts_file import write_thoughts
from pyro_ltm.types import Batch

if TYPE_CHECKING:
    from pyro_ltm.runs.run import Run

DRAWS = 4
"""Draws of the thoughts on fresh noise, from which each text's bound is taken."""

SHOWN = 80
"""Characters of each text that a file keeps, so that a reader knows which is which."""

MOST_SHOWN = 100_000
"""Texts and documents that it names, where these take no more than `MOST_NAMED` characters."""

MOST_NAMED = 6 << 20
"""Characters of ids and origins that it keeps: the header of a safetensors file holds 100 MB, and a character takes up
to six bytes of it."""


@dataclass(frozen=True)
class Piece:
    """Tokens of one document that fill a sequence, the token before them in front.

    Attributes:
        number: of the document in the input, from 0.
    """

    tokens: list[int]
    number: int
    document: Document

    @property
    def origin(self) -> dict[str, Any]:
        """Where its document stands: number and origin, its id if it has one, and its columns if it has some."""
        about: dict[str, Any] = {"document": self.number, "origin": self.document.origin}
        about |= {} if self.document.id is None else {"id": self.document.id}
        return about | ({"columns": dict(self.document.columns)} if self.document.columns else {})


@dataclass(frozen=True)
class DocumentThoughts:
    """Posteriors of S sequences, N thoughts each.

    Attributes:
        tensors: `thoughts` [S, N, D], the posterior means; `state.*`, the fitted parameters; `bound_nats` [S], NaN
            of points, which have none; `tokens` [S]; `document` [S], the number of each sequence's document in the
            input, from 0.
        texts: how each sequence begins.
        documents: of each one with text its number, its origin, its id if it has one, and its columns if it has some.
    """

    tensors: dict[str, Tensor]
    texts: list[str]
    documents: list[dict[str, Any]]

    @property
    def tokens(self) -> int:
        """Targets read."""
        return int(self.tensors["tokens"].sum())

    @property
    def nats_per_token(self) -> float:
        """Minus the bound, on draws that no fit has seen."""
        return float(-self.tensors["bound_nats"].double().sum()) / self.tokens

    @property
    def named(self) -> list[dict[str, Any]]:
        """The first documents, as many as a file can name."""
        left, count = MOST_NAMED, 0
        for one in self.documents[:MOST_SHOWN]:
            left -= len(one["origin"]) + len(str(one.get("id", "")))
            if left < 0:
                break
            count += 1
        return self.documents[:count]

    def save(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Writes a file that `read_thoughts` reads, `meta` in its header. Raises UserError where it cannot."""
        write_thoughts(path, self.tensors, {**meta, "texts": self.texts[:MOST_SHOWN], "documents": self.named})


def piece_of_text(run: Run, text: str) -> Piece:
    """One text that the model can read whole. Raises UserError when it is empty or too long."""
    return Piece(encode_for(run.model, run.tokenizer, text), 0, Document(text, "--text"))


def cut_documents(run: Run, documents: Iterable[Document], spec: str = "") -> Iterator[Piece]:
    """Each document's tokens in sequences that the model can read; `spec` names where documents come from."""
    most = run.config.model.max_length - 1
    number, current = -1, Document("", spec)
    before, left = run.tokenizer.end_of_text, list[int]()
    read = (("", document) for document in documents)
    for _, document in encodable_pieces(read, cut=run.tokenizer.pipeline.has_cut_points):
        if not document.continues:
            if left:
                yield Piece([before, *left], number, current)
            number, current = number + 1, document
            before, left = run.tokenizer.end_of_text, []
        left += run.tokenizer.encode(document.text)
        while len(left) > most:
            yield Piece([before, *left[:most]], number, current)
            before, left = left[most - 1], left[most:]
    if left:
        yield Piece([before, *left], number, current)


def infer_documents(
    run: Run,
    pieces: Iterable[Piece],
    *,
    batch_size: int = 32,
    fast_steps: int | None = None,
    seed: int = 0,
    same_noise: bool = False,
    draw: bool = False,
    states: bool = True,
    kept: PartialFits | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> DocumentThoughts:
    """Fits q(z) to each piece; `progress` is called with the sequences done.

    Where several processes share it (`distributed.sharing`), each fits every so many-th batch, and all have all.

    Args:
        same_noise: all fits draw the same noise, so that a text has the same thoughts wherever it stands, and what two
            texts differ by is no chance; else each draws its own, keyed by its place in the input.
        draw: `thoughts` are a draw from each posterior, independent of the others', in place of its mean.
        states: keep the fitted parameters, which take many times the room of the thoughts in families of full rank.
        kept: fits that were done before, which are not done again; the others are added.

    Raises:
        UserError: the model has no thoughts, or there is no piece.
    """
    check_thinks(run)
    shared, fits = team(), list[tuple[int, dict[str, Tensor]]]()
    texts: list[str] = []
    documents: dict[int, dict[str, Any]] = {}
    left = iter(pieces)
    for number in itertools.count():
        group = list(itertools.islice(left, batch_size))
        if not group:
            break
        if number % shared.size == shared.rank:
            tensors = kept.take(len(texts), len(group)) if kept else {}
            if not tensors:
                places = torch.arange(len(texts), len(texts) + len(group))
                batch = Batch.from_lists([one.tokens for one in group], pad=run.tokenizer.end_of_text)
                # Keyed by a sequence's place in the input, or not at all, so that batches change nothing.
                batch = dataclasses.replace(batch, ids=torch.zeros_like(places) if same_noise else places)
                tensors = _fit(run, batch.to(run.device), fast_steps, seed, places if draw else None)
                tensors = {name: value for name, value in tensors.items() if states or not name.startswith("state.")}
                if kept:
                    kept.add(len(texts), tensors)
            fits.append((number, tensors | {"document": torch.tensor([one.number for one in group])}))
        texts += [continuation(run.tokenizer, one.tokens[:1], one.tokens[1:])[:SHOWN] for one in group]
        for one in group:
            documents.setdefault(one.number, one.origin)
        progress(len(texts))
    if not texts:
        raise UserError("the input has no text: nothing to infer")
    ordered = [tensors for _, tensors in sorted(shared.gather(fits), key=itemgetter(0))]
    found = {name: torch.cat([tensors[name] for tensors in ordered]) for name in ordered[0]}
    return DocumentThoughts(found, texts, list(documents.values()))


def check_thinks(run: Run) -> None:
    """Raises UserError when the model has no thoughts."""
    if not run.config.model.thoughts:
        raise UserError(f"{run.folder}: this model has no thoughts ({run.config.model.no_thoughts}): nothing to infer")


def _fit(run: Run, batch: Batch, fast_steps: int | None, seed: int, places: Tensor | None) -> dict[str, Tensor]:
    """The tensors of a file, but `document`; thoughts are drawn by the noise of `places` [B], where those are given."""
    posterior = run.loop.with_steps(fast_steps).fit_to_score(run.model, batch, seed=fold(seed, "fit"))
    bound = torch.full((batch.size,), float("nan"))
    if posterior.guide.scored_distribution(posterior.state) is not None:
        terms = posterior.with_noise(fold(seed, "score")).score(run.model, batch, particles=DRAWS)
        bound = -(terms.distortion + terms.rate)
    if places is None:
        thoughts = posterior.mean()
    else:
        thoughts = dataclasses.replace(posterior, ids=places).with_noise(fold(seed, "draw")).sample()[0]
    tensors = {
        "thoughts": thoughts,
        "bound_nats": bound,
        "tokens": batch.mask.sum(-1),
        **{f"state.{name}": value for name, value in posterior.state.items()},
    }
    return {name: value.detach().cpu() for name, value in tensors.items()}
