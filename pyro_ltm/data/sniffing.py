"""Files that do not hold the text that their names promise, recognised by their first bytes."""

from __future__ import annotations

import re
from pathlib import Path

from pyro_ltm.data.documents import Reading
from pyro_ltm.data.readers import SUFFIXES, has_columns
from pyro_ltm.data.readers.records import is_object
from pyro_ltm.data.readers.streams import COMPRESSIONS, kind_of

HEAD = 1 << 16
"""Bytes of a file that are looked at."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_MAGIC = {
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a ZIP archive, as office documents are too",
    b"\x1f\x8b": "compressed by gzip, so its name has to end in .gz",
    b"BZh": "compressed by bzip2, so its name has to end in .bz2",
    b"\xfd7zXZ\0": "compressed by xz, so its name has to end in .xz",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard, so its name has to end in .zst",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"PAR1": "a Parquet file, so its name has to end in .parquet",
    b"ARROW1": "an Arrow file; write it as .parquet or .jsonl",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x7fELF": "a program",
    b"{\\rtf": "a document in the Rich Text Format",
    b"SQLite format 3\0": "a database",
}
_ARCHIVES = (".tar", ".tgz", ".zip", ".7z", ".rar")
_HTML = re.compile(rb"\s*(<!doctype\s+html|<html\b)", re.IGNORECASE)
_CARD = re.compile(r"^(license|dataset_info|configs|task_categories|pretty_name)\s*:", re.MULTILINE)


def why_not_text(path: Path, reading: Reading, *, named: bool, folder: bool = False) -> str:
    """Why a file is not to be read; empty where it is.

    Args:
        named: by its own name, and not found in a folder or by a glob.
        folder: found in a folder, of whose files only some kinds are read.
    """
    kind = kind_of(path)
    if folder and kind not in SUFFIXES:
        return "of a kind that is read only where it is named itself"
    if kind in _ARCHIVES:
        return "an archive; unpack it and name what was in it"
    if not path.is_file():  # reading says what is wrong with it
        return ""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head.startswith(_POINTER):
        return "a pointer of Git LFS in place of the file; `git lfs pull` fetches it"
    compressed = path.suffix.lower() in COMPRESSIONS
    if has_columns(path):
        if not named and not compressed and kind == ".json" and _is_one_object(head, reading.column):
            return "one JSON object, which is no list of records"
        return "the figures of a training run, not text" if not named and _is_metrics(path, head, reading) else ""
    if reading.first_named is not None:
        like = "; it looks like JSON: name it .jsonl or .json" if head.lstrip()[:1] in (b"{", b"[") else ""
        return f"plain text, which has no column '{reading.first_named}'{like}"
    return "" if compressed else _no_prose(path, kind, head, named)


def _no_prose(path: Path, kind: str, head: bytes, named: bool) -> str:
    """Why plain text is none, by how it begins."""
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return f"{what}, not plain text"
    if kind in (".txt", ".md"):
        if _HTML.match(head):
            return "a page of HTML, not plain text; a name that ends in .html reads it as it is"
        if not named and path.name.lower() == "readme.md" and _is_card(head):
            return "the card of a data set, not its text"
    elif is_object(head.partition(b"\n")[0].decode("utf-8", errors="replace")):
        return "JSON records, not plain text: name it .jsonl (or .txt, to learn the JSON itself)"
    return ""


def _is_metrics(path: Path, head: bytes, reading: Reading) -> bool:
    """Whether it is the `metrics.jsonl` that a run writes."""
    first = head.partition(b"\n")[0]
    return path.name == "metrics.jsonl" and b'"step"' in first and f'"{reading.column}"'.encode() not in first


def _is_card(head: bytes) -> bool:
    """Whether a file begins with the front matter that Hugging Face reads."""
    lines = head.decode("utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return False
    return _CARD.search("\n".join(lines[1 : lines.index("---", 1)])) is not None


def _is_one_object(head: bytes, column: str) -> bool:
    """Whether a .json file holds a single object, such as settings, and not records with this column."""
    text = head.decode("utf-8-sig", errors="replace").strip()
    first, line_end, rest = text.partition("\n")
    if not text.startswith("{") or (not line_end and len(head) == HEAD):  # of a longer line reading will say more
        return False
    return not is_object(first) or (not rest and f'"{column.split(".")[0]}"' not in first)
