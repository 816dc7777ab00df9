"""`pyro-ltm evaluate`: a run under the protocols that are never mixed: bound, prefix, and the reference's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import FOLDER, Common, common, examples, fast_steps, fit_settings, reading_options, run_argument

if TYPE_CHECKING:
    from pyro_ltm.data import Reading
    from pyro_ltm.runs import Run
    from pyro_ltm.runs.protocols import Evaluation

PARTICLES = 4
READS = {"particles": ("bound", "prefix"), "prefix": ("prefix",), "stride": ("prefix",), "ais": ("bound",)}
"""Which protocols read an option."""
IGNORED = 0.01
"""Another sequence's thoughts cost fewer nats a token than this: the decoder ignores them."""


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
@click.option(
    "--particles", metavar="K", type=click.IntRange(1), help="Draws from each posterior.", show_default=str(PARTICLES)
)
@fast_steps
@fit_settings
@click.option(
    "--prefix", "prefixes", metavar="M", type=click.IntRange(1), multiple=True, help="Tokens given. Repeatable."
)
@click.option("--stride", metavar="N", type=click.IntRange(1), help="Tokens between two fits, sequentially.")
@click.option(
    "--ais",
    metavar="N",
    type=click.IntRange(1),
    help="Annealed importance sampling over N temperatures: a bound that tightens with N, at N times the price.",
)
@click.option("--ais-chains", metavar="N", type=click.IntRange(1), help="Its chains.", show_default="4")
@click.option("--ais-leapfrogs", metavar="N", type=click.IntRange(1), help="Steps of each move.", show_default="4")
@click.option("--twin", "twin_folder", metavar="RUN", type=FOLDER, help="A run to score on the same data, beside it.")
@click.option(
    "--sequences", metavar="N", type=click.IntRange(1), help="Score only so many, from the first; default: all."
)
@click.option("--batch-size", metavar="N", type=click.IntRange(1), default=32, help="Sequences at a time.")
@common(seed_help="Seed of the noise.")
def command(
    *,
    run_folder: Path,
    protocol: str,
    data: str | None,
    reading: Reading,
    particles: int | None,
    fast_steps: int | None,
    settings: tuple[str, ...],
    prefixes: tuple[int, ...],
    stride: int | None,
    ais: int | None,
    ais_chains: int | None,
    ais_leapfrogs: int | None,
    twin_folder: Path | None,
    sequences: int | None,
    batch_size: int,
    common: Common,
) -> None:
    """Scores a run. Protocols are never mixed: each has its own table, its own key in JSON, and says what it is.

    On a corpus of known entropy (worlds) the floor stands below: no bound can be lower, and one that is ends in an
    error. Figures of the run's own data also go into RUN/evaluation.json, and as pictures into RUN/plots.
    """
    _check(protocol, particles=particles, prefix=prefixes, stride=stride, ais=ais)
    if not ais and (ais_chains or ais_leapfrogs):
        raise click.UsageError("--ais-chains and --ais-leapfrogs are of --ais N, which is not given")
    from ..output import FIXED_NOISE, emit, note
    from ..progress import reporter
    from ..runs import check_twin, open_data, open_run

    run = open_run(run_folder, common)
    fingerprint, run = run.fingerprint, run.with_fast_loop(settings)
    twin = open_run(twin_folder, common) if twin_folder else None
    if twin is not None:
        check_twin(run, twin)
    if run.config.fast.noise == "fixed":
        note(FIXED_NOISE)
    from pyro_ltm.runs.protocols import PROTOCOLS, evaluate_protocols

    annealing = {"temperatures": ais, "chains": ais_chains, "leapfrogs": ais_leapfrogs}
    with reporter() as report, open_data(run, data, reading, report) as scored:
        total = len(scored) if sequences is None else min(sequences, len(scored))
        every = PROTOCOLS if run.config.model.thoughts else ("bound", "prefix")
        protocols = every if protocol == "all" else (protocol,)
        found = evaluate_protocols(
            run,
            scored,
            protocols=protocols,
            twin=twin,
            particles=particles or PARTICLES,
            fast_steps=fast_steps,
            prefixes=prefixes,
            stride=stride or 0,
            annealing={name: value for name, value in annealing.items() if value},
            sequences=sequences,
            batch_size=batch_size,
            seed=common.seed or 0,
            counting=lambda name: report.counting(f"evaluate {name}", total),
        )
        where = data or f"{scored.folder.path} ({scored.split})"
    of = {"run": str(run_folder), "step": run.step, "fingerprint": fingerprint, "data": where}
    result: dict[str, Any] = {**found.to_dict(), **of}
    if settings:
        result["settings"] = list(settings)
    if twin is not None:
        result |= {"twin_run": str(twin_folder), "twin_step": twin.step, "twin_fingerprint": twin.fingerprint}
    if data is None:
        _save(run, result)
    if common.as_json:
        emit(result)
    else:
        from ..evaluation_tables import show

        show(found, where)
    _warn(run, found)


def _save(run: Run, result: dict[str, Any]) -> None:
    """Keeps the figures beside the run; a run folder that cannot be written is no reason to keep them to ourselves."""
    from pyro_ltm.errors import UserError
    from pyro_ltm.reports.protocol_plots import plot_evaluation
    from pyro_ltm.runs.evaluation_file import write_evaluation

    from ..output import note

    try:
        plot_evaluation(write_evaluation(run, result), run.folder / "plots")
    except UserError as error:
        note(f"Warning: {error}")


def _check(protocol: str, **given: Any) -> None:
    """Raises UsageError for an option of a protocol that is not asked for: it would change nothing."""
    for option, value in given.items():
        theirs = READS[option]
        if value and protocol not in (*theirs, "all"):
            raise click.UsageError(f"--{option} is of --protocol {' and '.join(theirs)}, not {protocol}")


def _warn(run: Run, found: Evaluation) -> None:
    from ..output import note

    bound = found.bound
    if (
        bound is not None
        and bound.sequences > 1
        and run.config.model.thoughts
        and bound.distortion_shuffled - bound.distortion_nats_per_token < IGNORED
    ):
        note("Warning: the decoder ignores its thoughts: those of another sequence serve it as well.")
