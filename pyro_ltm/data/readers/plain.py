r"""Plain text: one document a file, in pieces that tokenize as the whole does.

Text is taken as it is, but for two things: a UTF-8 byte order mark is dropped, and line ends are read the way Python
reads text, so that `\r\n` and `\r` become `\n` and a file gives the same tokens wherever it was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyro_ltm.data.documents import Document
from pyro_ltm.data.readers import streams
from pyro_ltm.data.tokenizer.cutting import last_cut_point

LONG_LINE = 1 << 16
"""Characters without a line to cut at, from which on text is cut between words."""


def read_plain(path: Path, limit: int) -> Iterator[Document]:
    """A plain text file as one document, its pieces cut at lines, or in long ones between words (`last_cut_point`).

    Args:
        limit: bytes of the longest line that has no place to cut it; a longer one raises UserError.
    """
    pending, continues = "", False
    for line, text, last in streams.pieces(path, translate=True):
        searched = max(len(pending) - 2, 0)
        long_already = len(pending) > LONG_LINE
        pending += text
        if last:
            break
        cut = cut_place(pending, searched)
        if not cut and len(pending) > LONG_LINE:
            start = searched if long_already else 0
            cut = start + at if (at := last_cut_point(pending[start:])) else 0
        if cut:
            yield Document(pending[:cut], str(path), continues)
            pending, continues = pending[cut:], True
        elif len(pending) > limit:
            where = f"{path}:{line - pending.count(chr(10))}"
            raise streams.too_long(where, limit, "line without a space to cut it at,")
    if pending:
        yield Document(pending, str(path), continues)


def cut_place(text: str, start: int = 0) -> int:
    """The last place to cut `text` so that both sides tokenize as the whole does; 0 if there is none.

    Looks at newlines from `start` on. After a lone newline between two words, or before the one space that begins a
    line, the patterns of GPT-2, GPT-4 and Llama 3 always split, and would at an end of text. Where lines are parted by
    blank ones only, the cut goes before the last newline, which is exact for GPT-2's pattern.
    """
    fallback = 0
    at = text.rfind("\n", start, len(text) - 2) if len(text) > 2 else -1
    while at > 0:
        after, before = text[at + 1], text[at - 1]
        if (after == " " and not text[at + 2].isspace()) or not (after.isspace() or before.isspace()):
            return at + 1
        if not after.isspace():
            fallback = fallback or at
        at = text.rfind("\n", start, at)
    return fallback
