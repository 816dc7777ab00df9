"""Prompts in a file: a text a line, or records; and how people went on from them, where that is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_ltm.data import Document, Reading, Tokenizer, read_source
from pyro_ltm.data.readers import has_columns, read_file, streams
from pyro_ltm.data.tokenizer.cutting import whole_documents
from pyro_ltm.errors import UserError
from pyro_ltm.inference import Generated, continuation
from pyro_ltm.inference.codec import INCOMPLETE
from pyro_ltm.inference.generation import room_after
from pyro_ltm.runs.run import Run

COLUMNS = ("prompt", "text")
"""Columns of prompts where none is named: the first that the file has."""


@dataclass(frozen=True)
class Prompt:
    """A text to go on from.

    Attributes:
        id: what its file calls it; else its number there, from 1.
        origin: where it stands, for messages.
        truth: how a person went on; None where that is not known.
    """

    text: str
    id: str | int
    origin: str
    truth: str | None = None


def read_prompts(path: Path, *, reading: Reading | None = None, truth: str | None = None) -> list[Prompt]:
    """The prompts in a file.

    Args:
        path: records with columns (.jsonl, .csv, .parquet, ...), or any other file, whose lines are the prompts.
        reading: how to read it; where it names no column of the text, that is the first of `COLUMNS`.
        truth: the column of the true continuations; None: they are not read.

    Raises:
        UserError: the file cannot be read, or has no such columns or no prompts, or one is empty; with its line.
    """
    reading = reading or Reading()
    if not path.exists():
        raise UserError(f"{path}: no such file: expected a text a line, or records with a 'prompt'")
    if has_columns(path):
        column = reading.text_column or _column(path, reading)
        others = () if truth is None else (truth,)
        documents = list(read_file(path, dataclasses.replace(reading, text_column=column, columns=others)))
    else:
        if named := reading.text_column or truth:
            raise UserError(f"{path}: lines of text have no column '{named}': expected a .jsonl, .csv or .parquet file")
        documents = list(_lines(path, reading))
    prompts = []
    for number, document in enumerate(documents, 1):
        if not document.text.strip():
            if reading.skip_empty:
                continue
            raise UserError(f"{document.origin}: an empty prompt: write one, or leave it out (--skip-empty does)")
        true = None if truth is None else _truth(document, truth)
        prompts.append(Prompt(document.text, number if document.id is None else document.id, document.origin, true))
    if not prompts:
        raise UserError(f"{path}: no prompts in it")
    return prompts


def cut_documents(
    source: str, tokenizer: Tokenizer, tokens: int, *, reading: Reading | None = None
) -> tuple[list[Prompt], int]:
    """Documents cut after so many tokens: prompts with what followed; and how many were too short to be cut.

    A character whose bytes lie on both sides belongs to what followed.

    Raises:
        UserError: the source cannot be read, or none of its documents is long enough.
    """
    prompts, short = [], 0
    for number, document in enumerate(whole_documents(read_source(source, reading)), 1):
        ids = tokenizer.encode(document.text)
        text = tokenizer.decode(ids[:tokens]).rstrip(INCOMPLETE)
        if len(ids) <= tokens or not text.strip():
            short += 1
            continue
        if document.text.startswith(text):
            truth = document.text[len(text) :]
        else:  # the tokenizer does not give texts back as they were
            truth = continuation(tokenizer, ids[:tokens], ids[tokens:])
        prompts.append(Prompt(text, number if document.id is None else document.id, document.origin, truth))
    if not prompts:
        raise UserError(f"{source}: none of its {short} documents has more than {tokens} tokens to cut after")
    return prompts, short


def check_prompts(run: Run, prompts: Sequence[Prompt], max_new_tokens: int | None) -> None:
    """Raises UserError, with its line, for a prompt that the run cannot go on from by so many new tokens."""
    for prompt in prompts:
        try:
            room_after(run.model, run.tokenizer, prompt.text, max_new_tokens)
        except UserError as error:
            raise UserError(f"{prompt.origin}: {error}") from None


def rows_of(prompts: Sequence[Prompt], written: Sequence[Generated], seed: int) -> Iterator[dict[str, Any]]:
    """A row for each text, for JSON; `written` has equally many texts after each prompt, in their order."""
    num = len(written) // len(prompts)
    for place, one in enumerate(written):
        row = {
            "id": prompts[place // num].id,
            "prompt": one.prompt,
            "continuation": one.text,
            "sample": place % num,
            "tokens": one.tokens,
            "ended": one.ended,
            "seed": seed,
        }
        yield row | scores_of(one)


def scores_of(one: Generated) -> dict[str, Any]:
    """The drafts of rethinking, for JSON, which has no infinity; nothing where there was none."""
    scores = [score if math.isfinite(score) else None for score in one.scores]
    return {"kept": one.kept, "scores": scores, "drafts": list(one.drafts)} if scores else {}


def _column(path: Path, reading: Reading) -> str:
    """The column of prompts: of `COLUMNS`, the first that the first record has."""
    for name in COLUMNS:
        try:
            next(read_file(path, dataclasses.replace(reading, text_column=name, skip_empty=False)), None)
        except UserError:
            continue
        return name
    return COLUMNS[0]  # reading says what there is instead


def _lines(path: Path, reading: Reading) -> Iterator[Document]:
    with streams.readable(path):
        for number, line in streams.lines(path, reading.record_limit):
            yield Document(line.rstrip("\r\n"), f"{path}:{number}")


def _truth(document: Document, column: str) -> str:
    value = document.columns[column]
    if not isinstance(value, str) or not value:
        raise UserError(f"{document.origin}: '{column}' is {value!r}: expected the true continuation, a text")
    return value


__all__ = ["Prompt", "check_prompts", "cut_documents", "read_prompts", "rows_of", "scores_of"]
