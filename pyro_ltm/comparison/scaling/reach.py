"""When the validation of each cell first came down to a level: what sample efficiency is, as figures."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_ltm.comparison.scaling.analysis import gaps
from pyro_ltm.comparison.scaling.grid import LTM, TWIN
from pyro_ltm.comparison.scaling.result import Row, Study


@dataclass(frozen=True)
class Reach:
    """The first validation at which a latent-thought cell was at a level or below it.

    Attributes:
        goal: the level, nats a token. twin: the twin of equal tokens whose last validation that is; None: the lowest
            level that all latent-thought cells come to.
        tokens: read by then. operations: of training up to then, in proportion to slow steps. Those of
            `slow.decoder_warmup` come first and take fewer, so this is at most too many. Both None: never reached.
        why: it was never reached; else empty.
    """

    row: Row
    goal: float | None
    twin: Row | None = None
    tokens: int | None = None
    operations: float | None = None
    why: str = ""


def reached(study: Study) -> list[Reach]:
    """When each latent-thought cell came to the last level of its twin of equal tokens, or to one common to all."""
    twins = {gap.row.name: gap.rival for gap in gaps(study) if gap.rival.family == TWIN and gap.equal == "tokens"}
    rows = study.of(LTM)
    common = max((min(levels) for row in rows if (levels := _levels(row))), default=None)
    return [_reach(row, twins.get(row.name), common) for row in rows]


def _reach(row: Row, twin: Row | None, common: float | None) -> Reach:
    levels = _levels(row)
    if not levels:
        return Reach(row, None, twin, why="no validation while it was trained")
    if twin is not None:
        if not (theirs := _levels(twin)):
            return Reach(row, None, twin, why="its twin had no validation while it was trained")
        common = theirs[-1]
    assert common is not None
    for look in row.curve:
        if look.step and look.nats_per_token is not None and look.nats_per_token <= common:
            operations = row.training_operations * look.step / row.steps
            return Reach(row, common, twin, look.tokens, operations)
    return Reach(row, common, twin, why=f"not in {row.tokens:,} tokens: {min(levels):.4f} was the lowest")


def _levels(row: Row) -> list[float]:
    """Validations after the first step, nats a token."""
    return [look.nats_per_token for look in row.curve if look.step and look.nats_per_token is not None]


__all__ = ["Reach", "reached"]
