"""`pyro-ltm scale`: what size, thoughts, fast steps and data are worth, measured cell by cell."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    FOLDER,
    Common,
    FiniteRange,
    Numbers,
    batch_size,
    common,
    config_option,
    examples,
    gathered,
    number,
    preset_option,
    reading_options,
    settings_option,
    typed,
)

if TYPE_CHECKING:
    from pyro_ltm.comparison.scaling.grid import Grid
    from pyro_ltm.comparison.scaling.price import Price
    from pyro_ltm.comparison.scaling.result import Study
    from pyro_ltm.comparison.scaling.run import Scoring
    from pyro_ltm.config import Config

MOST_ROWS = 60
"""Cells on the terminal; --json has all of them."""
MOST_FAILED = 5
"""Names of cells without figures in the warning at the end."""
AS_THE_TOKENS = ("data", "data.sequence_length", "data.packing", "model.vocab_size")
"""Settings of a study that its tokens decide."""
HOLDS_ONE = "already holds a study; go on with it, extend it or join it with --resume"


class Shard(click.ParamType):
    """`I/N`, from 1/N to N/N."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The two numbers."""
        if isinstance(value, tuple):
            return value
        index, _, count = str(value).partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            self.fail(f"'{value}' is no part such as 2/8, from 1/8 to 8/8", param, ctx)
        return int(index), int(count)


@dataclass(frozen=True)
class Plan:
    """Cells and how long they are trained, as far as options say it."""

    axes: tuple[str, ...]
    rivals: str
    seeds: list[int] | None
    equal: str
    budget_tokens: float | None
    budget_flops: float | None

    def grid(self, config: Config, *, priced: bool = True) -> Grid:
        """The grid over `config`. `priced`: with all for which operations have to be counted."""
        from pyro_ltm.comparison.scaling.grid import Axis, Budget, Grid

        budget = Budget(self.budget_tokens, self.budget_flops)
        equal = tuple(self.equal.split("+"))
        return Grid(
            config,
            tuple(map(Axis.parse, self.axes)),
            () if self.rivals == "none" else tuple(name.strip() for name in self.rivals.split(",")),
            tuple(self.seeds or [config.seed]),
            budget if priced or not self.budget_flops else Budget(),
            equal if priced else ("tokens",),
        )


@dataclass(frozen=True)
class DryRun:
    """Of --dry-run: whether, and the machine that is asked about."""

    dry_run: bool
    device_flops: float | None
    device_price: float | None

    def check(self) -> None:
        """Raises UsageError for an option without the one that it goes with."""
        if self.device_flops and not self.dry_run:
            raise click.UsageError("--device-flops goes with --dry-run")
        if self.device_price is not None and not self.device_flops:
            raise click.UsageError("--device-price goes with --device-flops: it is of that machine")


def _scoring(sequences: int, particles: int, batch_size: int, predictive: bool, reference_protocol: bool) -> Scoring:
    from pyro_ltm.comparison.scaling.run import Scoring

    return Scoring(sequences, particles, batch_size, predictive, reference_protocol)


positive = FiniteRange(0, 1e30, min_open=True)


