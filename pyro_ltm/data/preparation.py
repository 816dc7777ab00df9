"""From sources to a folder of tokens: split, train a tokenizer, encode, pack, all as a stream."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from pyro_ltm.config import Config, suggest
from pyro_ltm.data.corpora import is_drawn
from pyro_ltm.data.documents import Reading
from pyro_ltm.data.filling import PROGRESS, Filling, Progress
from pyro_ltm.data.folder import CHECKED, TokenFolder
from pyro_ltm.data.manifest import PACKINGS, appended_name, is_prepared, strangers
from pyro_ltm.data.text import Text
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.files import kept_folder, unfinished
from pyro_ltm.locks import locked

AUTO = "auto"
"""The packing that suits the source."""


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
        sequences: stop reading once the training split has so many, or a few more; 0: read all.

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
    sequences: int = 0

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
        if self.sequences < 0:
            raise UserError(f"sequences = {self.sequences}: must be at least 0")


def prepare(
    sources: Sequence[str],
    out: str | Path,
    how: Preparation | None = None,
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    **settings: Any,
) -> TokenFolder:
    """Writes the folder of tokens `out` (its contents: see `folder`). Reads the text as a stream, two or three times.

    The folder appears whole or not at all. Of a long text, what is done is kept beside it (`unfinished`) when stopped
    by Ctrl-C, a kill or a full disk, and the same call goes on from there; the folder is the same to the byte.

    Args:
        sources: what to read, each as in `read_source`.
        out: the folder to write.
        how: the settings; None: `Preparation()`. settings: single ones, by name, in place of those of `how`.
        overwrite: replace `out` if it was written by `prepare`.
        workers: processes that encode the text; 1: this one, by the tokenizer's threads. The folder is the same.
        progress: called while working.

    Raises:
        UserError: bad settings, bad input, too little text for a split, `out` in the way or being written by another
            process, or no space left.
    """
    how = dataclasses.replace(how or Preparation(), **settings)
    _check_arguments(sources, workers)
    out = Path(out).expanduser().resolve()
    _check_target(out, overwrite)
    with locked(out):
        _check_target(out, overwrite)  # another may have made it since it was looked at
        _prepare([str(source) for source in sources], out, how, workers, progress)
    return TokenFolder.open(out)


def append(
    sources: Sequence[str],
    out: str | Path,
    *,
    reading: Reading | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> TokenFolder:
    """Adds text to the training split of a prepared folder, with its tokenizer, sequence length and packing.

    The files that are there stay as they are, and so do the numbers of their sequences; what is held out stays, too.
    A run that was trained before goes on with the sequences that there were then. What is new appears whole or not at
    all, and a call that was stopped is gone on with as in `prepare`.

    Raises:
        UserError: bad input, or `out` is no prepared folder, damaged, or being written by another process.
    """
    _check_arguments(sources, workers)
    out = Path(out).expanduser().resolve()
    with locked(out):
        folder = TokenFolder.open(out)
        place = out / appended_name(len(folder.appended) + 1)
        how = Preparation(
            tokenizer=folder.tokenizer(),
            sequence_length=folder.sequence_length,
            packing=str(folder.meta["packing"]),
            validation_fraction=0.0,
            reading=reading,
        )
        _prepare([str(source) for source in sources], place, how, workers, progress, base=folder)
    return TokenFolder.open(out)


def kept(out: str | Path) -> Path | None:
    """Where what a stopped `prepare` or `append` has done for `out` is kept; None where there is nothing."""
    out = Path(out).expanduser().resolve()
    for place in (unfinished(out), *sorted(out.glob(".appended-*.unfinished"))):
        if (place / PROGRESS).is_file():
            return place
    return None


def check(out: str | Path) -> TokenFolder:
    """Reads a prepared folder in full. Raises UserError when a file, token or sequence is not as it was written."""
    folder = TokenFolder.open(Path(out).expanduser())
    folder.verify(above=CHECKED)
    folder.check_contents()
    return folder


def _prepare(
    sources: list[str],
    out: Path,
    how: Preparation,
    workers: int,
    progress: Progress | None,
    *,
    base: TokenFolder | None = None,
) -> None:
    """Prepares `out`, whose lock is held, or goes on where an earlier call stopped."""
    tokenizer = how.tokenizer
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    reading, validation_sources = how.reading or Reading(), list(map(str, how.validation_sources))
    with kept_folder(out, PROGRESS) as folder:
        text = Text.find(sources, validation_sources, reading, fraction=how.validation_fraction, seed=how.seed)
        if how.sequences and text.rule.cuts_documents:
            raise UserError(
                f"sequences = {how.sequences}: of fewer than twenty documents the ends are held out, which a text that "
                "is not read whole (--stream, --sequences) does not reach: read it whole, name text to validate on, or "
                "set data.validation_fraction to 0"
            )
        only_drawn = all(map(is_drawn, text.specs))
        by_document = how.packing == "document" or (how.packing == AUTO and only_drawn)
        Filling(
            folder=folder,
            text=text,
            tokenizer=tokenizer,
            vocab_size=how.vocab_size,
            at_most=only_drawn,
            length=how.sequence_length,
            packing="document" if by_document else "contiguous",
            sequences=how.sequences,
            recipe=_recipe(sources, dataclasses.replace(how, tokenizer=tokenizer, reading=reading)),
            base=base,
            workers=workers,
            report=progress or (lambda *done: None),
        ).run()


def _recipe(sources: list[str], how: Preparation) -> str:
    """Digest of all that decides what the folder will hold, but the text."""
    tokenizer = how.tokenizer.fingerprint if isinstance(how.tokenizer, Tokenizer) else None
    settings = {**vars(how), "tokenizer": tokenizer, "reading": vars(how.reading)}
    content = json.dumps([sources, settings, tokenizers.__version__], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _check_arguments(sources: Sequence[str], workers: int) -> None:
    if isinstance(sources, str) or not sources:
        raise UserError("sources: expected at least one source, in a list")
    if workers < 1:
        raise UserError(f"workers = {workers}: must be at least 1")


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
