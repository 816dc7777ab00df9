"""`pyro-ltm evaluate`: a run under the protocols that are never mixed: bound, prefix, and the reference's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    FOLDER,
    Common,
    annealing,
    batch_size,
    common,
    examples,
    fast_steps,
    fit_settings,
    gathered,
    given,
    masked_diffusion_option,
    number,
    reading_options,
    run_argument,
)

if TYPE_CHECKING:
    from pyro_ltm.data import Reading
    from pyro_ltm.inference.ais import Annealing
    from pyro_ltm.runs import Run

READS = {"particles": ("bound", "prefix"), "prefix": ("prefix",), "stride": ("prefix",), "ais": ("bound",)}
"""Which protocols read an option."""


def _annealing(ais: int | None, ais_chains: int | None, ais_leapfrogs: int | None) -> Annealing | None:
    if not ais and (ais_chains or ais_leapfrogs):
        raise click.UsageError("--ais-chains and --ais-leapfrogs are of --ais N, which is not given")
    return annealing(ais, ais_chains, ais_leapfrogs)


@click.command(
    short_help="Score a run: the honest bound, and what it predicts.",
    epilog=examples(
        "pyro-ltm evaluate runs/first",
        "pyro-ltm evaluate runs/first --twin runs/twin --particles 1024 --ais 64",
        "pyro-ltm evaluate runs/first --protocol all --twin runs/twin --sequences 100",
        "pyro-ltm evaluate runs/first --data worlds --protocol prefix --prefix 16 --prefix 64",
        "pyro-ltm evaluate runs/first --data other.txt --fast-steps 64 --json",
        "pyro-ltm evaluate runs/first --fast-steps 200 --set optimizer.lr=0.1 --set optimizer.eps=1",
    ),
)
@run_argument
@click.option(
    "--protocol",
    type=click.Choice(["bound", "prefix", "reference", "all"]),
    default="bound",
    help="bound: an upper bound on nats. prefix: what is predicted from the text so far. reference: the reference "
    "implementation's figure, which is not a bound.",
)
@click.option(
    "--data",
    metavar="SOURCE_OR_DIR",
    help="What to score: a prepared folder, or text, of which all is scored (of worlds: 1000 new documents); default: "
    "the run's own validation split.",
)
@reading_options
@number("--particles", "Draws from each posterior.", metavar="K", show_default="4")
@fast_steps
@fit_settings
@click.option(
    "--prefix", "prefixes", metavar="M", type=click.IntRange(1), multiple=True, help="Tokens given. Repeatable."
)
@number("--stride", "Tokens between two fits, sequentially.")
@gathered(
    "annealing",
    _annealing,
    number(
        "--ais",
        "Annealed importance sampling over N temperatures: a bound that tightens with N, at N times the price.",
    ),
    number("--ais-chains", "Its chains.", show_default="4"),
    number("--ais-leapfrogs", "Steps of each move.", show_default="4"),
)
@click.option(
    "--twin",
    "twin_folder",
    metavar="RUN",
    type=FOLDER,
    help="A run to score on the same data, beside it; default: of a graft, its base model, else none.",
)
@masked_diffusion_option
@number("--sequences", "Score only so many, from the first; default: all.")
@batch_size
@common(seed_help="Seed of the noise.", weights=True)
def command(
    *,
    run_folder: Path,
    protocol: str,
    data: str | None,
    reading: Reading,
    settings: tuple[str, ...],
    twin_folder: Path | None,
    diffusion_folder: Path | None,
    common: Common,
    **scoring: Any,
) -> None:
    """Scores a run. Protocols are never mixed: each has its own table, its own key in JSON, and says what it is.

    On a corpus of known entropy (worlds) the floor stands below: no bound can be lower, and one that is ends in an
    error. Figures of the run's own data also go into RUN/evaluation.json, and as pictures into RUN/plots, but for those
    of --weights average or best.
    """
    _check(protocol, scoring)
    from ..output import FIXED_NOISE, emit, note
    from ..progress import reporter
    from ..runs import open_data, open_rivals, open_run

    original = open_run(run_folder, common)
    run = original.with_fast_loop(settings)
    rivals, _ = open_rivals(run, twin_folder, diffusion_folder, common, base=True)
    if run.config.fast.noise == "fixed":
        note(FIXED_NOISE)
    from pyro_ltm.distributed import sharing
    from pyro_ltm.runs.evaluation_file import evaluation_record
    from pyro_ltm.runs.protocols import evaluate_protocols, protocols_of

    from ..several import only_leader, share_of

    with reporter() as report, open_data(run, data, reading, report) as scored, sharing():
        total = share_of(min(scoring["sequences"] or len(scored), len(scored)))
        found = evaluate_protocols(
            run,
            scored,
            protocols=protocols_of(run) if protocol == "all" else (protocol,),
            **rivals,
            seed=common.seed or 0,
            counting=lambda name: report.counting(f"evaluate {name}", total),
            **given(**scoring),
        )
        where = data or f"{scored.folder.path} ({scored.split})"
    only_leader()
    result = evaluation_record(original, found, data=where, settings=settings, **rivals)
    if data is None and run.weights == "last":
        _save(run, result)
    if common.as_json:
        emit(result)
    else:
        from ..evaluation_tables import show

        show(found, where)
    if found.ignores_thoughts:
        note("Warning: the decoder ignores its thoughts: those of another sequence serve it as well.")


def _save(run: Run, result: Mapping[str, Any]) -> None:
    """Writes the figures into the run; where its folder cannot be written, they are shown all the same."""
    from pyro_ltm.errors import UserError
    from pyro_ltm.reports.protocol_plots import plot_evaluation
    from pyro_ltm.runs.evaluation_file import write_evaluation

    from ..output import note

    try:
        plot_evaluation(write_evaluation(run, result, say=lambda line: note(f"Warning: {line}")), run.folder / "plots")
    except UserError as error:
        note(f"Warning: {error}")


def _check(protocol: str, scoring: dict[str, Any]) -> None:
    """Raises UsageError for an option of a protocol that is not asked for: it would change nothing."""
    values = {**scoring, "prefix": scoring["prefixes"], "ais": scoring["annealing"]}
    for option, theirs in READS.items():
        if values[option] and protocol not in (*theirs, "all"):
            raise click.UsageError(f"--{option} is of --protocol {' and '.join(theirs)}, not {protocol}")
