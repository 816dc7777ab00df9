"""A fast loop out of the options of a test."""

from __future__ import annotations

import dataclasses
from typing import Any

from pyro_ltm.inference import FastLoop

NAMES = {entry.name for entry in dataclasses.fields(FastLoop)}


def take_loop(options: dict[str, Any]) -> FastLoop:
    """The loop that some of `options` are of; the others stay there."""
    return FastLoop(**{name: options.pop(name) for name in [*options] if name in NAMES})
