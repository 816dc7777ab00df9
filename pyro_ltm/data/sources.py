"""Where text comes from: built-in corpora, files, folders, globs, and Hugging Face data sets.

Everything is read as a stream. How each kind of file is read is in `files`.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyro_ltm.config import suggest
from pyro_ltm.data.corpora import CORPORA, is_corpus, read_corpus
from pyro_ltm.data.document import Document
from pyro_ltm.data.files import FOLDER_SUFFIXES, check_text, is_plain_text, read_file
from pyro_ltm.data.hub import check_hub
from pyro_ltm.errors import UserError, one_line

HUB = "hf:"


def read_source(
    spec: str, *, text_column: str | None = None, split: str = "train", streaming: bool = True
) -> Iterator[Document]:
    """The documents of a source, as a stream.

    Args:
        spec: one of, looked up in this order:
            `hf:org/name` or `hf:org/name:config`, a Hugging Face data set (or `hf:` and a local folder of one);
            a built-in corpus: `python-docs`, or `worlds` with its options, such as `worlds:length=15,seed=1`;
            a file (`.jsonl`, `.csv` and `.parquet` by their suffix, any other as plain text);
            a folder, read recursively in sorted order: its .txt, .md, .jsonl, .csv and .parquet files that are not
            hidden; or a glob, quoted, where `**` stands for any folders.
        text_column: column or JSON field that holds the text. Default: `text`. Plain text has none and ignores it.
        split: the split of a Hugging Face data set.
        streaming: fetch a Hugging Face data set as it is read, instead of downloading it first.

    A plain text file is one document, in pieces; a line, row or record of the other kinds is one each.

    Raises:
        UserError: at once where `spec` names nothing that can be read; while reading, where the input is bad, with
            the file, the line or row, and what would be right.
    """
    column = text_column or "text"
    if spec.startswith(HUB):
        return _read_hub(spec, column, split, streaming)
    if is_corpus(spec):
        return read_corpus(spec)
    files = _find_files(spec)
    if files is not None:
        return _some_text((document for path in files for document in read_file(path, column)), spec)
    hub = f", or '{HUB}{spec}' for a Hugging Face data set" if _looks_like_hub_name(spec) else ""
    raise UserError(
        f"{one_line(spec)}: no such file, folder or corpus{suggest(spec, CORPORA)}: "
        f"give a path, a quoted glob, a corpus ({', '.join(CORPORA)}){hub or f', or {HUB}org/name'}"
    )


def sources_of(data: str | Path | Sequence[str] | None) -> list[str]:
    """One source, or several, or none, as a list."""
    return [str(data)] if isinstance(data, str | Path) else list(data or [])


def text_sizes(spec: str) -> list[int]:
    """Bytes of each plain text file of a source; none where it holds anything else, or cannot be read."""
    try:
        files = [] if spec.startswith(HUB) or is_corpus(spec) else _find_files(spec) or []
        return [path.stat().st_size for path in files if path.is_file()] if all(map(is_plain_text, files)) else []
    except (UserError, OSError):  # what is wrong with it, reading will say
        return []


def _looks_like_hub_name(spec: str) -> bool:
    """`org/name`, and not a path that could only be meant as one."""
    return spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and not Path(spec).suffix


def _find_files(spec: str) -> list[Path] | None:
    """The files that a path or glob stands for, sorted; None where there is no such path and it is no glob."""
    path, nothing = Path(spec).expanduser(), ""
    found: list[Path] = []
    try:
        if path.is_dir():
            found, nothing = _files_below(path), f"no {', '.join(FOLDER_SUFFIXES)} file in it"
        elif path.exists():
            found = [path]
        elif glob.has_magic(spec):
            found = sorted(name for name in map(Path, glob.glob(str(path), recursive=True)) if name.is_file())
            nothing = "no file matches"
        else:
            return None
    except (OSError, ValueError) as error:  # permission denied, a name too long, a NUL in it
        raise UserError(f"{one_line(spec)}: cannot be read: {one_line(error)}") from None
    if not found:
        raise UserError(f"{spec}: {nothing}")
    return found


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in FOLDER_SUFFIXES)


def _some_text(documents: Iterator[Document], where: str) -> Iterator[Document]:
    """The documents unchanged; raises UserError at their end when none held any text."""
    empty = True
    for document in documents:
        empty = empty and not document.text.strip()
        yield document
    if empty:
        raise UserError(f"{where}: empty; expected some text")


def _read_hub(spec: str, column: str, split: str, streaming: bool) -> Iterator[Document]:
    """Rows of a Hugging Face data set. Checks the column before the first row."""
    name, config = spec[len(HUB) :], None
    if ":" in name and not Path(name).is_dir():
        name, config = name.split(":", 1)
    if not name:
        raise UserError(f"{spec}: expected a data set such as {HUB}org/name or {HUB}org/name:config")
    check_hub(spec, name)
    import datasets  # here, because it takes a second

    try:
        with _quiet("huggingface_hub", "datasets"):  # a line of log for every retry, before the one that we raise
            rows: Any = datasets.load_dataset(name, config, split=split, streaming=streaming)
        columns = list(rows.column_names or [])
    except Exception as error:  # the library raises dozens of classes, from three packages
        raise UserError(
            f"{spec}: cannot be loaded: {one_line(error)} (check its name, split '{split}' and the network)"
        ) from None
    if columns and column not in columns:
        raise UserError(f"{spec}: no column '{column}'{suggest(column, columns)}: its columns are {', '.join(columns)}")
    return _some_text(_hub_rows(rows, spec, column), spec)


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keeps loggers from printing warnings and errors in the block."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _hub_rows(rows: Any, spec: str, column: str) -> Iterator[Document]:
    iterator = enumerate(rows, 1)
    while True:
        try:
            number, row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # a network that goes away, a damaged shard
            raise UserError(f"{spec}: reading stopped: {one_line(error)}") from None
        where = f"{spec}: row {number}"
        if column not in row:
            raise UserError(f"{where}: no column '{column}': its columns are {', '.join(row)}")
        yield Document(check_text(row[column], where, column), where)