@click.command(
    short_help="Measure what size, thoughts and fast steps are worth.",
    epilog=examples(
        "pyro-ltm scale --data python-docs --out studies/first --axis model.dim=32,64 --axis fast.steps=2,8",
        "pyro-ltm scale --data data/mine --out studies/n --preset nano-long --axis model.thoughts=0,2,8 --seeds 0,1,2",
        "pyro-ltm scale --data data/mine --out studies/size --axis model.dim+model.heads=64+2,128+4 "
        "--budget-tokens 2e6 --resume --shard 1/4",
        "pyro-ltm scale --data data/mine --out studies/size --preset medium --axis fast.steps=4,16,64 --dry-run "
        "--device-flops 4e14 --device-price 2.5",
    ),
)
@click.option("--data", metavar="SOURCE_OR_DIR", multiple=True, required=True, help="A prepared folder, or text.")
@reading_options
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="Folder of the study.")
@gathered(
    "plan",
    Plan,
    click.option(
        "--axis",
        "axes",
        metavar="KEY=V1,V2,...",
        multiple=True,
        help="A setting and its values; KEY+KEY=V+V,... for settings that change together. Repeatable.",
    ),
    click.option(
        "--rivals",
        metavar="A,B",
        default="twin",
        help="Beside each cell: twin, masked-diffusion, or both with a comma; none.",
    ),
    click.option("--seeds", metavar="N,...", type=Numbers(), help="Seeds of each cell; default: the setting's."),
    click.option(
        "--equal",
        type=click.Choice(["tokens", "flops", "tokens+flops"]),
        default="tokens+flops",
        help="Rivals are trained on as many tokens as a cell, with as many operations, or a rival each.",
    ),
    click.option(
        "--budget-tokens",
        metavar="X",
        type=positive,
        help="Train each cell on at most X tokens; rivals of equal operations read more.",
    ),
    click.option("--budget-flops", metavar="X", type=positive, help="Train each cell with at most X operations."),
)
@preset_option
@config_option
@settings_option
@click.option("--shard", metavar="I/N", type=Shard(), default="1/1", help="Only part I of N of the cells.")
@click.option("--resume", is_flag=True, help="Go on with a study, extend it, or join its other workers.")
@click.option(
    "--retry-failed", is_flag=True, help="With --resume: train or score once more what ended without figures."
)
@gathered(
    "dry",
    DryRun,
    click.option("--dry-run", is_flag=True, help="Say what it takes, and do nothing."),
    click.option(
        "--device-flops", metavar="X", type=positive, help="With --dry-run: hours at X operations a second, sustained."
    ),
    click.option("--device-price", metavar="X", type=FiniteRange(0), help="Price of an hour of that machine."),
)
@gathered(
    "scoring",
    _scoring,
    number("--sequences", "Score so many validation sequences of each cell, from the first.", default=64),
    click.option(
        "--particles", metavar="K", type=click.IntRange(1, 4096), default=16, help="Draws from each posterior."
    ),
    batch_size,
    click.option("--predictive", is_flag=True, help="Score predictions of each token from those before it as well."),
    click.option("--reference-protocol", is_flag=True, help="Give the reference's figure beside, which is no bound."),
)
@common(seed=None, seed_help="The same as --seeds N.", code=True)
def command(*, out: Path, plan: Plan, dry: DryRun, resume: bool, common: Common, **given: Any) -> None:
    """Trains a model in every cell of a grid, with rivals beside it, and scores all by honest figures.

    DIR gets a run folder for each cell in runs/, the text prepared once in data/, study.json and study.csv, plots, and
    scaling.html, which opens from disk. A study that was stopped or killed goes on with --resume, also on several
    machines at once: each cell is trained by one worker, which may be several processes (torchrun). More values, axes,
    rivals, seeds and figures may be added later.
    """
    dry.check()
    if given["retry_failed"] and not (resume or dry.dry_run):
        raise click.UsageError("--retry-failed goes with --resume: it is of a study that is there")
    if plan.seeds and common.seed is not None:
        raise click.UsageError("--seed N is the same as --seeds N: give one of them")
    from pyro_ltm.comparison.scaling.result import check_target
    from pyro_ltm.errors import UserError
    from pyro_ltm.profiling.speed import with_vocabulary

    from ..output import note
    from ..runs import check_device
    from ..several import leads, only_leader
    from .train import base_config, configure

    device, data = check_device(common.device), given["data"]
    there = check_target(out) if leads() else None
    base = base_config(given.pop("preset"), data)
    config = configure(base, given.pop("config_file"), given.pop("settings"), common)
    plan.grid(with_vocabulary(config), priced=False).cells()  # refused before any work is done
    if dry.dry_run:
        only_leader()
        grid = _dry_grid(plan, config, data, out, dry, device=device, scoring=given["scoring"])
        if there is not None and not resume:
            note(f"{out}: {HOLDS_ONE}")
        return _show_price(_price(grid, out, dry, device, **given), dry, common)
    if there is not None and not resume:
        raise UserError(f"{out}: {HOLDS_ONE}")
    again = typed(click.get_current_context()) + ([] if resume else ["--resume"])
    study = _run(plan, config, out, again, device=device, **given)
    only_leader()
    from pyro_ltm.reports.scaling_page import write_study

    _show(study, write_study(study, out), common.as_json)
    if study.failed:
        count, names = len(study.failed), ", ".join(row.name for row in study.failed[:MOST_FAILED])
        more = f" and {count - MOST_FAILED} more" if count > MOST_FAILED else ""
        which = f"{count} of {len(study.rows)} cells ended without figures ({names}{more})"
        note(f"Warning: {which}: why is in the remarks; --retry-failed trains them once more.")


