"""Sequences of a run's data, and texts, in batches for its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pyro_ltm.config import Config
from pyro_ltm.data import TokenDataset
from pyro_ltm.distributed import team
from pyro_ltm.errors import UserError
from pyro_ltm.types import Batch

if TYPE_CHECKING:
    from pyro_ltm.runs.run import Run


def dataset_batches(
    data: TokenDataset, batch_size: int, device: torch.device | str, *, limit: int | None = None
) -> Iterator[Batch]:
    """The first `limit` sequences of `data` in order (all when None), in batches on `device`, with their documents.

    Of several processes that share them (`distributed.sharing`) each has its part: whole batches, smaller ones where
    there are fewer than processes. Before each batch they hear of one another's errors: all of them must ask
    for all of theirs.
    """
    documents, shared = torch.from_numpy(data.documents(limit)), team()
    size = max(1, min(batch_size, -(-len(documents) // shared.size)))
    starts = range(0, len(documents), size)
    together = len(starts) // shared.size  # as many as every process has; some have one more
    for number, start in enumerate(starts[shared.part(len(starts))]):
        if number < together:
            shared.gather(())
        rows = range(start, min(start + size, len(documents)))
        yield replace(data.batch(rows), documents=documents[rows.start : rows.stop]).to(device)


def text_batches(run: Run, texts: Sequence[str], batch_size: int = 32, *, whole: bool = False) -> list[Batch]:
    """Each text from its beginning to its end, in batches on the run's device; `documents` are the texts' numbers.

    Of one that is longer than the model reads the beginning alone, a sequence for each text; `whole`: all of it, in
    consecutive sequences, as of a document that is prepared.
    """
    end, longest = run.tokenizer.end_of_text, run.config.model.max_length
    pieces: list[tuple[int, list[int]]] = []
    for number, text in enumerate(texts):
        tokens = [end, *run.tokenizer.encode(text), end]
        starts = range(0, len(tokens) - 1 if whole else 1, longest)
        pieces += [(number, tokens[start : start + longest + 1]) for start in starts]
    batches = []
    for start in range(0, len(pieces), batch_size):
        numbers, some = zip(*pieces[start : start + batch_size], strict=True)
        batch = Batch.from_lists(some, pad=end)
        # Noise is keyed by a sequence's place among all, so that batches change nothing.
        batch = replace(batch, ids=start + batch.ids, documents=torch.tensor(numbers))
        batches.append(batch.to(run.device))
    return batches


def longer_than_read(run: Run, texts: Sequence[str]) -> int:
    """How many texts are longer than the model reads at once."""
    encoded = run.tokenizer.encode_batch(texts)
    return sum(len(tokens) >= run.config.model.max_length for tokens in encoded)


def check_fits(config: Config, data: TokenDataset) -> None:
    """Raises UserError when the sequences are too long for the model, or their tokens unknown to it."""
    if data.sequence_length > config.model.max_length:
        raise UserError(
            f"{data.folder.path}: its sequences have {data.sequence_length} tokens, the model reads at most "
            f"{config.model.max_length}: set model.max_length, or prepare shorter sequences"
        )
    if data.vocab_size > config.model.vocab_size:
        raise UserError(
            f"{data.folder.path}: its tokenizer has {data.vocab_size} tokens, the model {config.model.vocab_size}: "
            "the tokenizer does not match the run"
        )
