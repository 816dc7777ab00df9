"""Which preset trains given data where none is named: for long texts the one made for them (docs/results.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyro_ltm.data import worlds
from pyro_ltm.data.folder import TokenFolder, is_token_folder
from pyro_ltm.data.sources import text_sizes

LONG = 1024
"""Tokens: longer sequences are long."""
SENTENCES = 128
"""Of a world's document of so many tokens."""
TEXT, DOCUMENT = 1_000_000, 8_000
"""Bytes: plain text is long from so many on, where its files have on average so many. The shortest that the preset was
judged on has 1.1 million, in one file."""


def preset_for(data: str | Path | Sequence[str] | None) -> str:
    """`nano-long` for long texts, else `nano`.

    Args:
        data: a folder that `prepare` wrote, or sources of text (`read_source`). Of text that is not prepared, plain
            files and worlds are looked at; rows, records and data sets are taken for short.

    Raises:
        UserError: a prepared folder is damaged, or a world has an option that is none.
    """
    sources = [str(data)] if isinstance(data, str | Path) else list(data or [])
    if len(sources) == 1 and is_token_folder(sources[0]):
        is_long = TokenFolder.open(sources[0]).sequence_length > LONG
    elif sources and all(map(worlds.is_world, sources)):
        is_long = min(worlds.parse(source)["length"] for source in sources) > SENTENCES
    else:
        sizes = [text_sizes(source) for source in sources]
        bytes_ = [size for its in sizes for size in its]
        is_long = all(sizes) and sum(bytes_) >= max(TEXT, DOCUMENT * len(bytes_))
    return "nano-long" if is_long else "nano"
