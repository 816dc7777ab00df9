"""Files read into typed objects: bounded in size and depth, and refused in one line where they do not fit.

What people write (TOML) may name no key that is not known. What pyro-ltm writes for itself (JSON, safetensors) says its
format; a key that this release does not know is passed over, for what changes the meaning of the others raises the
format's number, and another number is refused.
"""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from pyro_ltm.digests import check_seal
from pyro_ltm.errors import Damaged, UserError, one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

T = TypeVar("T")

LARGEST = 10**100
"""The largest number that JSON may hold: far beyond any figure, and far below where pictures and squares fail."""
DEPTH = 32
"""Tables within tables, or lists within lists, of any file."""
MEBIBYTE = 1 << 20
LARGEST_JSON = 64 * MEBIBYTE
LARGEST_TOML = MEBIBYTE // 4
UNPACKED = 100 * MEBIBYTE

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""A whole number of things, in a schema."""


def read_bytes(path: Path, limit: int) -> bytes:
    """A file of at most `limit` bytes.

    Raises:
        UserError: it is larger, or cannot be read.
        FileNotFoundError: there is none; what is missing then, the caller knows better.
    """
    try:
        with open(path, "rb") as file:
            content = bytearray()
            # Memory for what there is, and not for all that there might be.
            while (part := file.read(min(MEBIBYTE, limit + 1 - len(content)))) and len(content) <= limit:
                content += part
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(path)) from None
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    if len(content) > limit:
        raise UserError(f"{path}: larger than {limit / MEBIBYTE:g} MiB, which no file of its kind is")
    return bytes(content)


def read_json(path: Path, kind: type[T], *, limit: int = LARGEST_JSON) -> T:
    """The JSON of a file as a `kind`.

    Raises:
        UserError: it is too large, no JSON, or no `kind`: with the file, the place in it, and what was expected.
        FileNotFoundError: there is none.
    """
    try:
        return parse_json(read_bytes(path, limit), kind)
    except _Misfit as error:
        raise UserError(f"{path}: damaged: {error}") from None


def parse_json(content: bytes | str, kind: type[T]) -> T:
    """JSON text as a `kind`. Raises UserError, which names the place but no file."""
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    try:
        value = _with_paths(content) if _ESCAPED_BYTE.search(content) else msgspec.json.decode(content)
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, UnicodeError) as error:
        reason = one_line(error).removeprefix("JSON is malformed: ")
        raise _Misfit(f"not valid JSON: {reason[:1].lower()}{reason[1:]}") from None
    return fitted(value, kind)


def fitted(value: Any, kind: type[T], *, dec_hook: Callable[[type[Any], Any], Any] | None = None) -> T:
    """`value`, as JSON or TOML gives it, as a `kind`. Raises UserError, which names the place.

    Args:
        dec_hook: makes what msgspec does not know, such as a tensor, of its type and what stands for it.
    """
    _check_bounds(value)
    try:
        return msgspec.convert(value, kind, dec_hook=dec_hook)
    except (ValueError, RecursionError) as error:
        raise _Misfit(_plain_words(str(error))) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        UserError: it is too large or no TOML: with the file, the line, and what is wrong there.
        FileNotFoundError: there is none.
    """
    try:
        return parse_toml(read_bytes(path, LARGEST_TOML).decode("utf-8-sig"))
    except (_Misfit, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable TOML file: {one_line(error)}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of TOML text. Raises UserError, which names the line but no file."""
    # A key of n parts takes the parser n^2 steps.
    if any(part.count(".") > 8 * DEPTH for line in text.splitlines() for part in line.split("=") if line[:1] != "#"):
        raise _too_deep()
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # also a number of thousands of digits
        raise _Misfit(_twice(text, str(error)) or one_line(error)) from None
    _check_bounds(document, whole=1 << 63)
    return document


def _twice(text: str, error: str) -> str:
    """The error of a key that is there twice, with its name, which the parser leaves out. Empty for any other error."""
    if "overwrite" not in error:
        return ""
    lines, line = text.splitlines(), re.search(r"at line (\d+)", error)
    number = int(line[1]) if line else len(lines)
    return f"line {number}: {one_line(lines[number - 1].split('=')[0], 80)} is there twice"


def check_name(path: Path) -> None:
    """Raises UserError for a path that is not UTF-8: safetensors writes there, and opens nothing."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: its name is not UTF-8, and no safetensors file there can be opened: change it"
        ) from None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        Damaged: it is cut short, not as it was `sealed`, or something else.
        UserError: `check_name`.
        FileNotFoundError: there is none.
    """
    check_name(path)
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            metadata = file.metadata() or {}
        check_seal(metadata.values(), tensors)
    except FileNotFoundError:
        raise
    except Damaged as error:
        raise Damaged(f"{path}: damaged: {error}") from None
    except Exception as error:  # damaged bytes surface as almost any exception
        raise Damaged(f"{path}: damaged, or no safetensors file: {one_line(error)}") from None
    return tensors, metadata


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray[Any, Any]:
    """The array of a .npy file, memory-mapped and read-only if `mapped`. Raises UserError when it holds none."""
    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array: np.ndarray[Any, Any]
            if mapped:
                array = np.lib.format.open_memmap(path, mode="r")
            else:
                with open(path, "rb") as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # damaged bytes surface as almost any exception
        raise UserError(f"{path}: not a readable .npy file: {one_line(error)}") from None
    return array


def read_npz(path: Path, name: str) -> np.ndarray[Any, Any] | None:
    """The array `name` of a .npz file; None where it has none.

    Raises:
        UserError: it is damaged or something else, or unpacks to over `UNPACKED` bytes and 100 times its size.
        FileNotFoundError: there is none.
    """
    import zipfile

    import numpy as np

    try:
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            warnings.simplefilter("error")
            if f"{name}.npy" not in archive.namelist():
                return None
            entry = archive.getinfo(f"{name}.npy")
            if entry.file_size > max(UNPACKED, 100 * entry.compress_size):
                raise ValueError(f"{name} unpacks to {entry.file_size} bytes")
            with archive.open(entry) as file:
                array: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)
                return array
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes surface as almost any exception
        raise UserError(f"{path}: damaged, or no .npz file: {one_line(error)}") from None


_ESCAPED_BYTE = re.compile(rb"\\ud[cC][89a-fA-F]")
"""How JSON spells a byte of a path that is not UTF-8 (`surrogateescape`), or the second half of a character."""


def _with_paths(content: bytes) -> Any:
    """JSON with paths that are not UTF-8, which msgspec refuses. Raises ValueError where it is damaged."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    value = json.loads(content, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")  # else it is no byte of a path
    return value


