"""The notes in a run folder: where its data lie (data.json), and with whose weights it began (init.json)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from pyro_ltm.data import TokenDataset
from pyro_ltm.errors import UserError
from pyro_ltm.files import write_text
from pyro_ltm.reading import Count, read_json

DATA, ORIGIN = "data.json", "init.json"

Note = TypeVar("Note", bound=msgspec.Struct)


class DataNote(msgspec.Struct):
    """The folder of a run's tokens, relative to the run or not, and their fingerprint."""

    folder: str
    fingerprint: str


class OriginNote(msgspec.Struct):
    """The run, at one of its steps, whose weights a run began with, and the parts that took them."""

    run: str
    step: Count
    fingerprint: str
    parts: list[str]


def data_note(folder: Path) -> DataNote | None:
    """The note of a run's data; None where there is none, or something else under its name.

    What goes on without it notices: `open_data` says that it is damaged, and a checkpoint knows its own data.
    """
    try:
        return _read(folder / DATA, DataNote)
    except UserError:
        return None


def origin_note(folder: Path) -> OriginNote | None:
    """The note of a run's origin; None where it began with random weights.

    Raises:
        UserError: it is damaged. Without it a run that was killed as it began would begin again with random weights.
    """
    try:
        return _read(folder / ORIGIN, OriginNote)
    except UserError as error:
        raise UserError(f"{error}; put the run's own file back") from None


def note_data(folder: Path, data: TokenDataset) -> None:
    """Notes in the run folder where its data lie and how to know them again."""
    write_note(folder / DATA, DataNote(relative(data.folder.path, folder), data.folder.fingerprint))


def write_note(path: Path, note: msgspec.Struct) -> None:
    """Writes a note as JSON."""
    write_text(path, json.dumps(msgspec.to_builtins(note), indent=2) + "\n")


def relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, so that both may be moved together; absolute where they share but a root."""
    path, folder = path.resolve(), folder.resolve()
    try:
        apart = os.path.commonpath([path, folder]) == path.anchor or path.stat().st_dev != folder.stat().st_dev
        return str(path) if apart else Path(os.path.relpath(path, folder)).as_posix()
    except (ValueError, OSError):  # on two drives; or not there
        return str(path)


def _read(path: Path, kind: type[Note]) -> Note | None:
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        return None
