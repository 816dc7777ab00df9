"""Where text comes from: built-in corpora, files, folders, globs, and Hugging Face data sets.

Everything is read as a stream. How each kind of file is read is in `readers`, which files there are in `finding`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_ltm.config import suggest
from pyro_ltm.data.corpora import CORPORA, is_corpus, read_corpus
from pyro_ltm.data.document import Document
from pyro_ltm.data.finding import Found, Skipped, find_files
from pyro_ltm.data.hub import check_hub
from pyro_ltm.data.readers import Fields, Reading, has_columns, read_file
from pyro_ltm.data.readers.fields import no_column
from pyro_ltm.errors import UserError, one_line

HUB = "hf:"
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
            a built-in corpus: `python-docs`, or `worlds` with its options, such as `worlds:length=15,seed=1`;
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


def find_sources(specs: Sequence[str], reading: Reading) -> list[Source]:
    """Every source, looked up before the first is read. A file that an earlier one reads is left out of a later one."""
    names: dict[str, Path] = {}
    found = []
    for source in (find_source(spec, reading) for spec in specs):
        again = [path for path in source.files if os.path.realpath(path) in names]
        for path in source.files:
            names.setdefault(os.path.realpath(path), path)
        if again:
            skipped = [Skipped(path, f"the same file as {names[os.path.realpath(path)]}") for path in again]
            files = tuple(path for path in source.files if path not in again)
            source = _of_files(source.spec, Found(files, (*source.skipped, *skipped)), reading)
        found.append(source)
    return found


def find_source(spec: str, reading: Reading) -> Source:
    """The source that `spec` names. Raises UserError as `read_source` does at once."""
    if spec.startswith(HUB):
        return Source(spec, _open_hub(spec, reading), has_columns=True)
    if is_corpus(spec):
        if reading.text_column is not None:
            raise UserError(f"{spec}: has no column '{reading.text_column}', nor any other; leave the text column out")
        read_corpus(spec)  # says at once what is wrong with its options
        return Source(spec, lambda: read_corpus(spec))
    found = find_files(spec, reading)
    if found is not None:
        return _of_files(spec, found, reading)
    hub = f", or '{HUB}{spec}' for a Hugging Face data set" if _looks_like_hub_name(spec) else ""
    raise UserError(
        f"{one_line(spec)}: no such file, folder or corpus{suggest(spec, CORPORA)}: "
        f"give a path, a quoted glob, a corpus ({', '.join(CORPORA)}){hub or f', or {HUB}org/name'}"
    )


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


def text_sizes(spec: str) -> list[int]:
    """Bytes of each plain text file of a source; none where it holds anything else, or cannot be read.

    Of a file that is compressed, those that it takes: its text has more.
    """
    try:
        found = None if spec.startswith(HUB) or is_corpus(spec) else find_files(spec, Reading())
        files = found.files if found else ()
        return [] if any(map(has_columns, files)) else [path.stat().st_size for path in files if path.is_file()]
    except (UserError, OSError):  # what is wrong with it, reading will say
        return []


def _looks_like_hub_name(spec: str) -> bool:
    """`org/name`, and not a path that could only be meant as one."""
    return spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and not Path(spec).suffix


def _of_files(spec: str, found: Found, reading: Reading) -> Source:
    def read() -> Iterator[Document]:
        if not found.files:  # an earlier source reads them all
            return iter(())
        return _some_text((document for path in found.files for document in read_file(path, reading)), spec)

    return Source(spec, read, found.files, found.skipped, any(map(has_columns, found.files)))


def _some_text(documents: Iterator[Document], where: str) -> Iterator[Document]:
    """The documents unchanged; raises UserError at their end when none held any text."""
    empty = True
    for document in documents:
        empty = empty and not document.text.strip()
        yield document
    if empty:
        raise UserError(f"{where}: empty; expected some text")


def _open_hub(spec: str, reading: Reading) -> Callable[[], Iterator[Document]]:
    """What reads the rows of a Hugging Face data set. Checks the column before the first row."""
    name, config = spec[len(HUB) :], None
    if ":" in name and not Path(name).is_dir():
        name, config = name.split(":", 1)
    if not name:
        raise UserError(f"{spec}: expected a data set such as {HUB}org/name or {HUB}org/name:config")
    check_hub(spec, name)
    import datasets  # here, because it takes a second

    try:
        with _quiet("huggingface_hub", "datasets"):  # a line of log for every retry, before the one that we raise
            rows: Any = datasets.load_dataset(name, config, split=reading.split, streaming=reading.streaming)
        columns = list(rows.column_names or [])
    except Exception as error:  # the library raises dozens of classes, from three packages
        raise UserError(
            f"{spec}: cannot be loaded: {one_line(error)} (check its name, split '{reading.split}' and the network)"
        ) from None
    if columns and reading.column not in columns and reading.column.split(".")[0] not in columns:
        raise no_column(spec, reading.column, columns)
    fields = Fields(reading)
    return lambda: _some_text(_hub_rows(rows, spec, fields), spec)


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


def _hub_rows(rows: Any, spec: str, fields: Fields) -> Iterator[Document]:
    iterator = enumerate(rows, 1)
    while True:
        try:
            number, row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # a network that goes away, a damaged shard
            raise UserError(f"{spec}: reading stopped: {one_line(error)}") from None
        yield fields.document(row, f"{spec}: row {number}")
