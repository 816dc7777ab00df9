"""`pyro-ltm embed`: documents to features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import FOLDER, Common, common, examples, run_argument, typed_options
from ..thought_options import documents_options, fitting_of, fitting_options, layers_option, rows_of

if TYPE_CHECKING:
    from pyro_ltm.data import Reading


FITTED_BY = ("layers", "fast_steps", "settings", "seed")
"""Options by which another command must fit, too, to compare with these rows."""


@click.command(
    short_help="A row of features for each document.",
    epilog=examples(
        "pyro-ltm embed runs/first --data reviews.jsonl --out thoughts.parquet",
        "pyro-ltm embed runs/first --data reviews.csv --columns title,stars --out thoughts.npz",
        "pyro-ltm embed runs/first --data books --windows --layers 0 --out thoughts.safetensors",
    ),
)
@run_argument
@click.option("--data", "source", required=True, metavar="SOURCE", help="Documents, as `prepare` reads them.")
@click.option("--out", required=True, type=FOLDER, help="The file to write: .parquet, .npz or .safetensors.")
@documents_options
@layers_option("Layers whose thoughts to take, from 0; default: all.")
@click.option("--windows", is_flag=True, help="A row for each window of a long document, not their mean.")
@click.option("--draw", is_flag=True, help="A draw from each posterior in place of its mean.")
@fitting_options
@common(seed_help="Seed of the noise.", weights=True)
def command(
    *,
    run_folder: Path,
    source: str,
    out: Path,
    reading: Reading,
    layers: tuple[int, ...] | None,
    windows: bool,
    draw: bool,
    how: dict[str, Any],
    common: Common,
) -> None:
    """Fits thoughts to documents and writes them as features: a row of N x D numbers each.

    A document that is longer than the model reads is fitted window by window; its row is their mean, weighed by their
    tokens. Each row has the document's number in the input, its id, the columns asked for, and how its text begins. The
    same text has the same row wherever it stands. A command that was killed goes on where it was, if it is given again.
    """
    from pyro_ltm.distributed import sharing
    from pyro_ltm.locks import locked
    from pyro_ltm.runs.embeddings_file import check_columns, check_suffix, write_embeddings
    from pyro_ltm.runs.partial_fits import PartialFits

    from ..output import emit, say, show_next
    from ..runs import check_target, open_run, say_what_for
    from ..several import of_leader, only_leader

    check_suffix(out)
    check_target(out, Path(source))
    check_columns(reading.columns)
    run = open_run(run_folder, common)
    fitting = fitting_of(how, common.seed)
    fit = fitting.about(run)
    chosen: dict[str, Any] = {"layers": layers, "windows": windows, "draw": draw}
    with of_leader(lambda: locked(out)), sharing():
        found = rows_of(run, source, fitting, reading, out=out, **chosen)
        only_leader()
        rows = found.rows
        about = {**run.about, "input": source, "windows": windows, "draw": draw}
        write_embeddings(out, rows, {**about, "fingerprint": run.fingerprint, "fit": fit})
        PartialFits.clear(out)
    documents, tokens = len(rows.document.unique()), int(rows.tokens.sum())
    shape = list(rows.features.shape)
    say_what_for(run)
    if common.as_json:
        counts = {"documents": documents, "without_text": found.without_text, "tokens": tokens, "shape": shape}
        about |= {"layers": rows.layers, "columns": list(rows.table)}
        emit({"out": str(out), **counts, **about, **fit, **found.read})
        return
    say(f"{documents:,} documents, {len(rows):,} rows of {shape[1]:,} features, {tokens:,} tokens")
    say(f"{fit['fast_steps']} fast steps; written to {out}")
    same = typed_options(click.get_current_context(), "weights", "allow_code", *FITTED_BY)
    query = " ".join(rows.texts[0].split()).lstrip("@") or "TEXT"  # on one line, and no file's name
    show_next(["pyro-ltm", "neighbours", str(run_folder), "--among", str(out), *same, "--", query])
