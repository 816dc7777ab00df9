"""The note of a run that began with another run's weights: RUN/init.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pyro_ltm.errors import UserError
from pyro_ltm.reading import Count, read_json

INIT = "init.json"


class InitNote(msgspec.Struct):
    """What init.json says: the run, at which of its steps, whose weights a run began with, and of which parts."""

    run: str
    step: Count
    fingerprint: str
    parts: list[str]


def noted_origin(folder: Path) -> InitNote | None:
    """With whose weights the run in `folder` began; None where with random ones, or where the note is none."""
    try:
        return read_json(folder / INIT, InitNote)
    except (FileNotFoundError, UserError):
        return None
