"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pyro_ltm.errors import UserError, one_line


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary path, in a hidden folder next to `path`, then puts that in its place.

    A reader (or a crash) finds either the old file or the new one. What earlier processes left that were killed while
    they wrote `path` is removed.

    Raises:
        UserError: the disk is full or the place cannot be written; the old file is as it was.
    """
    # A folder, because some writers (safetensors) make temporaries of their own next to what they write.
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary = folder / path.name
    with clear_errors(path):
        sweep_temporaries(path)
        try:
            folder.mkdir(exist_ok=True)
            write(temporary)
            os.chmod(temporary, 0o666 & ~_umask())  # some writers make files that only their owner can read
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep_temporaries(path: Path) -> None:
    """Removes the temporaries of `path` whose process is gone."""
    for temporary in left(path, r"\d+\.tmp"):
        if not process_lives(int(temporary.name.split(".")[-2])):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:  # of an earlier release
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, atomically. Raises UserError as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder next to `out` that becomes `out` when the block ends well, and vanishes when it does not.

    An `out` that is there already is replaced: at every moment it is there, old or new. Hold the lock of `out`: what
    a killed process left next to it is removed.

    Raises:
        UserError: the disk is full or the place cannot be written; what was there is as it was.
    """
    out = out.absolute()
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with clear_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            _sweep_folders(out)
            partial.mkdir()
            yield partial
            _put(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unfinished(out: Path) -> Path:
    """The folder in which `kept_folder` keeps what is to become `out`."""
    return out.with_name(f".{out.name}.unfinished")


@contextmanager
def kept_folder(out: Path, note: str) -> Iterator[Path]:
    """As `new_folder`, but what is done stays where the block fails, or its process is killed, once it wrote a note.

    The block finds what an earlier one did in the folder that it is given. Its file `note`, which says how far that
    is, lies beside the folder and not in it; without one, all of it vanishes where the block fails.

    Raises:
        UserError: the disk is full or the place cannot be written; what bore the name is as it was.
    """
    out = out.absolute()
    place = unfinished(out)
    kept = place / note
    try:
        with clear_errors(out, stays=kept):
            _sweep_folders(out)
            if not kept.is_file():
                shutil.rmtree(place, ignore_errors=True)
            partial = place / f"{out.name}.partial"
            partial.mkdir(parents=True, exist_ok=True)
            yield partial
            _put(partial, out)
            kept.unlink(missing_ok=True)
    finally:
        if not kept.is_file():
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def made_folder(out: Path) -> Iterator[None]:
    """Makes the folder where it is missing; one that it made goes again where the block fails and leaves it empty.

    Raises:
        UserError: it cannot be made.
    """
    is_new = not out.exists()
    with clear_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _sweep_folders(out: Path) -> None:
    """Removes what killed processes left of new folders and old ones."""
    for left_by_a_kill in left(out, r"[0-9a-f]{12}\.(partial|old)"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)


def _put(new: Path, out: Path) -> None:
    """Gives the folder `new` the name `out`, so that it lasts beyond a power cut."""
    for path in (*new.rglob("*"), new):
        sync(path)
    _replace_folder(new, out)
    sync(out.parent)


def half_replaced(out: Path) -> list[Path]:
    """The folder that was `out` until a process was killed between the two renamings that replace it; newest first."""
    return [] if os.path.lexists(out) else left(out, r"[0-9a-f]{12}\.old")


def put_back(out: Path) -> None:
    """Gives a folder that is `half_replaced` its name again. Hold its lock."""
    for old in half_replaced(out)[:1]:
        os.rename(old, out)


def left(path: Path, ending: str) -> list[Path]:
    """Hidden neighbours of `path` that bear its name and this ending: what killed processes left. Newest first."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{ending}")
    try:
        found = [path.with_name(entry.name) for entry in os.scandir(path.parent) if pattern.fullmatch(entry.name)]
        return sorted(found, key=lambda one: one.lstat().st_mtime, reverse=True)
    except OSError:  # not there, or not to be read
        return []


def process_lives(process: int) -> bool:
    """Whether a process of this number runs on this host; True where that cannot be known."""
    if sys.platform == "win32" or process <= 0:
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _replace_folder(new: Path, out: Path) -> None:
    """Makes `new` bear the name `out`, and deletes what bore it."""
    if not out.exists():
        os.rename(new, out)
    elif _exchange(new, out):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.old")
        os.rename(out, old)
        try:
            os.rename(new, out)
        except BaseException:
            os.rename(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names at once; False where the system or the file system cannot."""
    current_folder, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux
        return False
    if renameat2(current_folder, os.fsencode(one), current_folder, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def sync(path: Path) -> None:
    """Makes what `path` holds, a file's bytes or a folder's names, last beyond a power cut."""
    if path.is_symlink() or (path.is_dir() and not hasattr(os, "O_DIRECTORY")):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def clear_errors(path: Path, stays: Path | None = None) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a UserError of one line.

    Args:
        stays: where this file is there, what was done stays beside it, and the same again goes on with that.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors wraps the system's error and keeps its number only in the text: "... (os error 28)".
        number = re.search(r"\(os error (\d+)\)", str(error))
        code = getattr(error, "errno", None) or (int(number[1]) if number else None)
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            done = "nothing was changed: free some or name another disk"
            if stays is not None and stays.is_file():
                done = f"what is done stays in {stays.parent}: free some, and the same command goes on from there"
            raise UserError(f"{path}: no space left to write it; {done}") from None
        raise UserError(f"{path}: cannot be written: {one_line(error)}") from None
