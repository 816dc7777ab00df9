"""Text to the files of a prepared folder, as a stream; what is done is saved now and then, and gone on with."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pyro_ltm.data.corpora import is_corpus
from pyro_ltm.data.documents import Document
from pyro_ltm.data.duplicates import Digests
from pyro_ltm.data.encoding import encode_groups
from pyro_ltm.data.folder import TokenFolder
from pyro_ltm.data.hashed_file import Unusable
from pyro_ltm.data.manifest import FORMAT, MANY_SHARDS, META, ONE_SHARD, TOKENIZER, sha256, stream_names
from pyro_ltm.data.packing import SplitWriter, Written
from pyro_ltm.data.shards import Shards
from pyro_ltm.data.text import Pass, Text
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.digests import KEY, with_digest, without_digest
from pyro_ltm.errors import UserError
from pyro_ltm.reading import Count, fitted, read_json

Progress = Callable[[str, int, int], None]
"""Called now and then with what is done, and the pieces of text and characters done in it.

That is "tokenizer", "encode", "skip" (reads what was encoded before) or "restart" (what was left is of no use).
"""

PROGRESS = "progress.json"
"""The note of how far it is, beside the folder that is being filled."""

GROUP = 1 << 20
"""Characters encoded in one call: enough for every core to get a share, and little memory."""

SAVED = 1 << 25
"""Characters after which what is done is saved, so that after a kill no more than these are encoded again."""

LEARNED = 1 << 28
"""Characters, at most, of which a tokenizer is trained where only the first sequences of a text are wanted."""

_PYTHON = f"{platform.python_implementation()} {platform.python_version()}"


class Saved(msgspec.Struct):
    """How far a folder is filled: progress.json.

    Attributes:
        recipe: digest of all that decides what the folder will hold, but the text.
        tokenizer: SHA-256 of its file.
        passed: pieces that were encoded of each pass that was begun; all passes but the last are over.
        text: digest of these pieces.
        splits: how far each is written.
    """

    recipe: str
    tokenizer: str
    passed: list[Count] = []
    text: str = ""
    splits: dict[str, Written] = {}


@dataclass(frozen=True, kw_only=True)
class Filling:
    """A folder to fill: the text, and how.

    Attributes:
        folder: where. text: what.
        tokenizer: its tokenizer; None: one of `vocab_size` tokens is trained (of at most so many with `at_most`).
        length: T. packing: `contiguous` or `document`.
        sequences: stop once the training split has so many; 0: never.
        recipe: as in `Saved`.
        base: the prepared folder that this is appended to, whose tokenizer it has; None: it stands by itself.
        workers: processes that encode, as in `encode_groups`.
        report: called while working.
    """

    folder: Path
    text: Text
    tokenizer: Tokenizer | None
    vocab_size: int
    at_most: bool
    length: int
    packing: str
    sequences: int
    recipe: str
    base: TokenFolder | None
    workers: int
    report: Progress

    def run(self) -> None:
        """Writes all files of the folder, from where an earlier one stopped. Raises UserError."""
        try:
            self._fill(self._saved())
        except Unusable:
            self.report("restart", 0, 0)
            self._clear()
            self._fill(None)

    def save(self, saved: Saved) -> None:
        """Notes how far the folder is."""
        note = self.folder.parent / PROGRESS
        temporary = note.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            file.write(json.dumps(with_digest(msgspec.to_builtins(saved))).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, note)

    def _saved(self) -> Saved | None:
        """How far an earlier one came; None where there is none, or it filled the folder otherwise, and was removed."""
        try:
            note = read_json(self.folder.parent / PROGRESS, dict[str, Any])
            if KEY not in note:
                raise Unusable(f"{PROGRESS} has no checksum")
            saved = fitted(without_digest(note), Saved)
        except FileNotFoundError:
            saved = None
        except UserError as error:
            raise Unusable(str(error)) from None
        if saved is None or saved.recipe != self.recipe:
            self._clear()
            return None
        return saved

    def _clear(self) -> None:
        (self.folder.parent / PROGRESS).unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def _fill(self, saved: Saved | None) -> None:
        tokenizer, saved = self._with_tokenizer(saved)
        content = _Encoding(self, tokenizer, saved).run()
        if self.base is not None:
            content["validation_documents_in_training"] = self._held_out_in(self.base)
        meta = {
            "format": FORMAT,
            "version": content.pop("version"),
            **self.text.described(),
            "packing": self.packing,
            "sequence_length": self.length,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": tokenizer.fingerprint,
            # It decides the text of the built-in corpora.
            "python": _PYTHON if any(map(is_corpus, self.text.specs)) else None,
            **content,
        }
        meta["files"] = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(self.folder.iterdir())
        }
        (self.folder / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    def _held_out_in(self, base: TokenFolder) -> int:
        """Documents that are held out in `base` and are also among these, by their tokens."""
        if "validation" not in base.splits:
            return 0
        names = stream_names("train", os.listdir(self.folder))
        here = Shards([self.folder / name for name in names], base.dtype)
        held_out = Digests.of_tokens(base.shards("validation"), base.end_of_text)
        return held_out.also_in(Digests.of_tokens(here, base.end_of_text))

    def _with_tokenizer(self, saved: Saved | None) -> tuple[Tokenizer, Saved]:
        """The tokenizer, whose file lies in the folder, and how far that is filled. Raises Unusable, UserError."""
        file, read = self.folder / TOKENIZER, _Counter()
        if saved is not None:
            if not file.is_file() or sha256(file) != saved.tokenizer:
                raise Unusable(f"{TOKENIZER} is not what was written")
            known = {TOKENIZER, *(name for written in saved.splits.values() for name in written.files)}
            for later in self.folder.iterdir():  # begun after the note was written
                if later.name not in known:
                    later.unlink()
            return self.tokenizer or Tokenizer.load(file), saved
        tokenizer = self.tokenizer
        if tokenizer is None:
            pieces = _first(self.text.training_pieces(), LEARNED) if self.sequences else self.text.training_pieces()
            texts = (document.text for document in read.through(pieces, self.report))
            tokenizer = Tokenizer.train(texts, self.vocab_size, at_most=self.at_most)
        file.write_text(tokenizer.to_json(), encoding="utf-8")
        saved = Saved(self.recipe, sha256(file))
        if read.characters >= SAVED:
            self.save(saved)
        return tokenizer, saved


class _Counter:
    """Counts the characters of documents that pass."""

    def __init__(self) -> None:
        self.characters = 0

    def through(self, pieces: Iterator[Document], report: Progress) -> Iterator[Document]:
        reported = 0
        for count, document in enumerate(pieces, 1):
            yield document
            self.characters += len(document.text)
            if self.characters - reported >= GROUP:
                reported = self.characters
                report("tokenizer", count, self.characters)


def _first(pieces: Iterator[Document], characters: int) -> Iterator[Document]:
    """The pieces up to the one with which there are so many characters."""
    for document in pieces:
        yield document
        characters -= len(document.text)
        if characters <= 0:
            return


class _Encoding:
    """Encodes and writes every split."""

    def __init__(self, filling: Filling, tokenizer: Tokenizer, saved: Saved):
        self.filling, self.tokenizer, self.saved = filling, tokenizer, saved
        self.splits: dict[str, SplitWriter] = {}
        self.text = hashlib.blake2b(digest_size=32)
        self.pieces = self.characters = self.unsaved = self.without_text = 0

    def run(self) -> dict[str, Any]:
        """Writes them; the entries of meta.json that count what each holds. Raises Unusable, UserError."""
        filling = self.filling
        with contextlib.ExitStack() as files:
            for name in filling.text.splits:
                writer = SplitWriter(
                    filling.folder,
                    name,
                    self.tokenizer,
                    length=filling.length,
                    packing=filling.packing,
                    written=self.saved.splits.get(name),
                )
                self.splits[name] = files.enter_context(writer)
            for number, text in enumerate(filling.text.passes()):
                self.without_text += self._one_pass(number, text)
        return self._counts()

    def _one_pass(self, number: int, text: Pass) -> int:
        """Goes through some of the text; the documents in it that hold none."""
        pieces = text.pieces(cut=self.tokenizer.pipeline.has_cut_points)
        passed = self.saved.passed
        if number < len(passed):
            self._pass_over(itertools.islice(pieces, passed[number]))
            is_last = number + 1 == len(passed)
            if is_last and passed[number] and self.text.hexdigest() != self.saved.text:
                raise Unusable("the text has changed")
            if self._is_enough(number):
                return text.without_text
            if not is_last:
                self._pass_over(pieces)  # which gives no more, unless the text has changed
                return text.without_text
        else:
            passed.append(0)
        groups = ((group, [document.text for _, document in group[0]]) for group in _groups(pieces, text))
        for (group, without_text), encoded in encode_groups(self.tokenizer, groups, self.filling.workers):
            for (split, document), tokens in zip(group, encoded, strict=True):
                self.splits[split].add(document, tokens)
                self._take_in(split, document)
            passed[-1] += len(group)
            self.filling.report("encode", self.pieces, self.characters)
            if self.unsaved >= SAVED:
                self._save()
            if self._is_enough(number):
                return without_text
        return text.without_text

    def _is_enough(self, number: int) -> bool:
        """Whether no more is wanted of a pass."""
        return number == 0 and 0 < self.filling.sequences <= self.splits["train"].sequences

    def _pass_over(self, pieces: Iterator[tuple[str, Document]]) -> None:
        """Takes in pieces whose tokens are written."""
        reported = self.characters
        for split, document in pieces:
            self.splits[split].pass_over(document)
            self._take_in(split, document)
            if self.characters - reported >= GROUP:
                reported = self.characters
                self.filling.report("skip", self.pieces, self.characters)
        self.unsaved = 0

    def _take_in(self, split: str, document: Document) -> None:
        self.text.update(f"{split}:{document.continues}:{len(document.text)}:".encode())
        self.text.update(document.text.encode("utf-8"))
        self.pieces += 1
        self.characters += len(document.text)
        self.unsaved += len(document.text)

    def _save(self) -> None:
        self.saved.text = self.text.hexdigest()
        self.saved.splits = {name: writer.save() for name, writer in self.splits.items()}
        self.filling.save(self.saved)
        self.unsaved = 0

    def _counts(self) -> dict[str, Any]:
        for name, split in self.splits.items():
            if split.text_tokens < 2:
                raise UserError(
                    f"the {name} split has {split.text_tokens} tokens of text, at least 2 are needed: "
                    f"add text{' or change validation_fraction' if len(self.splits) > 1 else ''}"
                )
        digests = {name: split.digests for name, split in self.splits.items()}
        return {
            "version": MANY_SHARDS if any(split.has_shards for split in self.splits.values()) else ONE_SHARD,
            "splits": {name: split.counts() for name, split in self.splits.items()},
            "documents_without_text": self.without_text,
            "duplicate_documents": {name: found.duplicates() for name, found in digests.items()},
            "validation_documents_in_training": digests.get("validation", Digests()).also_in(digests["train"]),
        }


Pieces = Sequence[tuple[str, Document]]


def _groups(pieces: Iterator[tuple[str, Document]], text: Pass) -> Iterator[tuple[Pieces, int]]:
    """Pieces in lists of about `GROUP` characters, and the documents without text that were read up to each."""
    group: list[tuple[str, Document]] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[1].text)
        if size >= GROUP:
            yield group, text.without_text
            group, size = [], 0
    if group:
        yield group, text.without_text
