"""From sources to a folder of tokens: split, train a tokenizer, encode, pack, all as a stream."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_ltm.config import Config, suggest
from pyro_ltm.data.corpora import is_corpus, is_drawn
from pyro_ltm.data.documents import Document, Reading
from pyro_ltm.data.folder import FORMAT, META, PACKINGS, TOKENIZER, VERSION, TokenFolder, is_prepared, sha256, strangers
from pyro_ltm.data.packing import Digests, SplitWriter
from pyro_ltm.data.readers.separated import delimiter_of, is_separated
from pyro_ltm.data.sources import Source, check_delimiter, find_sources, listed
from pyro_ltm.data.splits import SplitRule, all_in, plan_split
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.data.tokenizer.cutting import encodable_pieces
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.files import new_folder
from pyro_ltm.locks import locked

Progress = Callable[[str, int, int], None]
"""Called now and then with what is done ("tokenizer" or "encode"), and the pieces of text and characters done in it."""

AUTO = "auto"
"""The packing that suits the source."""

GROUP = 1 << 20
"""Characters encoded in one call: enough for every core to get a share, and little memory."""

_PYTHON = f"{platform.python_implementation()} {platform.python_version()}"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The settings of `prepare`.

    Attributes:
        tokenizer: a tokenizer.json, or a tokenizer. None: a byte-level BPE trained on the training split.
        vocab_size: V of the tokenizer to train (at most, for worlds and in-context tasks: their words are few); without
            meaning when `tokenizer` is given.
        sequence_length: T, targets in a sequence.
        packing: `contiguous`, sequences cut from one stream of all documents; `document`, no sequence holds parts of
            two documents (see `SplitWriter`); or `auto`, document for worlds and in-context tasks, whose documents are
            independent, and contiguous for all else.
        validation_fraction: share of the text to hold out (see `splits`), 0 for none.
        validation_sources: what to read for validation, instead of holding out a share of the sources.
        reading: how the sources are read; None: `Reading()`.
        seed: of the choice of the documents held out.

    Raises:
        UserError: one of them is out of range.
    """

    tokenizer: str | Path | Tokenizer | None = None
    vocab_size: int = 2048
    sequence_length: int = 128
    packing: str = AUTO
    validation_fraction: float = 0.1
    validation_sources: Sequence[str] = ()
    reading: Reading | None = None
    seed: int = 0

    @classmethod
    def of(cls, config: Config) -> Preparation:
        """The settings by which a run of this configuration prepares its own text."""
        length = min(config.data.sequence_length, config.model.max_length)
        return cls(**dataclasses.asdict(dataclasses.replace(config.data, sequence_length=length)))

    def __post_init__(self) -> None:
        known = (AUTO, *PACKINGS)
        if self.sequence_length < 1:
            raise UserError(f"sequence_length = {self.sequence_length}: must be at least 1")
        if self.packing not in known:
            hint = f"{suggest(self.packing, known)}: choose from {', '.join(known)}"
            raise UserError(f"packing = {self.packing!r}{hint}")
        if not 0.0 <= self.validation_fraction <= 0.9:
            raise UserError(f"validation_fraction = {self.validation_fraction}: must be at least 0 and at most 0.9")
        if self.seed < 0:
            raise UserError(f"seed = {self.seed}: must be at least 0")


