"""Rows of Parquet files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pyro_ltm.data.documents import ID, Document
from pyro_ltm.data.readers.fields import Fields, no_column
from pyro_ltm.data.readers.streams import open_bytes
from pyro_ltm.errors import UserError, one_line

_ROWS = 1024
"""Rows decoded at a time."""


def read_parquet(path: Path, fields: Fields) -> Iterator[Document]:
    """The rows of a file, in which only the columns that are asked for are read."""
    with _seekable(path) as file:
        if not file.seek(0, 2):
            return
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                columns = _columns(table.schema_arrow, path, fields)
                row = 0
                for batch in table.iter_batches(batch_size=_ROWS, columns=columns):
                    for number in range(batch.num_rows):
                        row += 1
                        where = f"{path}: row {row}"
                        yield fields.document(_record(batch, number, where), where)
        except UserError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            if isinstance(error, PermissionError):
                raise
            raise UserError(f"{path}: not a readable Parquet file: {one_line(error)}") from None


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[IO[bytes]]:
    """The file itself, or where it is compressed once more, a copy of what it holds."""
    with open_bytes(path) as file:
        if path.suffix.lower() == ".parquet":
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            yield copy


def _columns(schema: Any, path: Path, fields: Fields) -> list[str]:
    """The columns to read. Raises UserError when one is not there."""
    names = list(_names(schema))
    wanted = [fields.column, *fields.reading.columns]
    if fields.reading.id_column is not None or ID in schema.names:
        wanted.append(fields.reading.id_column or ID)
    for column in wanted:
        if names.count(column) > 1:
            raise UserError(f"{path}: {names.count(column)} columns '{column}'; name one otherwise")
        if not any(_is_or_holds(name, column) for name in names):
            raise no_column(str(path), column, names)
    return list(dict.fromkeys(wanted))


def _is_or_holds(name: str, column: str) -> bool:
    return name == column or name.startswith(f"{column}.")


def _names(fields: Any, before: str = "") -> Iterator[str]:
    """Names of the columns, `a.b` for b in a."""
    import pyarrow.types  # type: ignore[import-untyped]

    for field in fields:
        name = before + field.name
        if pyarrow.types.is_struct(field.type) and field.type.num_fields:
            yield from _names((field.type.field(index) for index in range(field.type.num_fields)), f"{name}.")
        else:
            yield name


def _record(batch: Any, row: int, where: str) -> dict[str, Any]:
    """One row as a dictionary. Raises UserError when a string in it is no UTF-8."""
    record = {}
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        try:
            record[name] = values[row].as_py()
        except UnicodeDecodeError as error:
            where_in = f"'{name}' is not UTF-8 at byte {error.start} of it"
            raise UserError(f"{where}: {where_in}; expected text in UTF-8") from None
    return record
