"""`pyro-ltm compare`: guides and objectives side by side."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_ltm.errors import visible

from ..options import (
    FOLDER,
    Common,
    Numbers,
    batch_size,
    common,
    config_option,
    examples,
    number,
    reading_options,
    settings_option,
    typed,
)

if TYPE_CHECKING:
    from pyro_ltm.comparison.result import Comparison
    from pyro_ltm.data import Reading

OF_TRAINING = ("preset", "config_file", "steps", "twin", "masked_diffusion")
"""Options that go with --train alone."""
MOST_ROWS, MOST_NOTES = 40, 8
"""Pairs and remarks on the terminal; the page has all of them."""
WIDE = 96
"""Columns of a terminal on which all of the table's columns have room."""


@click.command(
    short_help="Compare guides and objectives.",
    epilog=examples(
        "pyro-ltm compare runs/first --guides mean-field,low-rank:8 --objectives elbo,iwae:16 --out compare/first",
        "pyro-ltm compare runs/first --guides all --objectives all --fast-steps 4,16 --out compare/all",
        "pyro-ltm compare --train --preset nano --data python-docs --guides mean-field,delta "
        "--objectives analytic-elbo,map --steps 300 --out compare/trained",
    ),
)
@click.argument("run_folder", metavar="[RUN]", type=FOLDER, required=False)
@click.option("--guides", "guide_names", metavar="A,B:8,...", required=True, help="Guides, or all.")
@click.option("--objectives", "objective_names", metavar="X,Y:16,...", required=True, help="Objectives, or all.")
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="Folder for figures, plots and page.")
@click.option(
    "--data",
    metavar="SOURCE_OR_DIR",
    multiple=True,
    help="With RUN, what to score (default: its own validation split); with --train, what to train on. "
    "A prepared folder, or text.",
)
@reading_options
@click.option("--fast-steps", metavar="N,...", type=Numbers(), help="Fast steps of each fit; default: the run's own.")
@number("--sequences", "Score so many sequences, from the first.", default=64)
@click.option("--particles", metavar="K", type=click.IntRange(1, 4096), default=64, help="Draws from each posterior.")
@batch_size
@number(
    "--guide-steps", "With RUN: slow steps by which shared parameters of a guide learn before.", least=0, default=200
)
@click.option("--rhat", is_flag=True, help="With RUN: R-hat and sample sizes of samplers' chains (extra arviz).")
@click.option("--train", is_flag=True, help="Train a decoder under each pair instead of taking that of a run.")
@click.option(
    "--preset",
    metavar="NAME",
    help="With --train: nano (the default), nano-long, nano-worlds, mini, small, medium or large.",
)
@config_option
@settings_option
@click.option("--steps", metavar="N", type=int, help="With --train: slow steps of each decoder.")
@click.option("--twin", is_flag=True, help="With --train: train the autoregressive twin as well.")
@click.option("--masked-diffusion", is_flag=True, help="With --train: train the masked diffusion as well.")
@common(seed=None, seed_help="Seed of the noise; with --train, of all that is random. Default: 0.", weights=True)
def command(*, run_folder: Path | None, train: bool, out: Path, common: Common, **given: Any) -> None:
    """Compares guides and objectives by the same honest figures, whatever each of them optimized.

    With RUN, fits posteriors under its decoder; --set may then change the fast loop (fast.* and optimizer.*). With
    --train, trains a decoder under each pair, and compares them at equal tokens and at equal seconds.

    DIR gets compare.html, which opens from disk, compare.json, compare.csv and plots. A comparison that was interrupted
    goes on where it stopped, and more pairs may be added to it. Several processes (torchrun) share each pair.
    """
    ctx = click.get_current_context()
    if (run_folder is None) != train:
        raise click.UsageError("give either RUN or --train", ctx)
    foreign = ("guide_steps", "rhat", "weights") if train else OF_TRAINING
    _refuse_foreign_options(ctx, foreign, train)
    if train and len(given["fast_steps"] or []) > 1:
        raise click.UsageError("--train takes one number of --fast-steps", ctx)
    if not train and len(given["data"]) > 1:
        raise click.UsageError("RUN takes one --data", ctx)
    from pyro_ltm.comparison.comparison_file import COMPARISON, check_target
    from pyro_ltm.comparison.named import split_names
    from pyro_ltm.inference import FAMILIES
    from pyro_ltm.locks import locked
    from pyro_ltm.objectives import OBJECTIVES
    from pyro_ltm.reports.comparison_page import write_comparison

    from ..failure import Failure, before_training, code_of
    from ..several import go_on_with, leads, of_leader, only_leader

    if leads():
        check_target(out, "training" if train else "posteriors")
    guides = split_names(given.pop("guide_names"), FAMILIES)
    objectives = split_names(given.pop("objective_names"), OBJECTIVES)
    again = typed(ctx)
    shared: dict[str, Any] = {
        "guides": guides,
        "objectives": objectives,
        "out": out,
        "about": {"command": shlex.join(again)},
    }
    shared |= {key: given.pop(key) for key in ("sequences", "particles", "batch_size")}
    try:
        with of_leader(lambda: locked(out)):
            comparison = (
                _train(common, **shared, **given) if run_folder is None else _fit(run_folder, common, **shared, **given)
            )
            only_leader()
            page = write_comparison(comparison, out)
    except KeyboardInterrupt as stopped:
        if not (out / COMPARISON).is_file():
            raise before_training(stopped, out / "data") from None
        message = f"interrupted; what is scored is in {out / COMPARISON}, {go_on_with(again)}"
        raise Failure(message, code_of(stopped)) from None
    _show(comparison, page, common.as_json)


