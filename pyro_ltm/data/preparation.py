"""From sources to a folder of tokens: split, train a tokenizer, encode, pack, all as a stream."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyro_ltm.config import suggest
from pyro_ltm.data.corpora import is_corpus
from pyro_ltm.data.documents import Document, Reading
from pyro_ltm.data.duplicates import DocumentCounter
from pyro_ltm.data.folder import FORMAT, META, PACKINGS, TOKENIZER, VERSION, TokenFolder, is_prepared, sha256, strangers
from pyro_ltm.data.packing import SplitWriter
from pyro_ltm.data.sources import Source, find_sources, listed
from pyro_ltm.data.splits import Whole, plan_split
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.data.tokenizer.cutting import encodable_pieces
from pyro_ltm.data.tokenizer.round_trip import RoundTrip
from pyro_ltm.data.worlds import is_world
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.files import new_folder
from pyro_ltm.locks import locked

Progress = Callable[[str, int, int], None]
"""Called now and then with the stage ("tokenizer" or "encode"), and the pieces of text and characters done in it."""

AUTO = "auto"
"""The packing that suits the source."""

GROUP = 1 << 20
"""Characters encoded in one call: enough for every core to get a share, and little memory."""


def prepare(
    sources: Sequence[str],
    out: str | Path,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    vocab_size: int = 2048,
    sequence_length: int = 128,
    packing: str = "auto",
    validation_fraction: float = 0.1,
    validation_sources: Sequence[str] = (),
    reading: Reading | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TokenFolder:
    """Writes the folder of tokens `out` (its contents: see `folder`). Reads the text as a stream, two or three times.

    The folder appears whole or not at all, also when stopped by Ctrl-C or a full disk.

    Args:
        sources: what to read, each as in `read_source`.
        out: the folder to write.
        tokenizer: a tokenizer.json, or a tokenizer. Default: a byte-level BPE trained on the training split.
        vocab_size: V of the tokenizer to train (at most, for a world: its words are few); without meaning when
            `tokenizer` is given.
        sequence_length: T, targets in a sequence.
        packing: `contiguous`, sequences cut from one stream of all documents; `document`, no sequence holds parts of
            two documents (see `SplitWriter`); or `auto`, document for a world, whose floor is by the document, and
            contiguous for all else.
        validation_fraction: share of the text to hold out (see `splits`), 0 for none.
        validation_sources: what to read for validation, instead of holding out a share of `sources`.
        reading: how the sources are read; None: `Reading()`.
        seed: of the choice of the documents held out.
        overwrite: replace `out` if it was written by `prepare`.
        progress: called while working.

    Raises:
        UserError: bad arguments, bad input, too little text for a split, `out` in the way or being written by another
            process, or no space left.
    """
    out = Path(out).expanduser().resolve()
    _check_arguments(sources, sequence_length, packing, validation_fraction, seed)
    _check_target(out, overwrite)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    report = progress or (lambda stage, pieces, characters: None)

    specs, held_out = [str(source) for source in sources], [str(source) for source in validation_sources]
    world = all(map(is_world, (*specs, *held_out)))
    if packing == AUTO:
        packing = "document" if world else "contiguous"

    reading = reading or Reading()

    with _writing(out, overwrite) as partial:
        # Every source is looked up before the first is read: a typing error in the last one shows at once.
        found, found_held_out = find_sources(specs, reading), find_sources(held_out, reading)
        rule = Whole("train") if held_out else plan_split(_read(found), validation_fraction, seed)
        if tokenizer is None:
            training_text = (pair for pair in rule.assign(_read(found)) if pair[0] == "train")
            pieces = (piece for _, piece in encodable_pieces(training_text, cut=True))
            tokenizer = Tokenizer.train(_texts(pieces, report), vocab_size, at_most=world)
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "sources": specs,
            "validation_sources": held_out,
            "text_column": reading.column if any(source.has_columns for source in (*found, *found_held_out)) else None,
            **listed((*found, *found_held_out)),
            "split_rule": "validation has its own sources" if held_out else rule.describe(),
            "packing": packing,
            "sequence_length": sequence_length,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": tokenizer.fingerprint,
            "python": _python_version() if any(map(is_corpus, (*specs, *held_out))) else None,
        }
        (partial / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
        splits = ["train", "validation"] if held_out or validation_fraction else ["train"]
        census = DocumentCounter(splits)
        text = itertools.chain(
            rule.assign(census.read(_read(found))),
            Whole("validation").assign(census.read(_read(found_held_out))),
        )
        meta["splits"] = _encode(census.assigned(text), partial, splits, tokenizer, sequence_length, packing, report)
        meta |= _counted(census, splits)
        meta["files"] = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(partial.iterdir())
        }
        (partial / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return TokenFolder.open(out)


def _read(sources: Sequence[Source]) -> Iterator[Document]:
    """The documents of all sources, from the first on."""
    return itertools.chain.from_iterable(source.read() for source in sources)


def _counted(census: DocumentCounter, splits: Sequence[str]) -> dict[str, Any]:
    """What was found out about the documents while they were read."""
    return {
        "documents_without_text": census.without_text,
        "duplicate_documents": {split: census.duplicates(split) for split in splits},
        "validation_documents_in_training": census.also_in("validation", "train") if "validation" in splits else 0,
    }


def _python_version() -> str:
    """What decides the text of the built-in corpora."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def _check_arguments(sources: Sequence[str], length: int, packing: str, fraction: float, seed: int) -> None:
    if isinstance(sources, str) or not sources:
        raise UserError("sources: expected at least one source, in a list")
    if length < 1:
        raise UserError(f"sequence_length = {length}: must be at least 1")
    known = (AUTO, *PACKINGS)
    if packing not in known:
        raise UserError(f"packing = {packing!r}{suggest(packing, known)}: choose from {', '.join(known)}")
    if not 0.0 <= fraction <= 0.9:
        raise UserError(f"validation_fraction = {fraction}: must be at least 0 and at most 0.9")
    if seed < 0:
        raise UserError(f"seed = {seed}: must be at least 0")


