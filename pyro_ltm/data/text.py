"""The text to prepare: its sources, how it is split, and its pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_ltm.data.documents import Document, Reading
from pyro_ltm.data.readers.separated import delimiter_of, is_separated
from pyro_ltm.data.sources import Source, check_delimiter, find_sources, listed
from pyro_ltm.data.splits import SplitRule, all_in, plan_split
from pyro_ltm.data.tokenizer.cutting import encodable_pieces


@dataclass
class Text:
    """The text to prepare, and how it is split. Each call of a method reads it from the beginning.

    Attributes:
        sources, validation_sources: those that were found.
        rule: splits the text of `sources`; all of `validation_sources` is for validation.
        reading: how the sources are read.
    """

    sources: list[Source]
    validation_sources: list[Source]
    rule: SplitRule
    reading: Reading

    @classmethod
    def find(
        cls, specs: Sequence[str], validation_specs: Sequence[str], reading: Reading, *, fraction: float, seed: int
    ) -> Text:
        """Looks up every source before the first is read: a typing error in the last one shows at once."""
        sources, validation_sources = find_sources(specs, reading), find_sources(validation_specs, reading)
        check_delimiter((*sources, *validation_sources), reading)
        whole = bool(validation_sources)
        rule = all_in("train") if whole else plan_split(_read(sources), fraction, seed)
        return cls(sources, validation_sources, rule, reading)

    @property
    def specs(self) -> list[str]:
        """How all sources were named."""
        return [source.spec for source in (*self.sources, *self.validation_sources)]

    @property
    def splits(self) -> list[str]:
        """The splits that it has."""
        return ["train", "validation"] if self.validation_sources else list(self.rule.splits)

    def training_pieces(self) -> Iterator[Document]:
        """The training split, in pieces for a byte-level tokenizer."""
        pairs = (pair for pair in self.rule.assign(_read(self.sources)) if pair[0] == "train")
        return (piece for _, piece in encodable_pieces(pairs, cut=True))

    def passes(self) -> list[Pass]:
        """All text: that of the sources, and that of the validation sources."""
        own = [Pass(self.validation_sources, all_in("validation"))] if self.validation_sources else []
        return [Pass(self.sources, self.rule), *own]

    def described(self) -> dict[str, Any]:
        """Its entries in meta.json."""
        found = (*self.sources, *self.validation_sources)
        separated = [path for source in found for path in source.files if is_separated(path)]
        return {
            "sources": [source.spec for source in self.sources],
            "validation_sources": [source.spec for source in self.validation_sources],
            "text_column": self.reading.column if any(source.has_columns for source in found) else None,
            "delimiters": sorted({delimiter_of(path, self.reading) for path in separated}),
            **listed(found),
            "split_rule": "validation has its own sources" if self.validation_sources else self.rule.description,
        }


class Pass:
    """One pass over the text of some sources.

    Attributes:
        without_text: documents so far that hold none, not even white space.
    """

    def __init__(self, sources: Sequence[Source], rule: SplitRule):
        self._sources, self._rule = sources, rule
        self.without_text = 0

    def pieces(self, *, cut: bool) -> Iterator[tuple[str, Document]]:
        """The text in pieces to encode, each with its split; see `encodable_pieces`."""
        return encodable_pieces(self._rule.assign(self._documents()), cut=cut)

    def _documents(self) -> Iterator[Document]:
        for document in _read(self._sources):
            self.without_text += not document.text and not document.continues
            yield document


def _read(sources: Sequence[Source]) -> Iterator[Document]:
    """The documents of all sources, from the first on."""
    return itertools.chain.from_iterable(source.read() for source in sources)
