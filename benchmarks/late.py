"""Thoughts that come late: a decoder that learns as its own twin for most of its slow steps, and with thoughts at last.

    python -m benchmarks.late --out runs/late --shared ../shared [--only wikitext-2] [--seeds 0,1,2] [--hours 2]
    python -m benchmarks.late --table runs/late

Rows come one by one, as `benchmarks.rows` says. A row is one training: a text, a side, a seed. The LTM learns `SHARE`
of its slow steps without thoughts, as a twin does (from other first weights), and cross-attention begins at zero; so
its training costs less than half as much again as its twin's. Its rivals are that twin after as many steps, and a twin
that gets all operations of the LTM's training as more slow steps. All learn by Muon, the LTM with the fast loop of
`benchmarks.claim`, and are scored as there, each with the weights of the best of its validations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import claim
from benchmarks.claim import EQUAL_TOKENS, LONGER, LTM, PARTICLES
from benchmarks.claim_tables import KINDS, Cell, shown
from benchmarks.pages import table
from benchmarks.rows import Rows, Study, run
from benchmarks.texts import TEXTS, Parts, prepared
from benchmarks.trained import judge, operations, train
from pyro_ltm.config import Config, apply_settings

STEPS, SHARE, WINDOW, LOOKS = 1500, 0.8, 8, 6
"""Slow steps at equal tokens, share of them without thoughts, window of attention, validations of a training."""
LATE = [f"slow.decoder_warmup={SHARE}", "model.zero_cross_attention=true"]
TEXT_NAMES = ("tinyshakespeare-2048", "tinyshakespeare", "wikitext-2")


@dataclass(frozen=True)
class Row:
    """One training."""

    text: str
    side: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.text}-{self.side.replace(', ', '-')}-s{self.seed}"


def planned(seeds: Sequence[int]) -> Iterator[Row]:
    """The rows in order: of each text all seeds."""
    for text in TEXT_NAMES:
        for seed in seeds:
            yield from (Row(text, side, seed) for side in (LTM, EQUAL_TOKENS, LONGER))


def config_of(row: Row, parts: Parts) -> Config:
    """How a row is trained."""
    if row.side == LONGER:
        mine, theirs = (config_of(Row(row.text, side, row.seed), parts) for side in (EQUAL_TOKENS, LTM))
        share = operations(theirs, parts.train) / operations(mine, parts.train)
        return _planned(mine, int(STEPS * share))
    config = claim.config_of(claim.Row(row.text, WINDOW, row.side, row.seed), parts)
    return _planned(apply_settings(config, LATE) if row.side == LTM else config, STEPS)


def _planned(config: Config, steps: int) -> Config:
    sequences = claim.VALIDATION * 512 // config.data.sequence_length
    looks = [f"slow.eval_every={steps // LOOKS}", f"slow.eval_sequences={sequences}"]
    return apply_settings(config, [f"slow.steps={steps}", *looks])


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains and scores a row."""
    parts, limit = prepared(row.text, data, out), TEXTS[row.text].test_sequences
    config = config_of(row, parts)
    found = train(config, parts.train, parts.validation, weights="best")
    bound = judge(found.run, parts.test, limit, particles=PARTICLES)
    result = asdict(row) | {"operations": operations(config, parts.train)} | claim.described(config, found)
    result |= claim.figures(bound, parts.test)
    if config.model.thoughts:
        result["prefix"] = claim.predicted(found.run, parts.test, limit)
        result["without_thoughts"] = round(bound.distortion_zeroed, 5)
    return result


def tables(found: Rows) -> dict[str, str]:
    """All tables."""
    return {"late": _gaps(found), "late rows": _rows(found)}


def _cells(found: Rows) -> dict[str, Cell]:
    """All rows of a text, by side and seed."""
    made: dict[str, dict[str, dict[int, Any]]] = {}
    for row in found.values():
        made.setdefault(row["text"], {}).setdefault(row["side"], {})[row["seed"]] = row
    return {text: Cell("nano", text, WINDOW, made[text]) for text in TEXT_NAMES if text in made}


def _gaps(found: Rows) -> str:
    kinds = [f"{when}: {kind}" for when in ("equal tokens", "equal compute") for kind in KINDS.values()]
    lines = []
    for text, cell in _cells(found).items():
        gaps = [shown(cell.below(side, kind)) for side in (EQUAL_TOKENS, LONGER) for kind in KINDS]
        lines.append([TEXTS[text].label, len(cell.seeds(EQUAL_TOKENS, LTM)), *gaps])
    return table(["text", "seeds", *kinds], lines)


def _rows(found: Rows) -> str:
    columns = ["text", "side", "seed", "steps", "best step", "TFLOP", "s", "nats a token", "without thoughts", "rate"]
    lines = []
    for text, cell in _cells(found).items():
        for side, by_seed in cell.rows.items():
            for seed, row in sorted(by_seed.items()):
                cost = [f"{row['operations'] / 1e12:.2f}", f"{row['seconds']:.0f}"]
                without = f"{row['without_thoughts']:.4f}" if "without_thoughts" in row else ""
                figures = [f"{sum(row['nats']) / sum(row['tokens']):.4f}", without, row["rate"]]
                lines.append([text, side, seed, row["steps"], row["best_step"], *cost, *figures])
    return table(columns, lines)


def line(row: Any) -> str:
    """Printed when a row is done."""
    level = sum(row["nats"]) / sum(row["tokens"])
    which = f"{row['text']} {row['side']} seed {row['seed']}"
    return f"{which}: {level:.4f}, best at step {row['best_step']} of {row['steps']}, {row['seconds']} s"


STUDY = Study("late", __doc__ or "", planned, measure, tables, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    run(STUDY, arguments)


if __name__ == "__main__":
    main()
