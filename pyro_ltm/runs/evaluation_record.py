"""What an evaluation is kept as (`evaluate --json`, RUN/evaluation.json), as far as it is read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from pyro_ltm.errors import UserError
from pyro_ltm.reading import Count, fitted
from pyro_ltm.scores.dependence import Blocks

Error = Annotated[float, msgspec.Meta(ge=0)] | None
"""A standard error; None where it is not known."""


class Level(msgspec.Struct):
    """A figure in nats a token."""

    nats_per_token: float
    nats_per_token_stderr: Error = None
    blocks: Blocks | None = None
    is_bound: bool | None = None


class Scored(Level, kw_only=True):
    """A figure of a run, and how it was taken."""

    sequences: Count
    tokens: Count
    fast_steps: Count
    seed: int
    particles: Count | None = None


class Point(msgspec.Struct):
    """The importance-weighted bound with so many draws."""

    particles: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    nats_per_token: float
    stderr: Error


class BoundRecord(Scored, kw_only=True):
    """The protocol `bound`."""

    particles: Count
    effective_sample_size: float | None = None
    iwae_curve: Annotated[list[Point], msgspec.Meta(min_length=1)]
    active_fraction_by_layer: list[float | None]
    ais: dict[str, Level] = {}


class FloorRecord(Level, kw_only=True):
    """A world's entropy, and that of the best predictor with a window."""

    window: Count
    windowed: Level
    by_prefix: list[Any] = []


class Gap(msgspec.Struct):
    """How far a figure lies from another."""

    nats_per_token: float
    stderr: Error


class Part(msgspec.Struct):
    """What share of the way from twin to floor a figure has closed."""

    share: float
    stderr: Error


class EvaluationRecord(msgspec.Struct):
    """An evaluation of a run at a step, by whichever protocols."""

    run: str
    step: Count
    data: str
    fingerprint: str | None = None
    twin_fingerprint: str | None = None
    settings: list[str] = []
    bound: BoundRecord | None = None
    prefix: Scored | None = None
    reference: Scored | None = None
    twin: Level | None = None
    floor: FloorRecord | None = None
    above_floor: dict[str, Gap] = {}
    below_twin: dict[str, Gap] = {}
    closed: dict[str, Part] = {}


def check_record(found: Mapping[str, Any]) -> None:
    """Raises UserError, naming the place, where `found` is not what `evaluate --json` prints."""
    record = fitted(found, EvaluationRecord)
    for key in ("bound", "prefix", "reference", "twin", "floor"):
        if key in found and found[key] is None:
            raise UserError(f"{key}: expected object, got null")
    if record.bound is None and record.prefix is None and record.reference is None:
        raise UserError("bound is missing, and so are prefix and reference")
    if record.bound and record.bound.particles > 1 and record.bound.effective_sample_size is None:
        raise UserError("bound.effective_sample_size is missing")
