"""Thoughts as features: a row of numbers for each document, or for each window of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ltm.config import ModelConfig
from pyro_ltm.data import Document
from pyro_ltm.errors import UserError
from pyro_ltm.runs.documents import Piece, check_thinks, cut_documents, infer_documents
from pyro_ltm.types import State

if TYPE_CHECKING:
    from pyro_ltm.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The thoughts of R rows, each a document or one window of it: as much of it as the model reads at once.

    Shapes:
        thoughts: [R, n, D], those of `layers`. document: [R] int64, number in the input, from 0. window: [R] int64,
            number in the document, from 0. tokens: [R] int64. bound_nats: [R], the bound on fresh draws.

    Attributes:
        texts: how each row's text begins.
        table: what else is known of each row, by name: `id`, and the columns that were asked for; lists of R values.
        layers: whose thoughts these are.
        state: the fitted posteriors, leading dimension R, where they were asked for; else None.
    """

    thoughts: Tensor
    document: Tensor
    window: Tensor
    tokens: Tensor
    bound_nats: Tensor
    texts: list[str]
    table: dict[str, list[Any]] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    state: State | None = None

    def __len__(self) -> int:
        return len(self.thoughts)

    @property
    def features(self) -> Tensor:
        """[R, n * D] numbers, layer by layer, thought by thought."""
        return self.thoughts.flatten(1)

    def about(self, row: int) -> dict[str, Any]:
        """A row in words: its document, its text's beginning, its id and columns."""
        known = {name: values[row] for name, values in self.table.items()}
        return {"document": int(self.document[row]), "text": self.texts[row], **known}

    def pooled(self) -> Embeddings:
        """A row for each document: the mean of its windows, each weighed by its tokens."""
        documents, rows = self.document.unique(return_inverse=True)
        if len(documents) == len(self):
            return self
        first = torch.full((len(documents),), len(self)).scatter_reduce(0, rows, torch.arange(len(self)), "amin")
        tokens = torch.zeros(len(documents), dtype=torch.int64).index_add(0, rows, self.tokens)
        share = (self.tokens / tokens[rows])[:, None, None]
        mean = torch.zeros(len(documents), *self.thoughts.shape[1:]).index_add(0, rows, share * self.thoughts)
        places = first.tolist()
        return replace(
            self,
            thoughts=mean,
            document=documents,
            window=torch.zeros_like(documents),
            tokens=tokens,
            bound_nats=torch.zeros(len(documents)).index_add(0, rows, self.bound_nats),
            texts=[self.texts[place] for place in places],
            table={name: [values[place] for place in places] for name, values in self.table.items()},
            state=None,
        )


def embed_pieces(
    run: Run,
    pieces: Sequence[Piece],
    *,
    layers: Sequence[int] | None = None,
    windows: bool = False,
    draw: bool = False,
    posteriors: bool = False,
    **how: Any,
) -> Embeddings:
    """Posterior means of documents, fitted on the same noise: a text has the same ones wherever it stands.

    Args:
        pieces: from `cut_documents`.
        layers: whose thoughts; None: all.
        windows: a row for each window; else their mean for each document.
        draw: a draw from each posterior in place of its mean.
        posteriors: keep them, of rows that are one sequence each.
        how: `fast_steps`, by default as many as in training; `batch_size`, `seed`, `progress`.

    Raises:
        UserError: the model has no thoughts or not those layers, or there is no piece.
    """
    check_thinks(run)
    chosen = check_layers(run.config.model, layers)
    found = infer_documents(run, pieces, same_noise=True, draw=draw, states=posteriors, **how)
    tensors = found.tensors
    by_layer = tensors["thoughts"].chunk(run.config.model.layers, dim=1)
    numbers = tensors["document"].tolist()
    about = {one["document"]: one for one in found.documents}
    table = {name: [about[number].get("columns", {}).get(name) for number in numbers] for name in _columns(pieces)}
    if "id" not in table and any("id" in one for one in found.documents):
        table = {"id": [about[number].get("id") for number in numbers], **table}
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    rows = Embeddings(
        thoughts=torch.cat([by_layer[layer] for layer in chosen], 1).float(),
        document=tensors["document"],
        window=torch.tensor([place for _, group in itertools.groupby(numbers) for place, _ in enumerate(group)]),
        tokens=tensors["tokens"],
        bound_nats=tensors["bound_nats"].float(),
        texts=found.texts,
        table=table,
        layers=chosen,
        state=state or None,
    )
    return rows if windows else rows.pooled()


def embed_texts(run: Run, texts: Sequence[str], **how: Any) -> Embeddings:
    """`embed_pieces` of texts of one's own, in order.

    Raises:
        UserError: no texts, or one is empty or no text.
    """
    return embed_pieces(run, pieces_of(run, texts), **how)


def pieces_of(run: Run, texts: Sequence[str]) -> list[Piece]:
    """Each text in windows. Raises UserError when there is none, or one is empty or no text."""
    if isinstance(texts, str):
        raise UserError("a single text: give a list of texts, such as [text]")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {number}: is {type(text).__name__}; expected a string")
    pieces = list(cut_documents(run, [Document(text, f"text {number}") for number, text in enumerate(texts)]))
    if len(missing := set(range(len(texts))) - {piece.number for piece in pieces}):
        raise UserError(f"text {min(missing)}: is empty; give at least one character")
    return pieces


def check_layers(model: ModelConfig, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers that are meant, all where None are named. Raises UserError when the model has not all of them."""
    if layers is None:
        return tuple(range(model.layers))
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer < model.layers for layer in layers):
        named = ",".join(map(str, layers))
        known = "only layer 0" if model.layers == 1 else f"layers 0 to {model.layers - 1}"
        raise UserError(f"layers = {named or 'none'}: this model has {known}; name each at most once")
    return tuple(layers)


def _columns(pieces: Sequence[Piece]) -> list[str]:
    """Names of the columns that documents carry, in order."""
    return list(dict.fromkeys(name for piece in pieces for name in piece.document.columns))
