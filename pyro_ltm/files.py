"""Files written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pyro_ltm.errors import UserError


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
            raise UserError(f"{path}: no space left on the disk; nothing was changed") from None
        raise UserError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
