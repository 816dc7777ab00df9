"""Files of embeddings: what `pyro-ltm embed` writes, and what other commands read in place of texts.

A row is a document, or a window of it. `.parquet` has the column `embedding`, a list of numbers a row; `.npz` and
`.safetensors` have the array `embeddings` [R, P]. Beside them stand `document`, `window`, `tokens` and `bound_nats`,
how the text begins, its id, and the columns that were carried along: in .parquet and .npz by their names, in
.safetensors, which holds no words, in the header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.files import write_atomically
from pyro_ltm.reading import check_name, parse_json, read_npz, read_safetensors
from pyro_ltm.runs.documents import SHOWN, Piece
from pyro_ltm.runs.embedding import Embeddings

FORMAT = "pyro-ltm embeddings 1"
NUMBERS = ("document", "window", "tokens", "bound_nats")
OWN = (*NUMBERS, "embedding", "embeddings", "meta")
"""Names that a column of the input may not have."""
LARGEST_HEADER = 30 << 20
"""Characters of a safetensors header; it holds 100 MB, and escapes take up to three times their number."""
LARGEST_WORDS = 1 << 31
"""Bytes of the words of one column in .npz, where each takes the room of the longest."""


Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]


class Header(msgspec.Struct):
    """The description that a file carries of itself.

    Attributes:
        fingerprint: of the run. fit: how posteriors were fitted. shape: [n, D] of each row.
        draw: whether rows are draws from posteriors, not means.
        layers: whose thoughts these are. columns: names of what was carried along.
        table, texts: in .safetensors, the words.
    """

    fingerprint: str
    fit: dict[str, Any]
    shape: tuple[Positive, Positive]
    layers: list[int]
    draw: bool = False
    columns: list[str] = []
    table: dict[str, list[Any]] = {}
    texts: list[str] = []


Parts = tuple[Header, Tensor, Mapping[str, Tensor], Mapping[str, list[Any]]]
"""The header, all numbers of the rows, their `NUMBERS`, and their words by name."""


def check_columns(columns: Sequence[str]) -> None:
    """Raises UserError when the file has something else of that name."""
    for name in columns:
        if name in OWN:
            raise UserError(f"--columns {name}: the file has a column of this name anyway; rename yours")
        if columns.count(name) > 1:
            raise UserError(f"--columns {name}: is there twice")


def check_suffix(path: Path) -> None:
    """Raises UserError when no file of such a name can be written."""
    check_name(path)
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"{path}: expected a name that ends in {', '.join(list(WRITERS)[:-1])} or {list(WRITERS)[-1]}")


def check_room(path: Path, pieces: Sequence[Piece]) -> None:
    """Raises UserError when the file could not hold the words of these rows, before they are fitted."""
    kind, rows = path.suffix.lower(), [piece.document for piece in pieces]
    if kind == ".safetensors":
        size = sum(len(json.dumps([one.id, *one.columns.values()])) + SHOWN for one in rows)
        too_large = size > LARGEST_HEADER
    else:
        widths: dict[str, int] = {}
        for one in rows:
            for name, value in one.columns.items():
                widths[name] = max(widths.get(name, 0), len(value) if isinstance(value, str) else 0)
        too_large = kind == ".npz" and 4 * len(rows) * max(widths.values(), default=0) > LARGEST_WORDS
    if too_large:
        raise UserError(f"{path}: too many words to carry along for {kind}; write .parquet, or name fewer columns")


def write_embeddings(path: Path, rows: Embeddings, meta: Mapping[str, Any]) -> None:
    """Writes rows in one file, as its suffix says, whole or not at all; `meta` has what `Header` needs of the fit.

    Raises:
        UserError: another suffix, or the place cannot be written.
    """
    check_suffix(path)
    about = {**meta, "shape": list(rows.thoughts.shape[1:]), "layers": list(rows.layers), "columns": list(rows.table)}
    write = WRITERS[path.suffix.lower()]
    write_atomically(path, lambda temporary: write(temporary, rows, about))


def read_embeddings(path: Path) -> tuple[Embeddings, Header]:
    """The rows of a file that `write_embeddings` wrote.

    Raises:
        UserError: it is damaged or something else.
        FileNotFoundError: there is none.
    """
    try:
        return _rows(*READERS[path.suffix.lower()](path))
    except FileNotFoundError:
        raise
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None
    except Exception as error:  # damaged bytes surface as almost any exception
        raise UserError(f"{path}: damaged, or no embeddings: {one_line(error)}") from None


def is_embeddings(path: Path) -> bool:
    """Whether a file, by its name and its first look, holds embeddings, and is no text."""
    kind = path.suffix.lower()
    if not path.is_file() or kind not in READERS:
        return False
    return kind != ".parquet" or FORMAT.encode() in _metadata(path)


def _write_parquet(path: Path, rows: Embeddings, meta: Mapping[str, Any]) -> None:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    numbers = pyarrow.array(rows.features.numpy().reshape(-1))
    columns = {name: _array(pyarrow, values) for name, values in rows.table.items()}
    columns |= {name: pyarrow.array(getattr(rows, name).numpy()) for name in NUMBERS}
    columns |= {"text": pyarrow.array(rows.texts)} if "text" not in columns else {}
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(numbers, rows.features.shape[1])
    table = pyarrow.table(columns).replace_schema_metadata({FORMAT: json.dumps(meta)})
    pyarrow.parquet.write_table(table, path)


def _array(pyarrow: Any, values: list[Any]) -> Any:
    """Values of one kind as they are, of several as words."""
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
        return pyarrow.array([None if value is None else str(value) for value in values])


def _write_npz(path: Path, rows: Embeddings, meta: Mapping[str, Any]) -> None:
    arrays: dict[str, Any] = {name: getattr(rows, name).numpy() for name in NUMBERS}
    arrays |= {"embeddings": rows.features.numpy(), "text": np.array(rows.texts)}
    arrays |= {name: _words_or_numbers(values) for name, values in rows.table.items()}
    arrays["meta"] = np.array(json.dumps({"format": FORMAT, **meta}))
    with open(path, "wb") as file:  # given a name, numpy would write to another one
        np.savez(file, **arrays)


def _words_or_numbers(values: list[Any]) -> Any:
    """An array that numpy reads without pickle: numbers and truth values as they are (NaN for none), else words."""
    kinds = {type(value) for value in values}
    if kinds in ({int}, {float}, {bool}, {int, float}):
        array = np.array(values)
        if array.dtype.kind in "ifb":  # not so large that it is an object
            return array
    if kinds <= {int, float, type(None)} and kinds != {type(None)}:
        return np.array([np.nan if value is None else float(value) for value in values])
    return np.array(["" if value is None else str(value) for value in values], dtype=np.str_)


def _write_safetensors(path: Path, rows: Embeddings, meta: Mapping[str, Any]) -> None:
    tensors = {name: getattr(rows, name).contiguous() for name in NUMBERS}
    words = {"table": rows.table, "texts": rows.texts}
    header = {FORMAT: json.dumps({**meta, **words})}
    save_file({**tensors, "embeddings": rows.features.contiguous()}, path, metadata=header)


def _read_parquet(path: Path) -> Parts:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    header = _header((table.schema.metadata or {}).get(FORMAT.encode(), b""))
    numbers = torch.tensor(table["embedding"].combine_chunks().flatten().to_numpy())
    tensors = {name: torch.tensor(table[name].to_numpy()) for name in NUMBERS}
    return header, numbers, tensors, {name: table[name].to_pylist() for name in ("text", *header.columns)}


def _read_npz(path: Path) -> Parts:
    header = _header(str(_array_of(path, "meta")))
    tensors = {name: torch.tensor(_array_of(path, name)) for name in NUMBERS}
    words = {name: _array_of(path, name).tolist() for name in ("text", *header.columns)}
    return header, torch.tensor(_array_of(path, "embeddings")), tensors, words


def _array_of(path: Path, name: str) -> Any:
    array = read_npz(path, name)
    if array is None:
        raise UserError(f"holds no array '{name}'; expected what `embed --out` wrote")
    return array


def _read_safetensors(path: Path) -> Parts:
    tensors, metadata = read_safetensors(path)
    header = _header(metadata.get(FORMAT, ""))
    return header, tensors["embeddings"], tensors, {"text": header.texts, **header.table}


def _header(text: str | bytes) -> Header:
    if not text:
        raise UserError("holds no embeddings; expected what `embed --out` wrote")
    try:
        return parse_json(text, Header)
    except UserError as error:
        raise UserError(f"damaged: its metadata: {error}") from None


def _rows(
    header: Header, numbers: Tensor, tensors: Mapping[str, Tensor], words: Mapping[str, list[Any]]
) -> tuple[Embeddings, Header]:
    """The rows, if all parts of the file agree on how many there are. Raises UserError otherwise."""
    parts: dict[str, Any] = {name: tensors[name] for name in NUMBERS}
    lengths = {(len(words[name]),) for name in ("text", *header.columns)}
    counts = {tuple(part.shape) for part in parts.values()} | lengths
    if len(counts) > 1 or numbers.numel() != len(parts["document"]) * math.prod(header.shape):
        raise UserError("damaged: its parts are not of the same number of rows")
    if any(part.dtype is not torch.int64 for name, part in parts.items() if name != "bound_nats"):
        raise UserError("damaged: its documents are not numbered")
    thoughts = numbers.float().reshape(len(parts["document"]), *header.shape)
    if not len(thoughts) or not bool(torch.isfinite(thoughts).all()):
        raise UserError("its embeddings are not finite numbers")
    rows = Embeddings(
        thoughts=thoughts,
        **parts,
        texts=[str(text) for text in words["text"]],
        table={name: list(words[name]) for name in header.columns},
        layers=tuple(header.layers),
    )
    return rows, header


def _metadata(path: Path) -> Mapping[bytes, bytes]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path).metadata or {}
    except Exception:  # the reader of texts says what is wrong with it
        return {}


WRITERS: dict[str, Callable[[Path, Embeddings, Mapping[str, Any]], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}
"""Suffixes of the files that are written."""
READERS: dict[str, Callable[[Path], Parts]] = {
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
