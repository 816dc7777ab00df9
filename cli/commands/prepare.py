"""`pyro-ltm prepare`: text to token sequences."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    FOLDER,
    Common,
    FiniteRange,
    TokenizerFile,
    common,
    examples,
    number,
    reading_options,
    tokenizer_options,
)

if TYPE_CHECKING:
    from pyro_ltm.data import Reading, TokenFolder


@click.command(
    short_help="Turn text into token sequences.",
    epilog=examples(
        "pyro-ltm prepare python-docs --out data/docs --vocab-size 2048",
        "pyro-ltm prepare worlds:documents=20000 --out data/worlds",
        "pyro-ltm prepare train.jsonl --validation valid.jsonl --text-column body --out data/mine",
        "pyro-ltm prepare hf:roneneldan/TinyStories --tokenizer gpt2/tokenizer.json --out data/stories --workers 8",
        "pyro-ltm prepare --append more.jsonl --out data/mine",
        "pyro-ltm prepare --check --out data/mine",
    ),
)
@click.argument("sources", metavar="SOURCE...", nargs=-1)
@click.option("--out", required=True, type=FOLDER, help="Folder to write.")
@tokenizer_options()
@number("--vocab-size", "Tokens of the byte-level BPE to train.", least=257, default=2048)
@number("--sequence-length", "Tokens predicted in one sequence.", default=128)
@click.option(
    "--packing",
    type=click.Choice(["auto", "contiguous", "document"]),
    default="auto",
    help="Blocks of one stream, or no more than one document in a sequence (padded and masked); auto: document for "
    "worlds and in-context tasks, else contiguous.",
)
@click.option(
    "--validation", "validation_sources", metavar="SOURCE", multiple=True, help="Text to validate on. Repeatable."
)
@click.option(
    "--validation-fraction",
    metavar="X",
    type=FiniteRange(0, 0.9),
    default=0.1,
    help="Share of the text to hold out.",
)
@number("--sequences", "Stop reading once there are so many to train on.")
@reading_options
@click.option("--overwrite", is_flag=True, help="Replace a folder that was prepared before.")
@click.option("--append", is_flag=True, help="Add text to train on to a folder that was prepared before.")
@click.option("--check", is_flag=True, help="Read a folder that was prepared in full, and say whether it is damaged.")
@number("--workers", "Processes that make tokens of the text; 1: the threads of one.", default=1)
@click.option("--streaming/--download", default=True, help="How to fetch a Hugging Face data set.")
@common(seed_help="Seed of the choice of documents to hold out.", unused=("device", "dtype"))
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    sources: tuple[str, ...],
    out: Path,
    tokenizer_file: TokenizerFile,
    reading: Reading,
    streaming: bool,
    append: bool,
    check: bool,
    workers: int,
    common: Common,
    **how: Any,
) -> None:
    """Turns text into a folder of token sequences that `train --data` and `evaluate --data` read.

    SOURCE is a file (.txt, .md, .jsonl, .ndjson, .json, .csv, .tsv, .parquet, each also as .gz, .bz2, .xz or .zst; any
    other suffix as plain text), a folder of them, a quoted glob, a built-in corpus (python-docs; worlds, or
    worlds:size=4,length=15,documents=10000,seed=0; in-context:TASK), or a Hugging Face data set (hf:org/name). Of a
    folder or a glob, each real file is read once, and those that are not read are named. The folder appears whole or
    not at all; of a long text, a prepare that was stopped or killed goes on where it was when the same command is given
    again. After a signal such as SIGTERM the exit code is 128 + its number, for the folder is not there.
    """
    _exclude(ctx, "tokenizer", "vocab_size")
    _exclude(ctx, "validation_sources", "validation_fraction")
    _check_task(ctx, sources, append, check)
    from pyro_ltm import data

    from ..progress import reporter

    if check:
        _show_checked(data.check(out), out, common.as_json)
        return
    reading = dataclasses.replace(reading, streaming=streaming)
    with _kept(out), reporter() as report:
        watch: dict[str, Any] = {"reading": reading, "workers": workers, "progress": report.preparing}
        if append:
            folder = data.append(sources, out, **watch)
        else:
            how |= {"tokenizer": tokenizer_file.load(), "sequences": how["sequences"] or 0}
            folder = data.prepare(sources, out, seed=common.seed or 0, **watch, **how)
    _show(folder, out, common.as_json)


OF_THE_FOLDER = (
    *("tokenizer", "end_of_text", "vocab_size", "sequence_length", "packing"),
    *("validation_sources", "validation_fraction", "sequences", "overwrite"),
)
"""Parameters that a folder has decided once it is there."""


def _check_task(ctx: click.Context, sources: tuple[str, ...], append: bool, check: bool) -> None:
    """Raises a usage error for options that do not go together."""
    given = [param for param in ctx.command.params if param.name and _is_given(ctx, param.name)]
    if append and check:
        raise click.UsageError("--append and --check exclude each other: give one of them", ctx)
    if check and sources:
        raise click.UsageError(f"--check reads the folder --out alone: leave {sources[0]} out", ctx)
    if not check and not sources:
        raise click.UsageError("Missing argument 'SOURCE...'.", ctx)
    if append or check:
        task = "--append" if append else "--check"
        for param in given:
            if param.name in OF_THE_FOLDER:
                raise click.UsageError(f"{task} takes the folder as it is: leave {param.opts[0]} out", ctx)


@contextlib.contextmanager
def _kept(out: Path) -> Iterator[None]:
    """Says, where the block is stopped, what of its work is kept."""
    from pyro_ltm.data.preparation import kept

    from ..output import note

    try:
        yield
    except BaseException as error:
        if (place := kept(out)) and str(place) not in str(error):
            note(f"What is done is kept in {place}: the same command goes on from there; remove it to begin anew.")
        raise


def _show_checked(folder: TokenFolder, out: Path, as_json: bool) -> None:
    """The files that were read."""
    from ..output import emit, say

    files = [entry for part in (folder, *folder.appended) for entry in part.own["files"].values()]
    size = sum(entry["bytes"] for entry in files)
    if as_json:
        emit({"out": str(out), "files": len(files), "bytes": size, "fingerprint": folder.fingerprint})
    else:
        say(f"{out}: {len(files):,} files, {size:,} bytes, are as they were written.")


def _described(folder: TokenFolder) -> dict[str, Any]:
    """The folder of tokens, for JSON."""
    from pyro_ltm.data import TokenDataset

    from ..sources import SAID

    keys = ("sources", "validation_sources", "split_rule", "packing", "sequence_length", "vocab_size", "splits", *SAID)
    no_bytes = {split: why for split in folder.splits if (why := TokenDataset(folder, split).why_no_bytes)}
    return {**{key: folder.meta[key] for key in keys}, "no_bytes": no_bytes, "fingerprint": folder.fingerprint}


def _show(folder: TokenFolder, out: Path, as_json: bool) -> None:
    from pyro_ltm.data import TokenDataset

    from ..output import emit, say, show_next, show_table
    from ..sources import remarks

    if as_json:
        emit({"out": str(out), **_described(folder)})
        return
    columns = ("documents", "sequences", "tokens", "bytes")
    rows = [[split, *(f"{counts[key]:,}" for key in columns)] for split, counts in folder.meta["splits"].items()]
    title = f"{folder.vocab_size:,} tokens, sequences of {folder.sequence_length}, {folder.meta['packing']}"
    show_table(title, ["split", *columns], rows)
    say(f"Split: {folder.meta['split_rule']}.")
    for line in remarks(folder.meta):
        say(line)
    for split in folder.splits:
        if not TokenDataset(folder, split).why_no_bytes:
            unknown = folder.meta["splits"][split]["unknown_tokens"]
            say(f"Text and tokens of {split}: each text comes back from its tokens, {unknown:,} of them unknown.")
    say(f"Written to {out}")
    show_next(["pyro-ltm", "train", "--data", str(out), "--out", "runs/first"])


def _exclude(ctx: click.Context, first: str, second: str) -> None:
    """Raises a usage error when both options were given."""
    if all(_is_given(ctx, name) for name in (first, second)):
        names = [param.opts[0] for name in (first, second) for param in ctx.command.params if param.name == name]
        raise click.UsageError(f"{names[0]} and {names[1]} exclude each other: give one of them", ctx)


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
