"""`pyro-ltm infer`: text to thoughts."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    FOLDER,
    Common,
    Text,
    batch_size,
    common,
    examples,
    fast_steps,
    reading_options,
    run_argument,
    typed_options,
)
from ..thought_options import id_column_option, say_went_on

if TYPE_CHECKING:
    from pyro_ltm.data import Reading
    from pyro_ltm.runs.documents import DocumentThoughts


@click.command(
    short_help="Fit thoughts to texts.",
    epilog=examples(
        "pyro-ltm infer runs/first --text 'The statement is executed.' --out thoughts.safetensors",
        "pyro-ltm infer runs/first --input notes.jsonl --text-column body --out thoughts.safetensors",
        "pyro-ltm infer runs/first --input reviews.csv --id-column review --out thoughts.npz",
    ),
)
@run_argument
@click.option("--text", type=Text(), help="One text.")
@click.option("--input", "source", metavar="FILE", help="Many: a file, folder or corpus, as `prepare` reads it.")
@click.option("--out", required=True, type=FOLDER, help="The file to write, .safetensors or .npz.")
@reading_options
@id_column_option
@batch_size
@fast_steps
@common(seed_help="Seed of the noise.", weights=True)
def command(
    *,
    run_folder: Path,
    text: str | None,
    source: str | None,
    out: Path,
    reading: Reading,
    id_column: str | None,
    common: Common,
    **how: Any,
) -> None:
    """Fits thoughts to texts and writes them to a file that `generate --thoughts` reads.

    A document that is longer than the model reads is cut into consecutive sequences. The file holds `thoughts`
    [S, N, D], the posterior means; `state.*`, the fitted parameters; `bound_nats` [S], the bound on draws that no fit
    has seen; `tokens` [S]; `document` [S], the number of each sequence's document in the input, from 0, records without
    text included; and in its header where they come from, with the id of each document. A command that was killed goes
    on where it was, if it is given again.
    """
    if (text is None) == (source is None):
        raise click.UsageError("give either --text or --input")
    from pyro_ltm.data.sources import find_source, listed
    from pyro_ltm.distributed import sharing
    from pyro_ltm.locks import locked
    from pyro_ltm.runs.documents import cut_documents, infer_documents, piece_of_text
    from pyro_ltm.runs.partial_fits import PartialFits, key_of

    from ..output import emit, note, show_next
    from ..progress import reporter
    from ..runs import check_thoughts_target, open_run
    from ..several import of_leader, only_leader
    from ..sources import remarks

    check_thoughts_target(out)
    run = open_run(run_folder, common)
    found = None if source is None else find_source(source, dataclasses.replace(reading, id_column=id_column))
    pieces = [piece_of_text(run, str(text))] if found is None else list(cut_documents(run, found.read(), found.spec))
    steps, seed = run.loop.with_steps(how["fast_steps"]).steps, common.seed or 0
    with of_leader(lambda: locked(out)), sharing():
        kept = PartialFits(out, key_of((piece.tokens for piece in pieces), run.fingerprint, steps, seed), say=note)
        with reporter() as report:
            count = report.counting("infer", len(pieces))
            how |= {"kept": kept, "progress": lambda done: count(done, math.nan)}
            inferred = infer_documents(run, pieces, seed=seed, **how)
        only_leader()
        read: dict[str, Any] = listed([found]) if found else {}
        meta = {**run.about, "fast_steps": steps, "seed": seed}
        inferred.save(out, {**meta, "fingerprint": run.fingerprint, "input": source, **read})
        PartialFits.clear(out)
    say_went_on(kept.earlier)
    for line in remarks(read):
        note(line)
    if (named := len(inferred.named)) < len(inferred.documents):
        note(f"The file names the first {named:,} documents; `document` numbers all of them.")
    if common.as_json:
        emit({"out": str(out), **_figures(inferred), **meta, **read})
        return
    _say(inferred, steps, out)
    same = typed_options(click.get_current_context(), "weights", "allow_code")
    show_next(["pyro-ltm", "generate", str(run_folder), "--thoughts", str(out), *same])


def _figures(inferred: DocumentThoughts) -> dict[str, Any]:
    """For JSON."""
    return {
        "documents": len(inferred.documents),
        "sequences": len(inferred.texts),
        "tokens": inferred.tokens,
        "thoughts_shape": list(inferred.tensors["thoughts"].shape),
        "objective_nats_per_token": inferred.nats_per_token,
    }


def _say(inferred: DocumentThoughts, steps: int, out: Path) -> None:
    """For people."""
    from ..output import nats, say

    documents, sequences = len(inferred.documents), len(inferred.texts)
    say(f"{documents:,} documents, {sequences:,} sequences, {inferred.tokens:,} tokens")
    say(f"{steps} fast steps: {nats(inferred.nats_per_token)} nats a token at the last one")
    say(f"Thoughts {list(inferred.tensors['thoughts'].shape)} written to {out}")
