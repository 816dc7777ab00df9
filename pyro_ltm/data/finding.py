"""Which files a path, a folder or a glob stands for: each real file once, and of the others, why they are not read."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_ltm.data.documents import Reading
from pyro_ltm.data.manifest import is_prepared
from pyro_ltm.data.readers import SUFFIXES
from pyro_ltm.data.sniffing import why_not_text
from pyro_ltm.errors import UserError, one_line

SHOWN = 3
"""Skipped files that a message names."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not read, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Found:
    """The files of a source, sorted, and those that are not read."""

    files: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()


def find_files(spec: str, reading: Reading) -> Found | None:
    """The files that a path or glob stands for; None where there is no such path and it is no glob.

    A folder stands for all files below it of a kind that is read. Links are followed, hidden names are not, a folder
    is looked into once and a file is read once, by whatever names they are reached.

    Raises:
        UserError: it cannot be looked at, holds nothing to read, or is a file that is not text.
    """
    path = Path(spec).expanduser()
    try:
        if path.is_dir():
            found = _sorted_out(path, ("**", "*"), reading, folder=True)
            return _some(spec, found, f"no {', '.join(SUFFIXES)} file in it")
        if path.exists():
            if why := why_not_text(path, reading, named=True):
                raise UserError(f"{path}: {why}")
            return Found((path,))
        if not glob.has_magic(spec):
            return None
        plain = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
        found = _sorted_out(Path(*path.parts[:plain]), path.parts[plain:], reading, folder=False)
        return _some(spec, found, "no file matches")
    except UserError:
        raise
    except (OSError, ValueError) as error:  # permission denied, a name too long, a NUL in it
        raise UserError(f"{one_line(spec)}: cannot be read: {one_line(error)}") from None


def reasons(skipped: Sequence[Skipped]) -> list[str]:
    """Each reason with the number of files that it holds for, and the first of them."""
    by_reason: dict[str, list[str]] = {}
    for one in skipped:
        by_reason.setdefault(one.why, []).append(str(one.path))
    lines = []
    for why, paths in by_reason.items():
        more = f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else ""
        lines.append(f"{', '.join(paths[:SHOWN])}{more}: {why}")
    return lines


def _some(spec: str, found: Found, nothing: str) -> Found:
    """`found`, if there is a file in it."""
    if found.files:
        return found
    why = f"; not read: {one_line('; '.join(reasons(found.skipped)), 600)}" if found.skipped else ""
    raise UserError(f"{spec}: {nothing}{why}")


def _sorted_out(base: Path, patterns: Sequence[str], reading: Reading, *, folder: bool) -> Found:
    """The files below `base` that match, each real one once, and of the others what keeps them out."""
    walk = _Walk(patterns, folder=folder)
    reached = list(walk.files(base))
    skipped = walk.skipped
    first_names: dict[str, Path] = {}
    files = []
    # Of the names of one file, that which goes through no link.
    for path in sorted(reached, key=lambda path: (os.path.realpath(path) != os.path.abspath(path), path)):
        first = first_names.setdefault(os.path.realpath(path), path)
        try:
            why = f"the same file as {first}" if first is not path else ""
            why = why or why_not_text(path, reading, named=False, folder=folder)
        except OSError as error:  # permission denied
            why = f"cannot be read: {one_line(error)}"
        if why:
            skipped.append(Skipped(path, why))
        else:
            files.append(path)
    return Found(tuple(sorted(files)), tuple(sorted(skipped, key=lambda one: one.path)))


class _Walk:
    """Files below a folder whose names match a pattern for each part of their path, where `**` is any folders.

    A folder is looked into once for each set of places in the pattern at which it is reached, so that links back to a
    parent, or to one another, end. Folders that are reached without a link come first.
    """

    def __init__(self, patterns: Sequence[str], *, folder: bool):
        """`folder`: all files are wanted, so that what is passed by is worth a word."""
        self._patterns = (*patterns, *(("*",) if patterns[-1] == "**" else ()))
        self._folder = folder
        self.skipped: list[Skipped] = []

    def files(self, base: Path) -> Iterator[Path]:
        """The files; afterwards `skipped` has what was passed by."""
        above = {str(parent) for parent in Path(os.path.realpath(base)).parents}
        without_link, behind_links = [(base, self._with_empty_folders({0}))], list[tuple[Path, frozenset[int]]]()
        seen: set[tuple[str, frozenset[int]]] = set()
        while without_link or behind_links:
            folder, places = (without_link or behind_links).pop()
            key = os.path.realpath(folder), places
            if why := self._why_not_entered(folder, key[0], base, above) if key not in seen else _SEEN:
                self._skip(folder, why)
                continue
            seen.add(key)
            for entry in self._entries(folder):
                path, after = Path(entry.path), self._after(places, entry.name)
                if entry.name.startswith(".") and self._folder:
                    self._skip(path, "hidden")
                elif _is_folder(entry):
                    if deeper := after - {len(self._patterns)}:
                        (behind_links if entry.is_symlink() else without_link).append((path, deeper))
                    elif after:
                        self._skip(path, "a folder; ** stands for any folders")
                elif len(self._patterns) in after:
                    if os.path.isfile(path):
                        yield path
                    else:
                        self._skip(path, "not a regular file" if os.path.exists(path) else "a link to nothing")

    def _why_not_entered(self, folder: Path, real: str, base: Path, above: set[str]) -> str:
        """Why a folder is not looked into; empty where it is."""
        if real in above:  # the user named what is below `base` alone
            return "a link to a folder above the one that is read"
        return _of_our_own(folder) if self._folder or folder != base else ""

    def _skip(self, path: Path, why: str) -> None:
        self.skipped.append(Skipped(path, why))

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._skip(folder, f"cannot be read: {one_line(error)}")
            return []

    def _after(self, places: frozenset[int], name: str) -> frozenset[int]:
        """The places in the pattern that are reached after one more name."""
        after = set()
        for place in places - {len(self._patterns)}:
            pattern = self._patterns[place]
            if pattern == "**":
                after |= set() if name.startswith(".") else {place}
            elif fnmatch.fnmatch(name, pattern) and (pattern[0] == "." or name[0] != "."):
                after.add(place + 1)
        return self._with_empty_folders(after)

    def _with_empty_folders(self, places: set[int]) -> frozenset[int]:
        """`places`, and those that follow where `**` stands for no folder at all."""
        for place, pattern in enumerate(self._patterns):
            if place in places and pattern == "**":
                places = places | {place + 1}
        return frozenset(places)


_SEEN = "a link to a folder that is read already"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads back to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _of_our_own(folder: Path) -> str:
    """Why a folder of this program's is not text; empty where it is none."""
    of_a_run = ("model.safetensors", "trainer.safetensors", "metrics.jsonl")
    if os.path.isfile(folder / "config.toml") and any(os.path.isfile(folder / name) for name in of_a_run):
        return "a run folder, which holds no text"
    return "a prepared folder, whose text is in tokens already" if is_prepared(folder) else ""