def _fit(
    run_folder: Path,
    common: Common,
    *,
    data: tuple[str, ...],
    reading: Reading,
    settings: tuple[str, ...],
    **options: Any,
) -> Comparison:
    """Posteriors under the decoder of a run."""
    from pyro_ltm.comparison.posteriors import compare_run

    from ..estimate import announce_guides
    from ..output import FIXED_NOISE, note
    from ..progress import reporter
    from ..runs import open_data, open_run

    for name in OF_TRAINING:
        options.pop(name)
    run = open_run(run_folder, common).with_fast_loop(settings)
    if run.config.fast.noise == "fixed":
        note(FIXED_NOISE)
    with reporter() as report, open_data(run, data[0] if data else None, reading, report) as scored:
        about = options.pop("about") | ({"data": data[0]} if data else {})
        options |= {"report": report.counting, "seed": common.seed or 0, "on_guide_training": announce_guides}
        return compare_run(run, scored, about=about, **options)


def _train(
    common: Common,
    *,
    data: tuple[str, ...],
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    steps: int | None,
    fast_steps: list[int] | None,
    **options: Any,
) -> Comparison:
    """A decoder under each pair."""
    from pyro_ltm.comparison.result import RIVALS
    from pyro_ltm.comparison.trainings import compare_training
    from pyro_ltm.config import merge
    from pyro_ltm.presets import preset as named

    from ..output import FIXED_NOISE, note
    from ..progress import of_training, reporter
    from ..runs import check_device
    from .train import configure

    for name in ("guide_steps", "rhat"):
        options.pop(name)
    rivals = [name for name in RIVALS if options.pop(name)]
    config = configure(named(preset or "nano"), config_file, settings, common, steps)
    if fast_steps:
        config = merge(config, {"fast": {"steps": fast_steps[0]}}, where="--fast-steps")
    if config.fast.noise == "fixed":
        note(FIXED_NOISE)
    with reporter() as report:
        return compare_training(
            config,
            data=data,
            device=check_device(common.device),
            report=report.counting,
            rivals=rivals,
            on_pair=lambda label: note(f"Training: {label}"),
            **of_training(report),
            **options,
        )


def _show(comparison: Comparison, page: Path, as_json: bool) -> None:
    """The table, what it comes to, and where the rest is."""
    from pyro_ltm.reports.comparison_table import findings, notes

    from ..output import emit, say

    if as_json:
        emit({**comparison.to_dict(), "out": str(page.parent), "page": str(page)})
        return
    steps = comparison.fast_steps
    count, tokens = len(comparison.token_counts), sum(comparison.token_counts)
    loop = f", {steps[0]} fast steps" if len(steps) == 1 else ""
    _show_table(f"Upper bounds on nats a token, {count:,} sequences, {tokens:,} tokens{loop}", comparison)
    for line in findings(comparison):
        say(line)
    remarks = notes(comparison)
    for line in remarks[:MOST_NOTES]:
        say(f"  {line}")
    if len(remarks) > MOST_NOTES:
        say(f"  and {len(remarks) - MOST_NOTES} more remarks on the page")
    say()
    say(f"Open {page} in a browser; compare.json, compare.csv and plots lie in the same folder.")


def _show_table(title: str, comparison: Comparison) -> None:
    """The short table, as wide as the terminal allows; names are folded before figures are."""
    from rich import box
    from rich.table import Table

    from pyro_ltm.reports.comparison_table import short_table

    from ..output import stdout_console

    console = stdout_console()
    columns, rows = short_table(comparison, wide=console.width >= WIDE)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        if index < 2:
            table.add_column(column, overflow="fold", min_width=9)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row in rows[:MOST_ROWS]:
        table.add_row(*map(visible, row))
    console.print(visible(title), style="bold", soft_wrap=True)
    console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"and {len(rows) - MOST_ROWS} more pairs on the page")
    console.print()


def _refuse_foreign_options(ctx: click.Context, names: tuple[str, ...], train: bool) -> None:
    """Raises a usage error for an option that means nothing here."""
    for param in ctx.command.params:
        if param.name in names and ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{param.opts[0]} goes {'with RUN' if train else 'with --train'} alone", ctx)
