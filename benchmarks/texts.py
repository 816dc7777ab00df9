"""The texts of the benchmarks, each in three parts: to learn from, to choose by (validation), to report on (test).

Real text is read from a folder that is not in the repository (`--shared`), with `data/tinyshakespeare/input.txt`
(karpathy/char-rnn), `data/wikitext-2/wiki.{valid,test}.tokens` and `wiki.train.shuffled.tokens` (Merity et al., 2016;
its training articles may stand in any order), and `data/proposals/{train,valid}.jsonl` (Python Enhancement Proposals
and Rust RFCs, a document a line in the field `text`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.data.worlds import for_scoring, is_world
from pyro_ltm.files import write_text

TEST_SHARE = 0.1
"""Of tinyshakespeare, which is one file, the end that is reported on; before it, as much again is validation."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Where the parts of a text come from.

    Attributes:
        label: its name in tables.
        train, validation, test: sources, under the folder of the data; no `validation`: `held_out` of `train`.
        length: tokens T of a sequence at `nano`. batch_size: sequences of a slow step there.
        test_sequences: how many are reported on, from the first.
    """

    label: str
    train: str
    test: str
    validation: str = ""
    held_out: float = 0.1
    length: int = 512
    batch_size: int = 4
    test_sequences: int = 32


@dataclass(frozen=True)
class Parts:
    """The three parts, tokenized alike."""

    train: TokenDataset
    validation: TokenDataset
    test: TokenDataset


TEXTS = {
    "worlds-15": Text(
        label="worlds of 15 sentences",
        train="worlds:documents=20000",
        test="worlds:documents=128",
        length=128,
        batch_size=16,
        test_sequences=128,
    ),
    "tinyshakespeare": Text(label="tinyshakespeare", train="tinyshakespeare/input.txt", test=""),
    "tinyshakespeare-2048": Text(
        label="tinyshakespeare, 2,048 tokens",
        train="tinyshakespeare/input.txt",
        test="",
        length=2048,
        batch_size=1,
        test_sequences=16,
    ),
    "wikitext-2": Text(
        label="WikiText-2",
        train="wikitext-2/wiki.train.shuffled.tokens",
        validation="wikitext-2/wiki.valid.tokens",
        test="wikitext-2/wiki.test.tokens",
    ),
    "wikitext-2-2048": Text(
        label="WikiText-2, 2,048 tokens",
        train="wikitext-2/wiki.train.shuffled.tokens",
        validation="wikitext-2/wiki.valid.tokens",
        test="wikitext-2/wiki.test.tokens",
        length=2048,
        batch_size=1,
        test_sequences=16,
    ),
    "proposals": Text(label="proposals", train="proposals/train.jsonl", test="proposals/valid.jsonl", held_out=0.05),
    "worlds-240": Text(
        label="worlds of 240 sentences",
        train="worlds:length=240,documents=3000",
        test="worlds:length=240,documents=32",
        length=1920,
        batch_size=1,
        test_sequences=32,
    ),
}


def prepared(name: str, data: Path, out: Path, *, length: int = 0, vocab_size: int = 1024) -> Parts:
    """The parts of a text as tokens, in OUT/NAME-V-T, where they stay.

    Args:
        data: the folder of the real texts.
        length: T; 0: the text's own.
    """
    text, length = TEXTS[name], length or TEXTS[name].length
    folder = out / f"{name}-{vocab_size}-{length}"

    def source(of: str) -> str:
        return of if is_world(of) else str(data / of)

    train, test = source(text.train), source(text.test)
    if not text.test:
        train, test = _cut(Path(train), out / name)
    if not (folder / "train").exists():
        validation: dict[str, Any] = {"validation_fraction": text.held_out}
        if text.validation:
            validation = {"validation_sources": [source(text.validation)]}
        prepare([train], folder / "train", vocab_size=vocab_size, sequence_length=length, **validation)
    own = TokenDataset(folder / "train")
    if not (folder / "test").exists():
        same: dict[str, Any] = {
            "tokenizer": own.tokenizer,
            "sequence_length": length,
            "packing": str(own.meta["packing"]),
        }
        test = for_scoring(test) if is_world(test) else test
        prepare([test], folder / "test", **same, validation_fraction=0.0)
    return Parts(own, TokenDataset(folder / "train", "validation"), TokenDataset(folder / "test"))


def _cut(file: Path, folder: Path) -> tuple[str, str]:
    """The beginning of a file and its end as files of their own, cut where a line ends."""
    text = file.read_text(encoding="utf-8")
    at = text.index("\n", int(len(text) * (1 - TEST_SHARE))) + 1
    folder.mkdir(parents=True, exist_ok=True)
    parts = folder / "beginning.txt", folder / "end.txt"
    for path, part in zip(parts, (text[:at], text[at:]), strict=True):
        if not path.exists():
            write_text(path, part)
    return str(parts[0]), str(parts[1])
