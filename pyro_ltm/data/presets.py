"""Which preset trains given data where none is named: that which was found for such data (docs/results.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyro_ltm.data import worlds
from pyro_ltm.data.corpora import is_corpus
from pyro_ltm.data.documents import Reading
from pyro_ltm.data.finding import find_files
from pyro_ltm.data.folder import TokenFolder, is_token_folder
from pyro_ltm.data.hub import HUB
from pyro_ltm.data.readers import has_columns
from pyro_ltm.data.sources import sources_of
from pyro_ltm.errors import UserError

LONG = 1024
"""Tokens: longer sequences are long, of a world such as are longer than `DOCUMENT`."""
DOCUMENT, SENTENCES = 128, 15
"""Tokens that `nano-worlds` reads, and sentences of a world that are no more."""
TEXT, FILE = 1_000_000, 8_000
"""Bytes: plain text is long from so many on, where its files have on average so many. The shortest that `nano-long` was
tried on has 1.1 million, in one file."""


def preset_for(data: str | Path | Sequence[str] | None) -> str:
    """The preset of `chosen_preset`."""
    return chosen_preset(data)[0]


def chosen_preset(data: str | Path | Sequence[str] | None) -> tuple[str, str]:
    """The preset that trains such data, and in a few words why: what they are.

    `nano-long` for long texts, `nano-worlds` for short documents of a world, `nano` for all else.

    Args:
        data: a folder that `prepare` wrote, or sources of text (`read_source`). Of text that is not prepared, plain
            files and worlds are looked at; rows, records and data sets are taken for short.

    Raises:
        UserError: a prepared folder is damaged, or a world has an option that is none.
    """
    sources = sources_of(data)
    if len(sources) == 1 and is_token_folder(sources[0]):
        folder = TokenFolder.open(sources[0])
        is_world = worlds.World.of(folder) is not None and folder.meta["packing"] == "document"
        is_long = folder.sequence_length > (DOCUMENT if is_world else LONG)
        long = f"its sequences have {folder.sequence_length:,} tokens"
    elif sources and all(map(worlds.is_world, sources)):
        sentences = max(worlds.parse(source)["length"] for source in sources)
        is_world, is_long = True, sentences > SENTENCES
        long = f"its documents have {sentences} sentences"
    else:
        is_world, sizes = False, [_text_sizes(source) for source in sources]
        files = [size for its in sizes for size in its]
        is_long = all(sizes) and sum(files) >= max(TEXT, FILE * len(files))
        long = f"it is {sum(files) / 1e6:.1f} MB of plain text, {len(files)} file{'s' * (len(files) > 1)}"
    if is_long:
        return "nano-long", long
    if is_world:
        return "nano-worlds", "its documents are a world's, and short"
    return "nano", "it is neither long nor a world's"


def _text_sizes(spec: str) -> list[int]:
    """Bytes of each plain text file of a source (as stored, if compressed); none where it holds anything else."""
    try:
        found = None if spec.startswith(HUB) or is_corpus(spec) else find_files(spec, Reading())
        files = found.files if found else ()
        return [] if any(map(has_columns, files)) else [path.stat().st_size for path in files if path.is_file()]
    except (UserError, OSError):  # what is wrong with it, reading will say
        return []
