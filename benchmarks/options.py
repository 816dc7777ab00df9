"""What each option of the slow loop and of the decoder is worth, on both sides: the LTM and its twin.

    python -m benchmarks.options --out runs/options --shared ../shared [--only "qk norm"] [--seeds 0,1] [--hours 2]
    python -m benchmarks.options --table runs/options

Rows come one by one, as `benchmarks.rows` says. A row is one training: an option, a side, a seed. All is as in
`benchmarks.claim` (`nano`, window 8, 512 tokens of tinyshakespeare, Muon at 0.06, its fast loop) but for the option and
for `STEPS` slow steps; the test part is scored as there. An option is compared with no option on the same side. Rates
of Muon were not tuned again for any option; AdamW's is the best of the claim's grid, SOAP's the best of three.

Options against overfitting are measured where data run out: on the first 64 sequences, for 19 epochs, the weights of
the best of `LOOKS` validations. What makes thoughts come with every seed is asked on worlds of 15 sentences, with the
slow steps of the claim, whose rows of the LTM are those of no option; a row keeps the rate along its training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import claim
from benchmarks.claim import EQUAL_TOKENS, LTM, PARTICLES
from benchmarks.claim_tables import Cell, shown
from benchmarks.pages import table
from benchmarks.rows import Rows, Study, run
from benchmarks.texts import TEXTS, Parts, prepared
from benchmarks.trained import judge, operations, train
from pyro_ltm.config import Config, apply_settings
from pyro_ltm.training.trainer import Progress

TEXT, WORLDS, WINDOW, STEPS, LOOKS = "tinyshakespeare", "worlds-15", 8, 300, 12
BASE, FEW, ZERO = "none", "none, few data", "zero cross-attention"
"""What options are compared with; and one that a twin has not."""
EVERY, SHOWN = 25, 100
"""Slow steps between rates that are kept, and between those in the table."""
ADAMW = ("slow_optimizer.name=adamw", "slow.lr=0.01")
DECAY = ("slow.weight_decay=1.6", "model.dropout=0.1")
SOAP = {f"soap {lr}": ("slow_optimizer.name=soap", f"slow.lr={lr}") for lr in (0.003, 0.01, 0.03)}
OPTIONS: Mapping[str, tuple[str, ...]] = {
    BASE: (),
    "adamw 0.01": ADAMW,
    "cosine to a tenth": ("slow.lr_final=0.1",),
    "linear to zero": ("slow.schedule=linear",),
    "wsd": ("slow.schedule=wsd",),
    "constant rate": ("slow.schedule=wsd", "slow.decay=0.0"),
    "constant rate, averaged": ("slow.schedule=wsd", "slow.decay=0.0", "slow.average=0.99"),
    "averaged": ("slow.average=0.99",),
    "qk norm": ("model.qk_norm=true",),
    "logit softcap": ("model.logit_softcap=15",),
    "value embeddings": ("model.value_embeddings=true",),
    "relu2": ("model.feed_forward=relu2",),
    "untied": ("model.tied=false",),
    "zero init": ("model.zero_init=true",),
    ZERO: ("model.zero_cross_attention=true",),
    **SOAP,
}
FEW_OPTIONS: Mapping[str, tuple[str, ...]] = {
    FEW: (),
    "decay and dropout, few data": DECAY,
    "adamw 0.01, few data": ADAMW,
    "adamw 0.01, decay and dropout, few data": (*ADAMW, *DECAY),
}
ZERO_CROSS, WARMUP = "model.zero_cross_attention=true", "objective.warmup=0.7"
WORLDS_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "zero cross-attention, worlds": (ZERO_CROSS,),
    "warm-up of 0.7, worlds": (WARMUP,),
    "warm-up of 0.7, zero cross-attention, worlds": (WARMUP, ZERO_CROSS),
}
BEST_SOAP = "soap 0.03"
"""The rate that was best for the twin on validation text."""


@dataclass(frozen=True)
class Row:
    """One training."""

    option: str
    side: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{re.sub('[ ,]+', '-', self.option)}-{self.side}-s{self.seed}"


def planned(seeds: Sequence[int]) -> Iterator[Row]:
    """The rows in order: the rates of SOAP, then every option with the first seed."""
    yield from (Row(option, EQUAL_TOKENS, seeds[0]) for option in SOAP)
    for seed in seeds:
        for option in (*OPTIONS, *FEW_OPTIONS):
            if option not in SOAP or option == BEST_SOAP:
                yield from (Row(option, side, seed) for side in sides(option))
        yield from (Row(option, LTM, seed) for option in WORLDS_OPTIONS)


def sides(option: str) -> tuple[str, ...]:
    """Those that have it: a twin has no cross-attention."""
    return (LTM,) if option == ZERO else (EQUAL_TOKENS, LTM)


def text_of(row: Row) -> str:
    """The text that it learns from."""
    return WORLDS if row.option in WORLDS_OPTIONS else TEXT


def config_of(row: Row, parts: Parts) -> Config:
    """How a row is trained."""
    config = claim.config_of(claim.Row(text_of(row), WINDOW, row.side, row.seed), parts)
    steps = [] if row.option in WORLDS_OPTIONS else [f"slow.steps={STEPS}"]
    looks = [f"slow.eval_every={max(1, STEPS // LOOKS)}", f"slow.eval_sequences={claim.VALIDATION}"]
    few = looks if row.option in FEW_OPTIONS else []
    return apply_settings(config, [*steps, *few, *{**OPTIONS, **FEW_OPTIONS, **WORLDS_OPTIONS}[row.option]])


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains and scores a row."""
    parts, limit = prepared(text_of(row), data, out), TEXTS[text_of(row)].test_sequences
    config = config_of(row, parts)
    rates: dict[int, float] = {}

    def watch(progress: Progress) -> None:
        if progress.validation is None and progress.step % EVERY == 0:
            rates[progress.step] = round(progress.rate, 2)

    if row.option in FEW_OPTIONS:
        found = train(config, claim.Few(parts.train, claim.FEW), parts.validation, weights="best")
    else:
        found = train(config, parts.train, weights="average" if config.slow.average else "last", watch=watch)
    result = asdict(row) | {"operations": operations(config, parts.train)} | claim.described(config, found)
    if row.option in WORLDS_OPTIONS:
        result["rates"] = rates
    if row.side == EQUAL_TOKENS:
        result["validation"] = judge(found.run, parts.validation, claim.VALIDATION, particles=1).nats_per_token
    return result | claim.figures(judge(found.run, parts.test, limit, particles=PARTICLES), parts.test)


