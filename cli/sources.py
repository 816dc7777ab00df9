"""Remarks on sources of text: what was read, what was not and why, and what is there twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_ltm.data import Reading

SAID = (
    "text_column",
    "delimiters",
    "files_read",
    "files_skipped",
    "documents_without_text",
    "duplicate_documents",
    "validation_documents_in_training",
)
"""Keys of meta.json about them. A folder that an earlier release prepared has none of it."""


def note_skipped(spec: str, reading: Reading, name: str) -> None:
    """Says on stderr, after `name`, which files of a source are not read. On the Hub that is for others to say."""
    from pyro_ltm.data.sources import HUB, find_source, listed

    from .output import note

    for line in remarks({} if spec.startswith(HUB) else listed([find_source(spec, reading)])):
        note(f"{name}: {line}")


def remarks(meta: Mapping[str, Any]) -> Iterator[str]:
    """Lines on what a user may not expect of the text that was prepared, from its meta.json."""
    from pyro_ltm.data.finding import Skipped, reasons
    from pyro_ltm.data.tokenizer.round_trip import RoundTrip

    skipped = meta.get("files_skipped", {"count": 0, "first": []})
    if skipped["count"]:
        read, listed = meta["files_read"]["count"], skipped["first"]
        yield f"Files read: {read:,}; not read: {skipped['count']:,}."
        yield from (f"  {line}" for line in reasons([Skipped(Path(one["path"]), one["why"]) for one in listed]))
    for split, counts in meta.get("splits", {}).items():
        if counts.get("changed_documents"):
            why = RoundTrip.of_counts(counts).why_no_bytes
            yield f"Text and tokens of {split}: {why}, so there are no figures by the byte or the word."
    if empty := meta.get("documents_without_text", 0):
        yield f"Left out: {empty:,} documents without text."
    for split, count in meta.get("duplicate_documents", {}).items():
        if count:
            yield f"Duplicates: {count:,} documents of the {split} split have the text of an earlier one."
    if shared := meta.get("validation_documents_in_training", 0):
        yield f"Warning: {shared:,} validation documents are also in training, so validation flatters the model."
