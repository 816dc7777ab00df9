"""The data of a run: those it was trained on, those it prepares itself, and text to score."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_ltm.data import Reading, TokenDataset, TokenFolder, World, prepare
from pyro_ltm.data.corpora import for_scoring, is_drawn
from pyro_ltm.data.folder import is_token_folder
from pyro_ltm.data.manifest import is_prepared
from pyro_ltm.errors import UserError
from pyro_ltm.reading import read_json
from pyro_ltm.runs.notes import DATA, DataNote, data_note, write_note

if TYPE_CHECKING:
    from pyro_ltm.runs.run import Run

OWN = "data"
"""Where in its folder a run keeps the tokens that it prepared itself."""


def open_data(folder: Path, split: str) -> TokenDataset:
    """The data recorded in a run folder, without what was appended to them since.

    Raises:
        UserError: they moved or changed.
    """
    path = folder / DATA
    try:
        note = read_json(path, DataNote)
    except FileNotFoundError:
        raise UserError(f"{folder}: does not say what data it was trained on; name them with --data") from None
    except UserError as error:
        raise UserError(f"{error}; name the data with --data") from None
    try:
        tokens = TokenFolder.open(folder / note.folder)
        if recorded := tokens.as_of(note.fingerprint):
            return TokenDataset(recorded, split)
    except UserError as error:
        raise UserError(f"{error}; or name other data with --data") from None
    raise UserError(f"{tokens.path}: not the data that {folder} was trained on; name other data with --data")


@contextmanager
def own_data(folder: Path) -> Iterator[Path]:
    """Where the run in `folder` prepares its own tokens: noted first, so that after a kill they are known as its own.

    Raises:
        UserError: the user has something of their own there.
    """
    place, note = folder / OWN, data_note(folder)
    if note is None or note.folder != OWN:
        if place.is_dir() and any(place.iterdir()):
            raise UserError(
                f"{place}: is there already and not of a run that began here, so it is left alone: name it with "
                "--data if it holds the tokens to train on, or choose another --out"
            )
        write_note(folder / DATA, DataNote(OWN, ""))
    try:
        yield place
    except BaseException:
        if not is_prepared(place):
            (folder / DATA).unlink(missing_ok=True)
        raise


@contextmanager
def data_to_score(
    run: Run,
    source: str | None = None,
    *,
    reading: Reading | None = None,
    on_prepare: Callable[[str, int, int], None] | None = None,
) -> Iterator[TokenDataset]:
    """The data to score a run on: its own validation split, a prepared folder's, or all of a source of text.

    A source is prepared as the run's data were, in a temporary folder: with its tokenizer, its sequence length, its
    packing. Of worlds and in-context tasks new documents are drawn, each a sequence.

    Args:
        source: a folder that `prepare` wrote, or text as `prepare` takes it; None: the run's own validation split.
        reading: how a source is read. on_prepare: as `progress` in `prepare`.

    Raises:
        UserError: the data are not there, or not what was said.
    """
    if source is None:
        yield run.dataset("validation")
    elif is_token_folder(source):
        if reading not in (None, Reading()):
            raise UserError(f"{source}: is prepared already; leave out the options of how text is read")
        data = TokenDataset(source)
        yield TokenDataset(data.folder, "validation") if "validation" in data.folder.splits else data
    else:
        length, packing, world = cut_of(run)
        if is_drawn(source):
            source, packing = for_scoring(source, world), "document"
        with tempfile.TemporaryDirectory(prefix="pyro-ltm-") as temporary:
            folder = prepare(
                [source],
                Path(temporary, "data"),
                tokenizer=run.tokenizer,
                sequence_length=length,
                packing=packing,
                validation_fraction=0.0,
                reading=reading,
                progress=on_prepare,
            )
            yield TokenDataset(folder)


def cut_of(run: Run) -> tuple[int, str, World | None]:
    """Sequence length and packing of the run's data: as prepared, else as its configuration says; and their world."""
    try:
        folder = run.dataset("train").folder
    except UserError:
        return run.sequence_length, run.config.data.packing, None
    return folder.sequence_length, str(folder.meta["packing"]), World.of(folder)
