"""Files written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pyro_ltm.errors import UserError, one_line


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary path beside `path`, then puts that in its place.

    A reader (or a crash) finds either the old file or the new one.

    Raises:
        UserError: the disk is full or the place cannot be written; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with clear_errors(path):
        try:
            write(temporary)
            os.chmod(temporary, 0o666 & ~_umask())  # some writers make files that only their owner can read
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, atomically. Raises UserError as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder that becomes `out` when the block ends well, and vanishes when it does not.

    It lies beside `out`, or where the parents of `out` are yet to be made, beside the first of them. An `out` that is
    there already is replaced.

    Raises:
        UserError: the disk is full or the place cannot be written; what was there is as it was.
    """
    out = out.absolute()
    anchor = next(parent for parent in out.parents if os.path.exists(parent))
    partial = anchor / f".{out.name}.{uuid.uuid4().hex[:12]}.partial"
    try:
        with clear_errors(out):
            partial.mkdir()
            yield partial
            out.parent.mkdir(parents=True, exist_ok=True)
            _replace_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(new: Path, out: Path) -> None:
    """Renames `new` to `out`. What was there is deleted last, and put back if the renaming fails."""
    if not out.exists():
        os.rename(new, out)
        return
    old = new.with_suffix(".old")
    os.rename(out, old)
    try:
        os.rename(new, out)
    except BaseException:
        os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Makes a renaming last beyond a power cut, where the system lets a folder be opened."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a UserError of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors wraps the system's error and keeps its number only in the text: "... (os error 28)".
        number = re.search(r"\(os error (\d+)\)", str(error))
        code = getattr(error, "errno", None) or (int(number[1]) if number else None)
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{path}: no space left to write it; nothing was changed: free some or name another disk"
            ) from None
        raise UserError(f"{path}: cannot be written: {one_line(error)}") from None
