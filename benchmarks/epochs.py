"""Data that run out: an LTM and its twin after 1, 3, 10 and 30 epochs of little text, each at its best validation.

    python -m benchmarks.epochs --out runs/epochs --shared ../shared [--only proposals] [--seeds 0,1,2] [--hours 2]
    python -m benchmarks.epochs --table runs/epochs

Rows come one by one, as `benchmarks.rows` says. A row is one training: a text, a number of epochs, a side, a seed. The
texts are all of tinyshakespeare's training part and the first tenth of the proposals'. Both sides learn and are scored
as in `benchmarks.claim`, the LTM with the fast loop of its rows, on the same sequences equally often; the learning rate
falls to zero over all epochs. What is scored are the weights of the best of 12 validations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import claim
from benchmarks.claim import EQUAL_TOKENS, LTM, PARTICLES, Few
from benchmarks.claim_tables import KINDS, Cell
from benchmarks.pages import table
from benchmarks.rows import Rows, Study, run
from benchmarks.texts import TEXTS, prepared
from benchmarks.trained import judge, operations, train
from pyro_ltm.config import Config, apply_settings

EPOCHS = (1, 3, 10, 30)
SHARES: Mapping[str, float] = {"tinyshakespeare": 1.0, "proposals": 0.1}
"""Texts, and how much of each is learned from, from its beginning on."""
WINDOW, LOOKS = 8, 12
"""Window of attention, and validations of a training."""


@dataclass(frozen=True)
class Row:
    """One training."""

    text: str
    epochs: int
    side: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.text}-e{self.epochs}-{self.side}-s{self.seed}"


def planned(seeds: Sequence[int]) -> Iterator[Row]:
    """The rows in order: few epochs, which are cheap, before many."""
    for seed in seeds:
        for epochs in EPOCHS:
            for text in SHARES:
                yield from (Row(text, epochs, side, seed) for side in (LTM, EQUAL_TOKENS))


def config_of(row: Row, few: Few, config: Config) -> Config:
    """`config`, for so many epochs, with `LOOKS` validations."""
    steps = -(-row.epochs * len(few) // config.slow.sequences)
    looks = [f"slow.eval_every={max(1, steps // LOOKS)}", f"slow.eval_sequences={claim.VALIDATION}"]
    return apply_settings(config, [f"slow.steps={steps}", *looks])


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains and scores a row."""
    parts, limit = prepared(row.text, data, out), TEXTS[row.text].test_sequences
    few = Few(parts.train, max(1, int(SHARES[row.text] * len(parts.train))))
    config = config_of(row, few, claim.config_of(claim.Row(row.text, WINDOW, row.side, row.seed), parts))
    found = train(config, few, parts.validation, weights="best")
    result = asdict(row) | {"sequences": len(few), "operations": operations(config, parts.train)}
    result |= claim.described(config, found)
    result |= claim.figures(judge(found.run, parts.test, limit, particles=PARTICLES), parts.test)
    if config.model.thoughts:
        result["prefix"] = claim.predicted(found.run, parts.test, limit)
    return result


def tables(found: Rows) -> dict[str, str]:
    """All tables."""
    return {"epochs": _gaps(found), "epochs rows": _rows(found)}


def _cells(found: Rows) -> dict[tuple[str, int], Cell]:
    """All rows of one text and number of epochs, by side and seed."""
    made: dict[tuple[str, int], dict[str, dict[int, Any]]] = {}
    for row in found.values():
        made.setdefault((row["text"], row["epochs"]), {}).setdefault(row["side"], {})[row["seed"]] = row
    keys = sorted(made, key=lambda key: (list(SHARES).index(key[0]), key[1]))
    return {key: Cell("nano", key[0], WINDOW, made[key]) for key in keys}


def _gaps(found: Rows) -> str:
    columns = ["text", "epochs", "seeds", "twin", "LTM, ELBO", *(f"below the twin: {kind}" for kind in KINDS.values())]
    lines = []
    for (text, epochs), cell in _cells(found).items():
        gaps = [cell.below(EQUAL_TOKENS, kind) for kind in KINDS]
        shown = [f"{gap[0].nats_per_token:+.4f} ± {gap[0].stderr:.4f}" if gap else "" for gap in gaps]
        levels = [cell.level(EQUAL_TOKENS), cell.level(LTM)]
        seeds = len(cell.seeds(EQUAL_TOKENS, LTM)) if all(levels) else 0
        lines.append([TEXTS[text].label, epochs, seeds, *levels, *shown])
    return table(columns, lines)


def _rows(found: Rows) -> str:
    columns = [
        "text",
        "epochs",
        "side",
        "seed",
        "sequences",
        "steps",
        "best step",
        "TFLOP",
        "s",
        "nats a token",
        "rate",
    ]
    lines = []
    for (text, epochs), cell in _cells(found).items():
        for side, by_seed in cell.rows.items():
            for seed, row in sorted(by_seed.items()):
                cost = [f"{row['operations'] / 1e12:.2f}", f"{row['seconds']:.0f}"]
                level = f"{sum(row['nats']) / sum(row['tokens']):.4f}"
                steps = [row["sequences"], row["steps"], row["best_step"]]
                lines.append([text, epochs, side, seed, *steps, *cost, level, row["rate"]])
    return table(columns, lines)


def line(row: Any) -> str:
    """Printed when a row is done."""
    level = sum(row["nats"]) / sum(row["tokens"])
    which = f"{row['text']} {row['epochs']} epochs {row['side']} seed {row['seed']}"
    return f"{which}: {level:.4f}, best at step {row['best_step']} of {row['steps']}, {row['seconds']} s"


STUDY = Study("epochs", __doc__ or "", planned, measure, tables, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    run(STUDY, arguments)


if __name__ == "__main__":
    main()