@contextlib.contextmanager
def _writing(out: Path, overwrite: bool) -> Iterator[Path]:
    """The hidden folder that becomes `out`, whose lock is held: another may have made `out` since it was looked at."""
    with locked(out):
        _check_target(out, overwrite)
        with new_folder(out) as partial:
            yield partial


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


def _texts(pieces: Iterator[Document], report: Progress) -> Iterator[str]:
    characters = reported = 0
    for count, document in enumerate(pieces, 1):
        yield document.text
        characters += len(document.text)
        if characters - reported >= GROUP:
            reported = characters
            report("tokenizer", count, characters)


def _encode(
    pieces: Iterator[tuple[str, Document]],
    folder: Path,
    splits: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    packing: str,
    report: Progress,
) -> dict[str, Any]:
    """Encodes and writes every split; returns what each holds."""
    done = characters = 0
    text_bytes = dict.fromkeys(splits, 0)
    fidelity = {split: RoundTrip() for split in splits}
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                SplitWriter(
                    folder,
                    split,
                    end_of_text=tokenizer.end_of_text,
                    token_bytes=tokenizer.token_bytes,
                    first_token_bytes=tokenizer.first_token_bytes,
                    length=length,
                    packing=packing,
                )
            )
            for split in splits
        }
        for group in _groups(encodable_pieces(pieces, cut=tokenizer.pipeline.has_cut_points)):
            encoded = tokenizer.encode_batch([document.text for _, document in group])
            for (split, document), ids in zip(group, encoded, strict=True):
                if tokenizer.end_of_text in ids:
                    what = "a text may become the token that ends documents, as this one does"
                    raise UserError(f"{document.origin}: {what}; --end-of-text names another token of the tokenizer")
                writers[split].add(ids, continues=document.continues)
                fidelity[split].add(tokenizer, document.text, ids, continues=document.continues)
                text_bytes[split] += len(document.text.encode("utf-8"))
            done += len(group)
            characters += sum(len(document.text) for _, document in group)
            report("encode", done, characters)
    for split, writer in writers.items():
        if writer.text_tokens < 2:
            raise UserError(
                f"the {split} split has {writer.text_tokens} tokens of text, at least 2 are needed: "
                f"add text{' or change validation_fraction' if len(splits) > 1 else ''}"
            )
    return {
        split: {
            "documents": writer.documents,
            "tokens": writer.tokens,
            "sequences": writer.sequences,
            "bytes": writer.bytes,
            "text_bytes": text_bytes[split],
            "changed_documents": fidelity[split].changed,
            "unknown_tokens": fidelity[split].unknown,
        }
        for split, writer in writers.items()
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
