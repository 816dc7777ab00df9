"""What a run notes of its data: RUN/data.json, which says where they lie and how to know them again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pyro_ltm.data import TokenDataset
from pyro_ltm.data.folder import is_prepared
from pyro_ltm.errors import UserError
from pyro_ltm.files import write_text
from pyro_ltm.reading import read_json

DATA = "data.json"


class DataNote(msgspec.Struct):
    """What data.json says: where the data lie, relative to the run or not, and how to know them again."""

    folder: str
    fingerprint: str


def record_data(folder: Path, data: TokenDataset) -> None:
    """Notes in the run folder where its data lie and how to know them again."""
    entry = {"folder": relative(data.folder.path, folder), "fingerprint": data.folder.fingerprint}
    write_text(folder / DATA, json.dumps(entry, indent=2) + "\n")


def relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, so that both may be moved together; absolute where they share but a root."""
    path, folder = path.resolve(), folder.resolve()
    try:
        apart = os.path.commonpath([path, folder]) == path.anchor or path.stat().st_dev != folder.stat().st_dev
        return str(path) if apart else Path(os.path.relpath(path, folder)).as_posix()
    except (ValueError, OSError):  # on two drives; or not there
        return str(path)


OWN = "data"
"""Where in its folder a run keeps the tokens that it prepared itself."""


def noted_data(folder: Path) -> DataNote | None:
    """What `record_data` or `own_data` noted in a run folder; None where there is nothing, or something else."""
    try:
        return read_json(folder / DATA, DataNote)
    except (FileNotFoundError, UserError):
        return None


@contextmanager
def own_data(folder: Path) -> Iterator[Path]:
    """Where the run in `folder` prepares its own tokens: noted first, so that after a kill they are known as its own.

    Raises:
        UserError: the user has something of their own there.
    """
    place, note = folder / OWN, folder / DATA
    noted = noted_data(folder)
    if noted is None or noted.folder != OWN:
        if place.is_dir() and any(place.iterdir()):
            raise UserError(
                f"{place}: is there already and not of a run that began here, so it is left alone: name it with "
                "--data if it holds the tokens to train on, or choose another --out"
            )
        write_text(note, json.dumps({"folder": OWN, "fingerprint": ""}) + "\n")
    try:
        yield place
    except BaseException:
        if not is_prepared(place):
            note.unlink(missing_ok=True)
        raise


def open_data(folder: Path, split: str) -> TokenDataset:
    """The data recorded in a run folder. Raises UserError when they moved or changed."""
    path = folder / DATA
    try:
        note = read_json(path, DataNote)
    except FileNotFoundError:
        raise UserError(f"{folder}: does not say what data it was trained on; name them with --data") from None
    except UserError as error:
        raise UserError(f"{error}; name the data with --data") from None
    try:
        data = TokenDataset(folder / note.folder, split)
    except UserError as error:
        raise UserError(f"{error}; or name other data with --data") from None
    if data.folder.fingerprint != note.fingerprint:
        raise UserError(f"{data.folder.path}: not the data that {folder} was trained on; name other data with --data")
    return data