def tables(found: Rows) -> dict[str, str]:
    """All tables."""
    made = {"options": _gaps(found), "options rows": _rows(found), "options soap": _soap(found)}
    worlds = [row for row in found.values() if row["option"] in WORLDS_OPTIONS]
    return made | ({"options worlds": _worlds(worlds)} if worlds else {})


def _cells(found: Rows) -> dict[str, Cell]:
    """All rows of a side, by option and seed."""
    made: dict[str, dict[str, dict[int, Any]]] = {EQUAL_TOKENS: {}, LTM: {}}
    for option in (*OPTIONS, *FEW_OPTIONS):
        for row in found.values():
            if row["option"] == option:
                made[row["side"]].setdefault(option, {})[row["seed"]] = row
    return {side: Cell("nano", TEXT, WINDOW, by_option) for side, by_option in made.items()}


def _gaps(found: Rows) -> str:
    """How far each option lies below none, on both sides."""
    cells, lines = _cells(found), []
    for option, settings in (*OPTIONS.items(), *FEW_OPTIONS.items()):
        base = FEW if option in FEW_OPTIONS else BASE
        line: list[Any] = []
        for cell in cells.values():
            below = "" if option == base or not cell.rows.get(base) else shown(cell.below(base, "nats", option))
            line += [len(cell.seeds(option)), cell.level(option), below]
        rates = [row["rate"] for row in cells[LTM].rows.get(option, {}).values()]
        if any(line) and (option not in SOAP or option == BEST_SOAP):
            lines.append([option, " ".join(settings), *line, f"{sum(rates) / len(rates):.1f}" if rates else ""])
    columns = ["option", "`--set`"]
    for side in ("twin", "LTM"):
        columns += [f"{side}: seeds", f"{side}, nats a token", f"{side}: below none"]
    return table([*columns, "rate"], lines)


def _soap(found: Rows) -> str:
    lines = [[option, f"{row['validation']:.4f}"] for option, row in _of_soap(found).items()]
    return table(["option", "twin, validation"], lines)


def _of_soap(found: Rows) -> dict[str, Any]:
    names = {option: Row(option, EQUAL_TOKENS, 0).name for option in SOAP}
    return {option: found[name] for option, name in names.items() if name in found}


def _worlds(rows: Sequence[Any]) -> str:
    """Each training on worlds, and its rate along the slow steps."""
    at = [step for step in rows[0]["rates"] if int(step) % SHOWN == 0]
    columns = ["option", "`--set`", "seed", *(f"rate at step {step}" for step in at), "s", "rate", "nats a token"]
    lines = []
    for option, settings in WORLDS_OPTIONS.items():
        for row in sorted(rows, key=lambda row: row["seed"]):
            if row["option"] == option:
                figures = [f"{row['seconds']:.0f}", row["rate"], f"{sum(row['nats']) / sum(row['tokens']):.4f}"]
                lines.append([option, " ".join(settings), row["seed"], *map(row["rates"].get, at), *figures])
    return table(columns, lines)


def _rows(found: Rows) -> str:
    columns = ["option", "side", "seed", "best step", "parameters", "TFLOP", "s", "nats a token", "rate"]
    lines = []
    for side, cell in _cells(found).items():
        for option, by_seed in cell.rows.items():
            for seed, row in sorted(by_seed.items()):
                cost = [f"{row['parameters']:,}", f"{row['operations'] / 1e12:.2f}", f"{row['seconds']:.0f}"]
                figures = [f"{sum(row['nats']) / sum(row['tokens']):.4f}", row["rate"]]
                lines.append([option, side, seed, row["best_step"], *cost, *figures])
    return table(columns, lines)


def line(row: Any) -> str:
    """Printed when a row is done."""
    level = sum(row["nats"]) / sum(row["tokens"])
    return f"{row['option']}, {row['side']}, seed {row['seed']}: {level:.4f}, rate {row['rate']}, {row['seconds']} s"


STUDY = Study("options", __doc__ or "", planned, measure, tables, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    run(STUDY, arguments)


if __name__ == "__main__":
    main()
