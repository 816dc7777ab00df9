"""Does Muon reach what AdamW does in the presets `nano` and `nano-long`, in 60% of their slow steps?

    python -m benchmarks.fewer_steps --out runs/fewer-steps --shared ../shared [--only nano-tinyshakespeare] [--seeds 0]
    python -m benchmarks.fewer_steps --table runs/fewer-steps

Rows come one by one, as `benchmarks.rows` says. A row is one training: a preset, a text, a side, a slow optimizer, a
seed. AdamW takes the preset as it is, Muon `SHARE` of its slow steps at the rate that served both sides of
`benchmarks.claim` best, its schedule as much shorter. Scored as there, on validation text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.claim import GRID, PARTICLES, VALIDATION, described, figures
from benchmarks.claim_tables import Cell, shown
from benchmarks.pages import table
from benchmarks.rows import Rows, Study, run
from benchmarks.texts import TEXTS, prepared
from benchmarks.trained import TWIN, configure, judge, train
from pyro_ltm.presets import preset

SHARE, MUON = 0.6, GRID["muon 0.06"]
PLAN = (("nano", "tinyshakespeare"), ("nano-long", "wikitext-2"), ("nano-long", "tinyshakespeare"))
"""Presets and texts, the most important first."""
SIDES = {"twin": TWIN, "ltm": ()}
TOKENS = 2 * VALIDATION * 512
"""Tokens of validation text that are scored."""


@dataclass(frozen=True)
class Row:
    """One training."""

    preset: str
    text: str
    side: str
    slow: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.preset}-{self.text}-{self.side}-{self.slow}-s{self.seed}"


def planned(seeds: Sequence[int]) -> Iterator[Row]:
    """The rows in order."""
    for name, text in PLAN:
        for seed in seeds:
            yield from (Row(name, text, side, slow, seed) for side in SIDES for slow in ("adamw", "muon"))


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains and scores a row."""
    known = preset(row.preset)
    parts = prepared(row.text, data, out, length=known.data.sequence_length)
    slow = [] if row.slow == "adamw" else [*MUON, f"slow.steps={round(SHARE * known.slow.steps)}"]
    config = configure(row.preset, parts.train, [f"seed={row.seed}", *SIDES[row.side], *slow])
    found = train(config, parts.train)
    bound = judge(found.run, parts.validation, TOKENS // config.data.sequence_length, particles=PARTICLES)
    return asdict(row) | described(config, found) | figures(bound, parts.validation)


def tables(found: Rows) -> dict[str, str]:
    """All tables."""
    made: dict[tuple[str, str, str], dict[str, dict[int, Any]]] = {}
    for row in found.values():
        made.setdefault((row["preset"], row["text"], row["side"]), {}).setdefault(row["slow"], {})[row["seed"]] = row
    lines = []
    for (name, text, side), rows in made.items():
        cell, steps = Cell(name, text, 0, rows), {slow: next(iter(of.values()))["steps"] for slow, of in rows.items()}
        if gap := cell.below("adamw", "nats", "muon"):
            levels = [f"{cell.level(slow)} in {steps[slow]} steps" for slow in ("adamw", "muon")]
            reached = "yes" if gap[0].nats_per_token >= 0 else "no"
            lines.append([name, TEXTS[text].label, side, len(gap[1]), *levels, shown(gap), reached])
    columns = ["preset", "text", "side", "seeds", "AdamW, the preset", "Muon", "Muon lies below it", "reached"]
    return {"fewer steps": table(columns, lines)}


def line(row: Any) -> str:
    """Printed when a row is done."""
    level = sum(row["nats"]) / sum(row["tokens"])
    which = f"{row['preset']} {row['text']} {row['side']} {row['slow']} seed {row['seed']}"
    return f"{which}: {level:.4f} in {row['steps']} steps, {row['seconds']} s"


STUDY = Study("fewer-steps", __doc__ or "", planned, measure, tables, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    run(STUDY, arguments)


if __name__ == "__main__":
    main()