def prepare(
    sources: Sequence[str],
    out: str | Path,
    how: Preparation | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TokenFolder:
    """Writes the folder of tokens `out` (its contents: see `folder`). Reads the text as a stream, two or three times.

    The folder appears whole or not at all, also when stopped by Ctrl-C or a full disk.

    Args:
        sources: what to read, each as in `read_source`.
        out: the folder to write.
        how: the settings; None: `Preparation()`. settings: single ones, by name, in place of those of `how`.
        overwrite: replace `out` if it was written by `prepare`.
        progress: called while working.

    Raises:
        UserError: bad settings, bad input, too little text for a split, `out` in the way or being written by another
            process, or no space left.
    """
    how = dataclasses.replace(how or Preparation(), **settings)
    if isinstance(sources, str) or not sources:
        raise UserError("sources: expected at least one source, in a list")
    out = Path(out).expanduser().resolve()
    _check_target(out, overwrite)
    tokenizer = how.tokenizer
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    with locked(out):
        _check_target(out, overwrite)  # another may have made it since it was looked at
        with new_folder(out) as partial:
            text = _Text.find(list(map(str, sources)), how)
            _fill(partial, text, how, tokenizer, progress or (lambda *done: None))
    return TokenFolder.open(out)


def _fill(folder: Path, text: _Text, how: Preparation, tokenizer: Tokenizer | None, report: Progress) -> None:
    """Writes all files of a prepared folder."""
    only_drawn = all(map(is_drawn, text.specs))
    packing = how.packing
    if packing == AUTO:
        packing = "document" if only_drawn else "contiguous"
    if tokenizer is None:
        tokenizer = Tokenizer.train(_texts(text.training_pieces(), report), how.vocab_size, at_most=only_drawn)
    meta = {
        "format": FORMAT,
        "version": VERSION,
        **text.described(),
        "packing": packing,
        "sequence_length": how.sequence_length,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "tokenizer": tokenizer.fingerprint,
        # It decides the text of the built-in corpora.
        "python": _PYTHON if any(map(is_corpus, text.specs)) else None,
    }
    (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    meta |= _write_splits(text, folder, tokenizer, how.sequence_length, packing, report)
    meta["files"] = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())
    }
    (folder / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _check_target(out: Path, overwrite: bool) -> None:
    try:
        if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
            return
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {one_line(error)}") from None
    if not is_prepared(out):
        raise UserError(f"{out}: exists and is no prepared folder, so it is left alone; name a new folder")
    if not overwrite:
        raise UserError(f"{out}: was prepared before; name a new folder, or allow to overwrite it")
    if others := strangers(out):
        raise UserError(f"{out}: also holds {others[0]}, which `prepare` did not write: move it elsewhere first")


@dataclass
class _Text:
    """The text to prepare, and how it is split. Each call of a method reads it from the beginning.

    Attributes:
        sources, validation_sources: those that were found.
        rule: splits the text of `sources`; all of `validation_sources` is for validation.
        reading: how the sources are read.
        without_text: documents in `pieces` so far that hold none, not even white space.
    """

    sources: list[Source]
    validation_sources: list[Source]
    rule: SplitRule
    reading: Reading
    without_text: int = 0

    @classmethod
    def find(cls, specs: list[str], how: Preparation) -> _Text:
        """Looks up every source before the first is read: a typing error in the last one shows at once."""
        reading, validation_specs = how.reading or Reading(), list(map(str, how.validation_sources))
        sources, validation_sources = find_sources(specs, reading), find_sources(validation_specs, reading)
        check_delimiter((*sources, *validation_sources), reading)
        whole = bool(validation_sources)
        rule = all_in("train") if whole else plan_split(_read(sources), how.validation_fraction, how.seed)
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

    def pieces(self) -> Iterator[tuple[str, Document]]:
        """All text, each piece with its split."""
        yield from self.rule.assign(self._counted(self.sources))
        yield from all_in("validation").assign(self._counted(self.validation_sources))

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

    def _counted(self, sources: list[Source]) -> Iterator[Document]:
        for document in _read(sources):
            self.without_text += not document.text and not document.continues
            yield document


def _read(sources: Sequence[Source]) -> Iterator[Document]:
    """The documents of all sources, from the first on."""
    return itertools.chain.from_iterable(source.read() for source in sources)


def _texts(pieces: Iterator[Document], report: Progress) -> Iterator[str]:
    characters = reported = 0
    for count, document in enumerate(pieces, 1):
        yield document.text
        characters += len(document.text)
        if characters - reported >= GROUP:
            reported = characters
            report("tokenizer", count, characters)


def _write_splits(
    text: _Text, folder: Path, tokenizer: Tokenizer, length: int, packing: str, report: Progress
) -> dict[str, Any]:
    """Encodes and writes every split; returns the entries of meta.json that count what each holds."""
    with contextlib.ExitStack() as files:
        splits = {
            name: files.enter_context(SplitWriter(folder, name, tokenizer, length=length, packing=packing))
            for name in text.splits
        }
        done = characters = 0
        for group in _groups(encodable_pieces(text.pieces(), cut=tokenizer.pipeline.has_cut_points)):
            encoded = tokenizer.encode_batch([document.text for _, document in group])
            for (name, document), ids in zip(group, encoded, strict=True):
                splits[name].add(document, ids)
            done += len(group)
            characters += sum(len(document.text) for _, document in group)
            report("encode", done, characters)
    for name, split in splits.items():
        if split.text_tokens < 2:
            raise UserError(
                f"the {name} split has {split.text_tokens} tokens of text, at least 2 are needed: "
                f"add text{' or change validation_fraction' if len(splits) > 1 else ''}"
            )
    digests = {name: split.digests for name, split in splits.items()}
    return {
        "splits": {name: split.counts() for name, split in splits.items()},
        "documents_without_text": text.without_text,
        "duplicate_documents": {name: found.duplicates() for name, found in digests.items()},
        "validation_documents_in_training": digests.get("validation", Digests()).also_in(digests["train"]),
    }


def _groups(pieces: Iterator[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    """Pieces in lists of about `GROUP` characters."""
    group: list[tuple[str, Document]] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[1].text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group
