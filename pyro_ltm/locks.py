"""Locks: one process at a time writes a folder.

The lock of `runs/first` is the file `runs/.first.lock`, held by `flock`: the system frees it when its process dies,
however it dies. Linux passes `flock` on to the server of an NFS. Where a file system has no such locks, the file's
existence is the lock; then one whose process is gone from this host is stale, and one of another host is for its user
to remove.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.files import clear_errors, half_replaced, process_lives, put_back
from pyro_ltm.reading import read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

P = ParamSpec("P")
R = TypeVar("R")


class Busy(UserError):
    """Another process or thread writes what was to be locked."""


POLL = 0.05
"""Seconds between the attempts of one who waits."""

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of a file system without `flock`."""

BY_EXISTENCE = -1
"""In place of an open file: the existence of the lock's file is the lock."""

_mine = threading.local()
_handles: set[int] = set()


@contextmanager
def locked(target: Path | str, *, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock of `target`, a folder or file that need not exist yet, for as long as the block runs.

    A thread that holds it already passes. A folder that a killed writer left under another name is put back. Folders
    above `target` are made; those that are empty at the end go again.

    Args:
        wait: seconds to wait for another that holds it; 0: refuse at once.

    Raises:
        Busy: another process or thread writes `target`, and the message names it.
        UserError: no lock can be made there.
    """
    target = Path(os.path.realpath(target))
    mine: set[Path] = _mine.__dict__.setdefault("targets", set())
    if target in mine:
        yield
        return
    with _parents(target), _lock_of(target, time.monotonic() + wait):
        mine.add(target)
        try:
            with clear_errors(target):
                put_back(target)
            yield
        finally:
            mine.discard(target)


def locks_out(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: holds the lock of the keyword argument `out` while `function` runs; of None there is none."""

    @functools.wraps(function)
    def holding(*arguments: P.args, **named: P.kwargs) -> R:
        out = named.get("out")
        with locked(out) if isinstance(out, str | Path) else contextlib.nullcontext():
            return function(*arguments, **named)

    return holding


def recover(folder: Path | str) -> None:
    """Puts back a folder whose writer was killed between taking the old one away and putting the new one there.

    Raises:
        UserError: it is being written.
    """
    folder = Path(folder)
    if half_replaced(folder):
        with locked(folder):
            pass


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """The folders above `target`, made where they are missing."""
    missing = [parent for parent in target.parents if not os.path.lexists(parent)]
    try:
        with clear_errors(target):
            for parent in reversed(missing):
                parent.mkdir(exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # of use after all
            for parent in missing:
                parent.rmdir()


@contextmanager
def _lock_of(target: Path, deadline: float) -> Iterator[None]:
    path = _place(target)
    with clear_errors(target):
        while (handle := _attempt(path)) is None:
            if time.monotonic() >= deadline:
                raise Busy(_refusal(target, path))
            time.sleep(POLL)
    if handle != BY_EXISTENCE:
        _handles.add(handle)
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # a fork that leaves this block holds nothing
            _release(path, handle)


def _place(target: Path) -> Path:
    """The file of a target's lock: next to it; inside, where nobody may write next to it."""
    inside = os.path.ismount(target) or (target.is_dir() and not os.access(target.parent, os.W_OK))
    return target / ".lock" if inside else target.with_name(f".{target.name}.lock")


def _attempt(path: Path) -> int | None:
    """The open file that now holds the lock at `path`, or BY_EXISTENCE; None while another holds it."""
    while True:
        handle, is_new = _open(path)
        keep = False
        try:
            try:
                answer = _flock(handle)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                if is_new:
                    _sign(path, handle, by_existence=True)
                    return BY_EXISTENCE
                if not _remove_stale(path):
                    return None
                continue
            if not answer:
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):  # else the one before us has removed it meanwhile
                    _sign(path, handle)
                    keep = True
                    return handle
        finally:
            if not keep:
                os.close(handle)


def _sign(path: Path, handle: int, *, by_existence: bool = False) -> None:
    """Writes who holds the lock into its file, which is taken away where there is no room for that."""
    try:
        os.ftruncate(handle, 0)
        os.write(handle, _signature(by_existence=by_existence))
    except OSError:
        path.unlink()
        raise


def _open(path: Path) -> tuple[int, bool]:
    """The file at `path`, open for writing, and whether it was made just now."""
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            return os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)), False


def _flock(handle: int) -> bool:
    """Whether `handle` got the lock. Raises OSError where there is none to get."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no flock")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _release(path: Path, handle: int) -> None:
    """Removes the file while it is locked: who opened it meanwhile finds that it guards no name any more."""
    with contextlib.suppress(OSError):
        path.unlink()
    _handles.discard(handle)
    if handle != BY_EXISTENCE:
        os.close(handle)


def _remove_stale(path: Path) -> bool:
    """Removes a lock by existence whose process is gone from this host; whether it was one."""
    holder = _holder(path)
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int) or process_lives(process):
        return False
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    if _holder(aside) != holder:  # another was faster, and what we took away is its own
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()
    return True


def _signature(*, by_existence: bool = False) -> bytes:
    """Who holds a lock, for those who are refused."""
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    words = [Path(sys.argv[0]).name, *sys.argv[1:2]] if sys.argv else []
    about = {"host": socket.gethostname(), "process": os.getpid(), "since": now, "command": " ".join(words)[:100]}
    about |= {"remove": "this file, if the process runs no more"} if by_existence else {}
    return json.dumps(about).encode()


def _holder(path: Path) -> dict[str, Any]:
    """The entries of a lock's file, which describe its holder; empty where it has none."""
    try:
        return read_json(path, dict[str, Any], limit=10_000)
    except (FileNotFoundError, UserError):
        return {}


def _refusal(target: Path, path: Path) -> str:
    holder = _holder(path)
    who = "another process"
    if holder:
        who = f"process {holder.get('process')} on host {holder.get('host')} since {holder.get('since')}"
        words = str(holder.get("command", "")).split()[:2]  # an earlier release writes all of them
        who += f" ({' '.join(words)})" if words else ""
    line = one_line(f"{target}: is being written by {who}", limit=500)
    remedy = f"; if that runs no more, remove {path}" if "remove" in holder else f" (its lock: {path})"
    return f"{line}; wait for it, or name another place{remedy}"


def _forget() -> None:
    """In a fork: the locks are its parent's alone, and free when that dies."""
    for handle in _handles:
        os.close(handle)
    _handles.clear()
    _mine.__dict__.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
