"""Where text comes from: built-in corpora, files, folders, globs, and Hugging Face data sets.

Everything is read as a stream. How each kind of file is read is in `readers`, which files there are in `finding`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_ltm.config import suggest
from pyro_ltm.data.corpora import CORPORA, is_corpus, read_corpus
from pyro_ltm.data.documents import Document, Reading
from pyro_ltm.data.finding import Found, Skipped, find_files
from pyro_ltm.data.hub import HUB, open_hub
from pyro_ltm.data.readers import Fields, has_columns, read_file
from pyro_ltm.data.readers.fields import label_text, no_column
from pyro_ltm.data.readers.separated import is_separated
from pyro_ltm.errors import UserError, one_line

LISTED = 10_000
"""Files that are named where sources are recorded."""


@dataclass(frozen=True)
class Source:
    """A source that was found.

    Attributes:
        spec: how it was named.
        read: begins to read it, from the first document on; as often as it is called.
        files: those that are read; none of a corpus or a Hugging Face data set.
        skipped: those that are not, with the reason.
        has_columns: whether its text, or some of it, stands in a column.
    """

    spec: str
    read: Callable[[], Iterator[Document]]
    files: tuple[Path, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    has_columns: bool = False


def read_source(spec: str, reading: Reading | None = None) -> Iterator[Document]:
    """The documents of a source, as a stream.

    Args:
        spec: one of, looked up in this order:
            `hf:org/name` or `hf:org/name:config`, a Hugging Face data set (or `hf:` and a local folder of one);
            a built-in corpus: `python-docs`, `worlds` with its options, such as `worlds:length=15,seed=1`, or a task
            to be learned in context, such as `in-context:lookup,shots=12`;
            a file (see `readers`; one of another suffix as plain text);
            a folder, read recursively in sorted order: its files of a kind that `readers` names; or a glob, quoted,
            where `**` stands for any folders. In both each real file is read once, and hidden ones are not.
        reading: how to read it; None: `Reading()`.

    A plain text file is one document, in pieces; a line, row or record of the other kinds is one each.

    Raises:
        UserError: at once where `spec` names nothing that can be read; while reading, where the input is bad, with
            the file, the line or row, and what would be right.
    """
    return find_source(spec, reading or Reading()).read()


def find_source(spec: str, reading: Reading) -> Source:
    """The source that `spec` names. Raises UserError as `read_source` does at once."""
    source = _find(spec, reading)
    check_delimiter([source], reading)
    return source


def find_sources(specs: Sequence[str], reading: Reading) -> list[Source]:
    """Every source, looked up before the first is read. A file that an earlier one reads is left out of a later one."""
    first_names: dict[str, Path] = {}
    found = []
    for source in (_find(spec, reading) for spec in specs):
        again = [path for path in source.files if os.path.realpath(path) in first_names]
        for path in source.files:
            first_names.setdefault(os.path.realpath(path), path)
        if again:
            skipped = [Skipped(path, f"the same file as {first_names[os.path.realpath(path)]}") for path in again]
            files = tuple(path for path in source.files if path not in again)
            source = _of_files(source.spec, Found(files, (*source.skipped, *skipped)), reading)
        found.append(source)
    return found


def check_delimiter(sources: Sequence[Source], reading: Reading) -> None:
    """Raises UserError when a delimiter is given, and no file among the sources has one."""
    if reading.delimiter is not None and not any(is_separated(path) for source in sources for path in source.files):
        raise UserError(f"delimiter = {reading.delimiter!r}: there is no .csv or .tsv file to read by it; leave it out")


def _find(spec: str, reading: Reading) -> Source:
    if not spec.strip():  # to a path, no name is the folder at hand
        raise UserError("a source without a name: give a path, a quoted glob or a corpus ('.' for the folder at hand)")
    if spec.startswith(HUB):
        read_rows = open_hub(spec, reading)
        return Source(spec, lambda: _some_text(read_rows(), spec), has_columns=True)
    if is_corpus(spec):
        if reading.text_column is not None:
            raise UserError(f"{spec}: has no column '{reading.text_column}', nor any other; leave the text column out")
        documents = read_corpus(spec)  # says at once what is wrong with its options
        known = next(documents).columns if reading.columns else {}
        if unknown := next((column for column in reading.columns if column not in known), None):
            raise no_column(spec, unknown, known)
        return Source(spec, lambda: _carrying(read_corpus(spec), reading.columns))
    if found := find_files(spec, reading):
        return _of_files(spec, found, reading)
    like_a_hub_name = spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and not Path(spec).suffix
    hub = f", or '{HUB}{spec}' for a Hugging Face data set" if like_a_hub_name else f", or {HUB}org/name"
    raise UserError(
        f"{one_line(spec)}: no such file, folder or corpus{suggest(spec, CORPORA)}: "
        f"give a path, a quoted glob, a corpus ({', '.join(CORPORA)}){hub}"
    )


def read_labelled(
    path: Path, columns: Sequence[str], *, reading: Reading | None = None, limit: int | None = None
) -> tuple[list[str], dict[str, list[str]]]:
    """The first `limit` texts of a file, and their labels by column, such as reviews and their stars.

    Raises:
        UserError: the file cannot be read, has no such columns, or holds something else in them than a text with a
            word, a number or a truth value as its label.
    """
    if not has_columns(path):
        raise UserError(f"{path}: expected a .jsonl, .csv or .parquet file, with a column for each label")
    reading = reading or Reading()

    def first(fields: Fields) -> list[str]:
        return [document.text for document in itertools.islice(read_file(path, reading, fields), limit)]

    def labels(column: str) -> list[str]:
        return first(Fields(dataclasses.replace(reading, text_column=column, skip_empty=False), label_text))

    return first(Fields(reading)), {column: labels(column) for column in columns}


def listed(sources: Sequence[Source]) -> dict[str, Any]:
    """Files that are read, and those that are not with the reason: of each how many, and the first `LISTED`."""
    files = [str(path) for source in sources for path in source.files]
    skipped = [{"path": str(one.path), "why": one.why} for source in sources for one in source.skipped]
    return {
        "files_read": {"count": len(files), "first": files[:LISTED]},
        "files_skipped": {"count": len(skipped), "first": skipped[:LISTED]},
    }


def sources_of(data: str | Path | Sequence[str] | None) -> list[str]:
    """One source, or several, or none, as a list."""
    return [str(data)] if isinstance(data, str | Path) else list(data or [])


def _of_files(spec: str, found: Found, reading: Reading) -> Source:
    def read() -> Iterator[Document]:
        if not found.files:  # an earlier source reads them all
            return iter(())
        return _some_text((document for path in found.files for document in read_file(path, reading)), spec)

    return Source(spec, read, found.files, found.skipped, any(map(has_columns, found.files)))


def _carrying(documents: Iterator[Document], columns: Sequence[str]) -> Iterator[Document]:
    """The documents with these of their columns."""
    for document in documents:
        wanted = {column: document.columns[column] for column in columns}
        yield document if document.columns == wanted else dataclasses.replace(document, columns=wanted)


def _some_text(documents: Iterator[Document], where: str) -> Iterator[Document]:
    """The documents unchanged; raises UserError at their end when none held any text."""
    empty = True
    for document in documents:
        empty = empty and not document.text.strip()
        yield document
    if empty:
        raise UserError(f"{where}: empty; expected some text")