def _run(plan: Plan, config: Config, out: Path, again: Sequence[str], **given: Any) -> Study:
    """Trains and scores this worker's cells."""
    from pyro_ltm.comparison.scaling.result import STUDY
    from pyro_ltm.comparison.scaling.run import Callbacks, run_study, tokens_of
    from pyro_ltm.data import TokenDataset
    from pyro_ltm.training.launch import as_the_data_are

    from ..failure import Failure, before_training, code_of
    from ..output import note
    from ..progress import reporter, say_stopping
    from ..several import are_several, go_on_with

    data, reading = given.pop("data"), given.pop("reading")
    try:
        with reporter() as report:
            tokens = tokens_of(config, data, out, reading, report.preparing)
            grid = plan.grid(as_the_data_are(config, TokenDataset(tokens)))
            training = {"on_progress": report.training, "on_interrupt": say_stopping}
            watch = Callbacks(lambda line: note(f"Cell: {line}"), training)
            return run_study(grid, data=tokens, out=out, about={"command": shlex.join(again)}, watch=watch, **given)
    except KeyboardInterrupt as stopped:
        if not (out / STUDY).is_file():
            raise before_training(stopped, out / "data") from None
        how = f"interrupted {stopped}".strip()
        how += f"; {go_on_with(again)}" + (" and --resume" if are_several() else "")
        raise Failure(how, code_of(stopped)) from None


def _dry_grid(
    plan: Plan, config: Config, data: tuple[str, ...], out: Path, dry: DryRun, *, device: str, scoring: Scoring
) -> Grid:
    """The grid over `config` as the tokens are, where they are there already; else as they will be.

    Raises UserError as the study itself would: its folder holds one of other settings, or other text.
    """
    from pyro_ltm.comparison.scaling.result import check_settings
    from pyro_ltm.comparison.scaling.run import study_settings
    from pyro_ltm.comparison.trainings import open_validation, tokens_there
    from pyro_ltm.data import TokenDataset
    from pyro_ltm.data.sources import sources_of
    from pyro_ltm.profiling.speed import with_vocabulary
    from pyro_ltm.training.launch import as_the_data_are

    ready = tokens_there(config, sources_of(data), out)
    if ready is None:
        grid, tokens = plan.grid(with_vocabulary(config)), ""
    else:
        grid = plan.grid(as_the_data_are(config, TokenDataset(ready)))
        tokens = open_validation(grid.common, ready).folder.fingerprint
    # What tokens make of it is known once they are there; --device-flops asks about a machine that is elsewhere.
    unknown = [*(AS_THE_TOKENS if ready is None else ()), *(["device"] if dry.device_flops else ())]
    check_settings(out, study_settings(grid, tokens, scoring, device), unknown=unknown)
    return grid