class _Misfit(UserError):
    """An error with its place in a file; the reader of the file adds the path."""


def _too_deep() -> _Misfit:
    return _Misfit(f"nested more than {DEPTH} deep")


def _check_bounds(value: Any, whole: int = LARGEST, depth: int = 0) -> None:
    """Raises UserError where `value` is nested too deep or holds a number that no field could take."""
    if isinstance(value, dict | list):
        if depth == DEPTH:
            raise _too_deep()
        for entry in value.values() if isinstance(value, dict) else value:
            if not isinstance(entry, str):
                _check_bounds(entry, whole, depth + 1)
        return
    largest = whole if isinstance(value, int) else LARGEST
    if isinstance(value, int | float) and largest < abs(value) < math.inf:  # fields speak of what is not finite
        raise _Misfit(f"holds a number beyond {float(largest):.2g}")


def _plain_words(error: str) -> str:
    """`a.b: expected int, got str` from msgspec's "Expected `int`, got `str` - at `$.a.b`"."""
    found = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$(.*)`)?", error, re.DOTALL)
    assert found is not None
    what = re.sub(r"^Object missing required field (.*)$", r"\1 is missing", found[1].replace("`", ""))
    place = (found[2] or "").lstrip(".")
    return f"{place}: {what[:1].lower()}{what[1:]}" if place else what[:1].lower() + what[1:]
