"""`pyro-ltm infer`: text to thoughts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import FOLDER, Common, Text, common, examples, fast_steps, reading_options, run_argument

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_ltm.data import Document, Reading
    from pyro_ltm.data.sources import Source
    from pyro_ltm.runs import Run

    from ..progress import Reporter

SHOWN = 80
"""Characters of each text that the file keeps, so that a reader knows which is which."""

MOST_SHOWN = 100_000
"""Texts and documents that it names, where these take no more than `MOST_NAMED` characters."""

MOST_NAMED = 6 << 20
"""Characters of ids and origins that it keeps: the header of a safetensors file holds 100 MB, and a character takes up
to six bytes of it."""


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
@click.option(
    "--id-column", metavar="NAME", help="Column or JSON field that names each document; default: id, if there is one."
)
@click.option("--batch-size", metavar="N", type=click.IntRange(1), default=32, help="Sequences at a time.")
@fast_steps
@common(seed_help="Seed of the noise.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    run_folder: Path,
    text: str | None,
    source: str | None,
    out: Path,
    reading: Reading,
    id_column: str | None,
    batch_size: int,
    fast_steps: int | None,
    common: Common,
) -> None:
    """Fits thoughts to texts and writes them to a file that `generate --thoughts` reads.

    A document that is longer than the model reads is cut into consecutive sequences. The file holds `thoughts`
    [S, N, D], the posterior means; `state.*`, the fitted parameters; `bound_nats` [S], the objective at the last fast
    step; `tokens` [S]; `document` [S], the number of each sequence's document in the input, from 0, records without
    text included; and in its header where they come from, with the id of each document.
    """
    if (text is None) == (source is None):
        raise click.UsageError("give either --text or --input", ctx)
    from pyro_ltm.data.sources import find_source, listed
    from pyro_ltm.errors import UserError

    from ..output import emit, nats, note, say, show_next
    from ..progress import reporter
    from ..runs import open_run
    from ..sources import remarks
    from ..thoughts import check_target, write_thoughts

    check_target(out)
    run = open_run(run_folder, common)
    if not run.config.model.thoughts:
        raise UserError(f"{run_folder}: this model has no thoughts (it is an autoregressive twin): nothing to infer")
    reading = dataclasses.replace(reading, id_column=id_column)
    found = None if source is None else find_source(source, reading)
    sequences = _one(run, str(text)) if found is None else _cut(run, found)
    with reporter() as report:
        tensors, texts, documents = _fit(run, sequences, batch_size, fast_steps, common.seed or 0, report)
    if not texts:
        raise UserError(f"--input {source}: no text in it")
    read = listed([found]) if found else {}
    for line in remarks(read):
        note(line)
    steps = run.parts.steps(fast_steps)
    count, tokens = len(texts), int(tensors["tokens"].sum())
    meta = {"run": str(run_folder), "step": run.step, "fast_steps": steps, "seed": common.seed or 0}
    named = _that_fit(documents)
    write_thoughts(out, tensors, {**meta, "input": source, **read, "texts": texts[:MOST_SHOWN], "documents": named})
    if len(named) < len(documents):
        note(f"The file names the first {len(named):,} documents; `document` numbers all of them.")
    level = float(-tensors["bound_nats"].double().sum()) / tokens
    shape = list(tensors["thoughts"].shape)
    if common.as_json:
        result = {
            "documents": len(documents),
            "sequences": count,
            "tokens": tokens,
            "thoughts_shape": shape,
            "objective_nats_per_token": level,
        }
        emit({"out": str(out), **result, **meta, **read})
        return
    say(f"{len(documents):,} documents, {count:,} sequences, {tokens:,} tokens")
    say(f"{steps} fast steps: {nats(level)} nats a token at the last one")
    say(f"Thoughts {shape} written to {out}")
    show_next(["pyro-ltm", "generate", str(run_folder), "--thoughts", str(out)])


DRAWS = 4
"""Draws of the thoughts on fresh noise, from which each text's bound is taken."""


def _that_fit(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first documents, as many as a file can name."""
    left, count = MOST_NAMED, 0
    for one in documents[:MOST_SHOWN]:
        left -= len(one["origin"]) + len(str(one.get("id", "")))
        if left < 0:
            break
        count += 1
    return documents[:count]


@dataclasses.dataclass(frozen=True)
class Cut:
    """Tokens of one document that fill a sequence, the token before them in front.

    Attributes:
        number: of the document in the input, from 0.
    """

    tokens: list[int]
    number: int
    document: Document


def _one(run: Run, text: str) -> Iterator[Cut]:
    from pyro_ltm.data import Document
    from pyro_ltm.inference.generation import encode_for

    yield Cut(encode_for(run.parts, run.tokenizer, text), 0, Document(text, "--text"))


def _cut(run: Run, source: Source) -> Iterator[Cut]:
    """Each document's tokens in sequences that the model can read."""
    from pyro_ltm.data import Document
    from pyro_ltm.data.tokenizer.cutting import encodable_pieces

    most = run.config.model.max_length - 1
    number, current = -1, Document("", source.spec)
    before, held = run.tokenizer.end_of_text, list[int]()
    read = (("", document) for document in source.read())
    for _, document in encodable_pieces(read, cut=run.tokenizer.pipeline.has_cut_points):
        if not document.continues:
            if held:
                yield Cut([before, *held], number, current)
            number, current = number + 1, document
            before, held = run.tokenizer.end_of_text, []
        held += run.tokenizer.encode(document.text)
        while len(held) > most:
            yield Cut([before, *held[:most]], number, current)
            before, held = held[most - 1], held[most:]
    if held:
        yield Cut([before, *held], number, current)


def _fit(
    run: Run, sequences: Iterator[Cut], batch_size: int, steps: int | None, seed: int, report: Reporter
) -> tuple[dict[str, Tensor], list[str], list[dict[str, Any]]]:
    """What the file is to hold, how each text begins, and what each document is called."""
    import torch

    from pyro_ltm.inference import continuation
    from pyro_ltm.noise import fold
    from pyro_ltm.types import Batch

    kept: dict[str, list[Any]] = {}
    texts: list[str] = []
    documents: dict[int, dict[str, Any]] = {}
    count = report.counting("infer", None)
    while cuts := list(itertools.islice(sequences, batch_size)):
        group = [cut.tokens for cut in cuts]
        batch = Batch.from_lists(group, pad=run.tokenizer.end_of_text)
        # A sequence's noise is keyed by its place in the input, so that batches change nothing.
        batch = dataclasses.replace(batch, ids=torch.arange(len(texts), len(texts) + len(group)))
        batch = batch.to(run.parts.device)
        posterior = run.parts.fit(batch, steps=steps, seed=fold(seed, "fit"))
        terms = run.parts.score(batch, posterior, particles=DRAWS, seed=seed)
        entry = {
            "thoughts": posterior.mean(),
            "bound_nats": -(terms.distortion + terms.rate),
            "tokens": batch.mask.sum(-1),
            "document": torch.tensor([cut.number for cut in cuts]),
            **{f"state.{name}": value for name, value in posterior.state.items()},
        }
        for name, value in entry.items():
            kept.setdefault(name, []).append(value.detach().cpu())
        texts += [continuation(run.tokenizer, tokens[:1], tokens[1:])[:SHOWN] for tokens in group]
        for cut in cuts:
            called: dict[str, Any] = {"document": cut.number, "origin": cut.document.origin}
            called |= {} if cut.document.id is None else {"id": cut.document.id}
            documents.setdefault(cut.number, called)
        count(len(texts), math.nan)
    return {name: torch.cat(values) for name, values in kept.items()}, texts, list(documents.values())
