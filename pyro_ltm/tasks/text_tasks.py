"""Texts to score without training on them: a TOML file of tasks, and figures by the word and by the byte.

Nats a token depend on the tokenizer. Two models are compared by the nats of the whole text over something that does
not: its bytes, or its words, both counted in the text as it was published, before any `detokenise`. Word perplexity is
exp(total nats / words), as usually reported. How words are counted is a convention of each text:

- `whitespace`: what stands between white space, as the evaluation harness counts them;
- `with-line-ends`: those, and one end-of-line token a line, as WikiText and the Penn Treebank are counted in print
  (Merity et al., arXiv:1609.07843: 245,569 tokens in WikiText-2's test file).

Published figures of models that read ordinary text are of a text made ordinary again (Radford et al. 2019), still over
the words of the original: that is `detokenise`. What it drops is not charged, so such a figure is of the text that was
scored; with "none" it is of the text itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pyro_ltm.config import check_ranges, option, suggest
from pyro_ltm.data import Document, Reading, TokenDataset, Tokenizer, prepare, read_source
from pyro_ltm.data.corpora import for_scoring, is_corpus, is_drawn
from pyro_ltm.data.documents import TEXT
from pyro_ltm.data.sources import HUB
from pyro_ltm.data.worlds import is_world
from pyro_ltm.errors import UserError
from pyro_ltm.files import clear_errors
from pyro_ltm.reading import read_toml
from pyro_ltm.scores.dependence import Blocks
from pyro_ltm.scores.estimate import Figure, perplexity

_CLOSING = re.compile(r" ([,.;:!?%)\]}]|'(?:s|t|m|d|re|ve|ll)\b)")
_OPENING = re.compile(r"([(\[{$£]) ")


def _plain(text: str) -> str:
    """Text as it is."""
    return text


def _wikitext(text: str) -> str:
    """WikiText without the spaces that its tokenizer set: `1 @,@ 000 ( a )` is `1,000 (a)`, headings are `== a ==`."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = _OPENING.sub(r"\1", _CLOSING.sub(r"\1", text))
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    text = re.sub(r"=(?: =)+", lambda found: found[0].replace(" ", ""), text)
    return re.sub(r" *\n *", "\n", text).strip(" ")


def _treebank(text: str) -> str:
    """Penn Treebank or LM1B text without the spaces that its tokenizer set: `do n't pay $ N` is `don't pay $N`."""
    text = re.sub(r" (n't)\b", r"\1", re.sub(r"`` ?| ?''", '"', text))
    text = _OPENING.sub(r"\1", _CLOSING.sub(r"\1", text))
    return re.sub(r" *\n *", "\n", text).strip(" ")


DETOKENISERS: dict[str, Callable[[str], str]] = {"none": _plain, "wikitext": _wikitext, "ptb": _treebank}
WORDS = ("whitespace", "with-line-ends")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A text to score, and how."""

    name: str
    source: str = option("", "file, folder, glob, corpus or hf: data set; paths are relative to the file of tasks")
    text_column: str = option(TEXT, "column or JSON field that holds the text")
    delimiter: str = option("", "between the fields of a .csv or .tsv file; empty: found")
    skip_empty: bool = option(False, "leave out records whose text is null")
    split: str = option("test", "split of a Hugging Face data set")
    words: str = option("whitespace", "how words are counted", choices=WORDS)
    detokenise: str = option("none", "whose tokenizer's spaces to take out before scoring", choices=tuple(DETOKENISERS))
    packing: str = option("contiguous", "how documents fill sequences", choices=("contiguous", "document"))
    sequence_length: int = option(0, "tokens predicted in one sequence; 0: as in the run's data", low=0, high=1 << 24)
    sequences: int = option(0, "score only so many, from the first; 0: all", low=0, high=1 << 40)

    def __post_init__(self) -> None:
        check_ranges(self, f"tasks.{self.name}")
        if not self.source:
            raise UserError(f"tasks.{self.name}.source is missing: name the text to score")

    @property
    def reading(self) -> Reading:
        """How its source is read."""
        named = None if self.text_column == TEXT else self.text_column
        return Reading(
            text_column=named, delimiter=self.delimiter or None, skip_empty=self.skip_empty, split=self.split
        )

    @property
    def is_world(self) -> bool:
        """Whether the text is a world's."""
        return is_world(self.source)

    @property
    def why_no_floor(self) -> str:
        """Why a world's text, scored so, has no floor; empty where nothing here stands against one."""
        if self.is_world and self.detokenise != "none":
            return f'detokenise = "{self.detokenise}" changes its text'
        if self.is_world and self.packing != "document":
            return 'its documents run into one another: set packing = "document"'
        return ""


