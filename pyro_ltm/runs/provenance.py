"""Of which run a file of weights is: weights of another one, of the same shape, would be used without a word.

It is told by what defines a run, its settings, its data and the weights with which it began, so that equal runs write
equal files, and a copy of a folder is as good as the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pyro_ltm.config import Config, Scalar
from pyro_ltm.config.settings import PLAN, differences, flat, renamed, without_free
from pyro_ltm.errors import UserError
from pyro_ltm.reading import Count
from pyro_ltm.runs.folder import CONFIG
from pyro_ltm.runs.notes import DATA, ORIGIN, data_note, origin_note

OTHERWISE = (
    *("slow.decay", "slow.average", "slow.keep_best", "slow.eval_every", "slow.eval_sequences"),
    *("fast.record", "compile"),
)
"""Keys that, beside those of the plan, may differ between runs with the same weights."""


class WeightsMeta(msgspec.Struct, kw_only=True):
    """The header of a file of weights; but for `step`, None in files of earlier releases and where it is not known.

    Attributes:
        step: slow steps that they have seen.
        settings: the run's configuration by dotted keys, without what may change while it goes on.
        data: fingerprint of what it learns from. origin: of the run with whose weights it began, empty without one.
    """

    step: Count = 0
    settings: dict[str, Scalar] | None = None
    data: str | None = None
    origin: str | None = None


def weights_meta(folder: Path, config: Config, step: int) -> dict[str, Any]:
    """The header of weights of the run in `folder` at slow step `step`."""
    meta = WeightsMeta(step=step, settings=_lasting(flat(config)), data=_data(folder), origin=known_origin(folder))
    found: dict[str, Any] = msgspec.to_builtins(meta)
    return found


def check_weights_meta(path: Path, meta: WeightsMeta, config: Config) -> None:
    """Raises UserError where the weights in `path` are of another run than that of its folder, whose `config` this is.

    Also where the note of the folder's origin is damaged. What either of them does not say is not compared.
    """
    folder = path.parent
    ours = _lasting(flat(config))
    theirs = renamed(meta.settings or ours)
    for key in differences(ours, theirs):
        raise UserError(
            f"{path}: weights of another run, by {key} = {theirs.get(key)!r}, where {folder / CONFIG} says "
            f"{ours.get(key)!r}: put its own file back, or its {CONFIG}"
        )
    for name, what, own, other in (
        (DATA, "which learned from other data", _data(folder), meta.data),
        (ORIGIN, "which began with other weights", origin_of(folder), meta.origin),
    ):
        if None not in (own, other) and own != other:
            raise UserError(f"{path}: weights of another run, {what} than {folder / name} says: put its own file back")


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the plan: a run that decays where it was extended or branched is one that was planned so."""
    return {key: value for key, value in without_free(settings).items() if key not in (*PLAN, *OTHERWISE)}


def origin_of(folder: Path) -> str | None:
    """Fingerprint of the run with whose weights the one in `folder` began; empty where it began with random ones.

    None where it is not known: the folder has no note of its data either, as where a few files were copied. Raises
    UserError where its note is damaged.
    """
    note = origin_note(folder)
    return note.fingerprint if note else None if _data(folder) is None else ""


def known_origin(folder: Path) -> str | None:
    """As `origin_of`, for what is saved: a note that was damaged while a run is trained does not end it. None then."""
    try:
        return origin_of(folder)
    except UserError:
        return None


def _data(folder: Path) -> str | None:
    note = data_note(folder)
    return (note.fingerprint or None) if note else None