def _price(grid: Grid, out: Path, dry: DryRun, device: str, **given: Any) -> list[Price]:
    """Price of each cell of this worker that is not done."""
    from pyro_ltm.comparison.scaling.grid import part
    from pyro_ltm.comparison.scaling.price import measured_pace, price_of
    from pyro_ltm.comparison.scaling.result import RUNS, read_row

    from ..output import note
    from ..progress import reporter

    with reporter() as report:
        count = report.counting("counting operations", grid.places, "cells with their rivals")
        count(0, math.nan)  # the first may take a minute
        mine = part(grid.cells(lambda done: count(done, math.nan)), *given["shard"])
    scoring = given["scoring"]
    rows = {cell.name: scoring.begun(read_row(out / RUNS / cell.name), again=given["retry_failed"]) for cell in mine}
    cells = [cell for cell in mine if (row := rows[cell.name]) is None or scoring.lacking(row)]
    if len(cells) < len(mine):
        note(f"{out}: {len(mine) - len(cells)} of {len(mine)} cells are done.")
    if scored := sum(rows[cell.name] is not None for cell in cells):
        note(f"{out}: {scored} cells are trained, and lack figures.")
    flops = dry.device_flops
    if cells and not flops:
        note("Timing steps of the smallest and the largest shape on this machine.")
    pace = (lambda cell: flops) if flops else measured_pace(cells, device=device)
    prices = []
    with reporter() as report:
        count = report.counting("pricing", len(cells), "cells")
        for cell in cells:
            prices.append(price_of(cell, scoring, pace, done=rows[cell.name]))
            count(len(prices), math.nan)
    return prices


def _show_price(prices: Sequence[Price], dry: DryRun, common: Common) -> None:
    """Cells, operations and hours, with their sums."""
    from ..estimate import duration
    from ..output import emit, say, show_table

    seconds = sum(one.seconds for one in prices)
    total = {
        "cells": len(prices),
        "operations": sum(one.training_operations + one.scoring_operations for one in prices),
        "hours": seconds / 3600,
    }
    if dry.device_price is not None:
        total["price"] = seconds / 3600 * dry.device_price
    if common.as_json:
        emit({**total, "by_cell": [one.to_dict() for one in prices]})
        return
    rows = [
        [
            *(_label(one.cell.name), f"{one.cell.config.slow.steps:,}", f"{one.tokens:,}"),
            *(f"{one.training_operations + one.scoring_operations:.3g}", duration(one.seconds)),
        ]
        for one in prices[:MOST_ROWS]
    ]
    where = "at the given pace" if dry.device_flops else "on this machine"
    columns = ["cell", "slow steps", "tokens", "operations", "time"]
    show_table(f"{len(prices)} cells to train and to score, {where}", columns, rows)
    if len(prices) > MOST_ROWS:
        say(f"and {len(prices) - MOST_ROWS} more cells: all with --json")
    line = f"All: {total['operations']:.3g} operations, {duration(seconds)} {where} by one worker"
    say(line + (f", {total['price']:,.2f} at {dry.device_price:g} an hour." if "price" in total else "."))


def _show(study: Study, page: Path, as_json: bool) -> None:
    """Findings of the study, and where the rest is."""
    from pyro_ltm.comparison.scaling.analysis import gaps
    from pyro_ltm.reports.scaling_page import cell_table, findings, law_lines, remarks

    from ..output import emit, say, show_table

    if as_json:
        emit({**study.to_dict(), "out": str(page.parent), "page": str(page)})
        return
    columns, rows = cell_table(study.rows)
    left_out = {
        "cell",
        "parameters",
        "epochs",
        "a scored token",
        "a written token",
        *columns[columns.index("at most") + 1 :],
    }
    kept = [index for index, name in enumerate(columns) if name not in left_out]
    shown = [[row[index] for index in kept] for row in rows[:MOST_ROWS]]
    # Names of two words stand on two lines, so that figures have room for theirs.
    names = [columns[index].replace(".", "\n").replace("training ", "training\n") for index in kept]
    show_table("Nats a token on validation text", names, shown)
    if len(rows) > MOST_ROWS:
        say(f"and {len(rows) - MOST_ROWS} more cells on the page")
    for line in [*findings(study, gaps(study)), *law_lines(study), *remarks(study)]:
        say(line)
    say()
    say(f"Open {page} in a browser; study.json, study.csv and plots lie in the same folder.")


def _label(name: str) -> str:
    """A cell's name that can be folded between its settings."""
    return name.replace("--", " ").replace(" seed=0", "")