@dataclass(frozen=True)
class TextCounts:
    """The original text's documents, words and UTF-8 bytes, by which figures are divided."""

    documents: int = 0
    words: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Level:
    """One figure of a task.

    Attributes:
        nats_per_token: total nats / total tokens. nats_per_token_stderr: its standard error. blocks: over what it was
            taken. The rest is NaN where the tokens do not determine the text.
        bits_per_byte: total bits / bytes of the original text. bits_per_byte_stderr: its standard error, for this
            number of bytes.
        nats_per_word: total nats / words of the original text. word_perplexity: exp of it.
        word_perplexity_stderr: its standard error, linearized.
    """

    nats_per_token: float
    nats_per_token_stderr: float
    blocks: Blocks
    bits_per_byte: float
    bits_per_byte_stderr: float
    nats_per_word: float
    word_perplexity: float
    word_perplexity_stderr: float

    @classmethod
    def of(cls, figure: Figure, tokens: int, counts: TextCounts | None) -> Level:
        """The figure of a text of so many tokens; without `counts`, where they do not determine it, by the token."""
        by_word = by_byte = math.nan
        if counts:
            by_word, by_byte = tokens / max(counts.words, 1), tokens / max(counts.bytes, 1) / math.log(2)
        nats, stderr = figure.nats_per_token, figure.nats_per_token_stderr
        word_perplexity = perplexity(nats * by_word)
        return cls(
            nats_per_token=nats,
            nats_per_token_stderr=stderr,
            blocks=figure.blocks,
            bits_per_byte=nats * by_byte,
            bits_per_byte_stderr=stderr * by_byte,
            nats_per_word=nats * by_word,
            word_perplexity=word_perplexity,
            word_perplexity_stderr=word_perplexity * stderr * by_word,
        )


def load_tasks(path: Path | str, only: tuple[str, ...] = ()) -> list[Task]:
    """The tasks in a TOML file, each a table `[tasks.NAME]`; their sources are found, though not yet read.

    Of worlds and in-context tasks new documents are named, unless its options say which (see `for_scoring`).

    Args:
        only: names of those wanted; none: all.

    Raises:
        UserError: no such file, no TOML, an unknown key, name or value, or a source that is not there.
    """
    path = Path(path)
    try:
        document = read_toml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of tasks") from None
    tables = document.pop("tasks", None)
    if document:
        key = next(iter(document))
        raise UserError(f"{path}: unknown key {key}{suggest(key, ['tasks'])}: each task is a table [tasks.NAME]")
    if not isinstance(tables, Mapping) or not tables:
        raise UserError(f"{path}: no tasks in it: each is a table [tasks.NAME] with a source")
    if strange := [name for name in only if name not in tables]:
        raise UserError(f"{path}: no task '{strange[0]}'{suggest(strange[0], tables)}: it has {', '.join(tables)}")
    try:
        tasks = [_task(name, table, path.parent) for name, table in tables.items() if not only or name in only]
        for task in tasks:
            if not is_corpus(task.source):  # those are always there
                read_source(task.source, task.reading)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return tasks


