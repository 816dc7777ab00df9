"""The floor: on a corpus whose probabilities are known, the nats that no valid bound can go below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pyro_ltm.data import TokenDataset, World
from pyro_ltm.data.worlds import words_of
from pyro_ltm.errors import UserError
from pyro_ltm.scores.dependence import Places
from pyro_ltm.scores.elbo import Bound
from pyro_ltm.scores.estimate import Difference, Figure, difference
from pyro_ltm.scores.prefix import AfterPrefix

WINDOWED_DOCUMENTS = 64
"""Documents on which the best predictor with a short window is computed: it takes a tenth of a second for each."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Floor(Figure):
    """Exact -log p of the documents.

    Attributes:
        windowed: of the best predictor that sees only the last `window` words, on the first documents: the level that
            no decoder with such a window passes without thoughts.
        window: words that a decoder without thoughts can have seen.
        combinations: of the world's factors; their entropy is its log.
        by_prefix: exact -log p of the tokens after the first m, given those; none where words are not tokens, and
            their beginnings would have to be summed out.
    """

    windowed: Figure
    window: int
    combinations: int
    by_prefix: list[AfterPrefix]


def why_no_floor(data: TokenDataset) -> str:
    """Why these sequences have no floor; empty where they have one."""
    if World.of(data.folder) is None:
        return "its text is not from one world"
    if data.folder.meta["packing"] != "document":
        return "its documents run into one another: prepare them with --packing document"
    if data.folder.meta["splits"][data.split]["documents"] != len(data):
        return f"some of its documents are longer than a sequence of {data.sequence_length} tokens"
    return ""


def evaluate_floor(
    data: TokenDataset, *, sequences: int | None = None, window: int, prefixes: Sequence[int] = ()
) -> Floor:
    """The floor of the first `sequences` documents (all when None).

    Args:
        window: tokens that the decoder without thoughts can have seen: `ModelConfig.receptive_field`.
        prefixes: several m, tokens that are given.

    Raises:
        UserError: these sequences have no floor, or the text is not what its world writes.
    """
    if reason := why_no_floor(data):
        raise UserError(f"{data.folder.path}: no floor: {reason}")
    world, tokenizer = World.of(data.folder), data.folder.tokenizer()
    assert world is not None
    count = len(data) if sequences is None else min(sequences, len(data))
    batch = data.batch(range(count))
    assert batch.targets is not None
    rows = [row[mask].tolist() for row, mask in zip(batch.targets, batch.mask, strict=True)]
    texts = [tokenizer.decode(row) for row in rows]
    pairs = list(zip(rows, texts, strict=True))
    nats = torch.tensor([-world.log_prob(text) for text in texts], dtype=torch.float64)
    if not bool(torch.isfinite(nats).all()):
        raise UserError(f"{data.folder.path}: a text that its world cannot write: prepare it again with this release")
    tokens, places = batch.mask.sum(-1), Places(batch.ids, torch.from_numpy(data.documents(count)))
    first = texts[:WINDOWED_DOCUMENTS]
    by_prefix = []
    for prefix in prefixes if all(len(row) == len(words_of(text)) + 1 for row, text in pairs) else ():
        starts = [tokenizer.decode(row[:prefix]) for row in rows]
        after = nats + torch.tensor([world.log_prob_of_start(start) for start in starts], dtype=torch.float64)
        by_prefix.append(AfterPrefix.of(after, batch.mask[:, prefix:].sum(-1), places, prefix=prefix))
    windowed = torch.tensor([-world.windowed_log_prob(text, window) for text in first], dtype=torch.float64)
    floor: Floor = Floor.of(
        nats,
        tokens,
        places,
        windowed=Figure.of(windowed, tokens[: len(first)], places.first(len(first))),
        window=window,
        combinations=world.combinations,
        by_prefix=by_prefix,
    )
    return floor


def check_floor(name: str, figure: Figure | Bound, floor: Figure) -> Difference:
    """How far a figure lies above the floor of the same tokens, paired by document.

    One document alone has no error to judge it by.

    Raises:
        UserError: it lies below by more than three standard errors, which no bound can.
    """
    above = difference(figure.sequence_nats, floor.sequence_nats, floor.sequence_tokens, figure.places)
    if above.nats_per_token < -3 * above.stderr:
        raise UserError(
            f"{name}: {figure.nats_per_token:.4f} nats a token lies {-above.nats_per_token:.4f} ± {above.stderr:.4f} "
            f"below the text's own entropy, {floor.nats_per_token:.4f}: no bound can, and no prediction. Were these "
            "documents trained on? Otherwise model or guide are at fault, and no figure of theirs is to be believed"
        )
    return above