def prepare_task(task: Task, tokenizer: Tokenizer, length: int, folder: Path) -> tuple[TokenDataset, TextCounts]:
    """The task's text as sequences of `length` tokens, written below `folder`, and the counts of the original.

    A world's text that is scored as it stands keeps its source's name in the folder, by which its floor is known.

    Raises:
        UserError: bad input, or no space left.
    """
    texts = folder / "text"
    with clear_errors(texts):
        texts.mkdir(parents=True)
        pieces = read_source(task.source, task.reading)
        counts = _write(pieces, texts, DETOKENISERS[task.detokenise], with_lines=task.words == "with-line-ends")
    as_it_is = task.is_world and task.detokenise == "none"
    prepared = prepare(
        [task.source if as_it_is else str(texts)],
        folder / "tokens",
        tokenizer=tokenizer,
        sequence_length=task.sequence_length or length,
        packing=task.packing,
        validation_fraction=0.0,
    )
    return TokenDataset(prepared), counts


def _task(name: str, table: Any, folder: Path) -> Task:
    """The task of one table, its source made absolute."""
    known = [entry.name for entry in dataclasses.fields(Task) if entry.name != "name"]
    if not isinstance(table, Mapping):
        raise UserError(f"tasks.{name}: expected a table [tasks.{name}] with a source")
    for key in table:
        if key not in known:
            raise UserError(f"unknown key tasks.{name}.{key}{suggest(key, known)}: known are {', '.join(known)}")
    task = Task(name=name, **table)
    return dataclasses.replace(task, source=_resolve(task.source, folder))


def _resolve(source: str, folder: Path) -> str:
    """`source` relative to the folder of the file of tasks, where it is a path."""
    if source.startswith(HUB):
        local = folder / os.path.expanduser(source[len(HUB) :])
        return f"{HUB}{local}" if local.is_dir() else source
    if is_corpus(source):
        return for_scoring(source) if is_drawn(source) else source
    return os.path.normpath(folder / os.path.expanduser(source))


def _write(
    pieces: Iterator[Document], folder: Path, detokenise: Callable[[str], str], *, with_lines: bool
) -> TextCounts:
    """Writes the texts as files that are read back as the same documents, in the same order; counts the originals.

    Words do not reach across the pieces of plain text; a detokeniser's rules do not reach across lines.
    """
    documents = words = size = files = 0
    with contextlib.ExitStack() as stack:
        file: IO[str] | None = None
        suffix = ""
        for document, goes_on, text in _detokenised(pieces, detokenise):
            words += len(document.text.split()) + (_line_ends(document.text, goes_on) if with_lines else 0)
            size += len(document.text.encode("utf-8"))
            documents += not document.continues
            # A document in several pieces is a plain text file of its own, any other a line of JSON.
            wanted = ".txt" if document.continues or goes_on else ".jsonl"
            if file is None or suffix != wanted or (wanted == ".txt" and not document.continues):
                stack.close()
                files, suffix = files + 1, wanted
                file = stack.enter_context(open(folder / f"{files:08}{wanted}", "w", encoding="utf-8", newline=""))
            file.write(text if wanted == ".txt" else json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return TextCounts(documents, words, size)


def _ahead(pieces: Iterator[Document]) -> Iterator[tuple[Document, bool]]:
    """Each piece, and whether the next one goes on with its document."""
    last: Document | None = None
    for piece in pieces:
        if last is not None:
            yield last, piece.continues
        last = piece
    if last is not None:
        yield last, False


def _detokenised(pieces: Iterator[Document], detokenise: Callable[[str], str]) -> Iterator[tuple[Document, bool, str]]:
    """Each piece, whether the next one goes on with its document, and its text without its tokenizer's spaces.

    Of a line that comes in several pieces all text stands with the last one.
    """
    held: list[str] = []
    for piece, goes_on in _ahead(pieces):
        held.append(piece.text)
        is_whole = detokenise is _plain or piece.text.endswith("\n") or not goes_on
        yield piece, goes_on, detokenise("".join(held)) if is_whole else ""
        held = [] if is_whole else held


def _line_ends(text: str, goes_on: bool) -> int:
    """Lines that end in a piece, the document's last one among them though it has no end."""
    return text.count("\n") + (not goes_on and bool(text) and not text.endswith("\n"))
