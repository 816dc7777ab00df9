"""Labelled documents to judge thoughts by: texts of four kinds, and two harder sets, each within one vocabulary.

`four-kinds`: word problems (gsm8k), encyclopaedia (WikiText-2), stories (TinyStories), plays (tinyshakespeare), from a
folder that is not in the repository (`--shared`). `proposals`: passages of Python Enhancement Proposals and Rust RFCs,
by the kind of document. `worlds`: documents of the built-in corpus with their true factors. The documents that are
judged and those that a model learns from are others; for proposals, of other proposals.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.data.worlds import NAME, World, for_scoring, is_world, parse
from pyro_ltm.files import write_text

SHORTEST, LONGEST = 120, 160
"""Characters of a document, but for worlds: a paragraph or a passage, cut between two words."""
LEARNED = 1000
"""Documents of each kind to learn from."""
JUDGED = 100
"""Documents of each kind to judge by."""
FEWEST = 40
"""Of proposals, of which one kind has no more; each passage is of a document of its own."""
PASSAGES = 6
"""Of each proposal that is learned from."""


@dataclass(frozen=True)
class Judged:
    """Texts, their labels by name, and the tokens of others like them to learn from."""

    texts: list[str]
    labels: dict[str, list[str]]
    tokens: TokenDataset


def judged(name: str, data: Path, out: Path) -> Judged:
    """The set `name`, made in OUT/NAME where it is not there. `data`: the folder of the real texts."""
    folder = out / name
    if not (folder / "judged.json").exists():
        learn, texts, labels = SETS[name](data)
        folder.mkdir(parents=True, exist_ok=True)
        if not is_world(learn[0]):
            write_text(folder / "learn.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in learn))
            learn = [str(folder / "learn.jsonl")]
        how = {"sequence_length": 128, "packing": "document", "validation_fraction": 0.05}
        prepare(learn, folder / "tokens", vocab_size=1024, **how, overwrite=True)
        write_text(folder / "judged.json", json.dumps({"texts": texts, "labels": labels}) + "\n")
    found = json.loads((folder / "judged.json").read_text(encoding="utf-8"))
    return Judged(found["texts"], found["labels"], TokenDataset(folder / "tokens"))


Parts = tuple[list[str], list[str], dict[str, list[str]]]
"""Texts to learn from, or a world; texts to judge by, and their labels."""


def four_kinds(data: Path) -> Parts:
    """Four vocabularies: a bag of words tells them apart."""

    def read(name: str) -> str:
        return (data / name).read_text(encoding="utf-8")

    kinds = {
        "problem": _questions(data / "gsm8k/train.jsonl"),
        "encyclopaedia": _paragraphs(read("wikitext-2/wiki.train.shuffled.tokens"), " ="),
        "story": _paragraphs(read("tinystories/tiny_stories.txt")),
        "play": _speeches(read("tinyshakespeare/input.txt")),
    }
    learn, texts, label = [], list[str](), list[str]()
    for kind, documents in kinds.items():
        # The end is judged, and what comes before is learned from: no story or article is in both but at the seam.
        every = list(documents)
        rng = random.Random(f"four-kinds {kind}")
        seam = len(every) * 4 // 5
        learn += rng.sample(every[:seam], min(LEARNED, seam))
        texts += rng.sample(every[seam + 5 :], JUDGED)
        label += [kind] * JUDGED
    return learn, texts, {"kind": label}


def proposals(data: Path) -> Parts:
    """One vocabulary, of technical proposals."""
    lines = [
        line
        for name in ("train", "valid")
        for line in (data / f"proposals/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rng = random.Random("proposals")
    rows = [json.loads(line) for line in lines]
    rng.shuffle(rows)
    learn, texts, label, counts = [], list[str](), list[str](), dict[str, int]()
    for row in rows:
        passages = list(_paragraphs(row["text"]))
        if row["kind"] in ("rfc", "standards", "informational", "process") and passages:
            counts[row["kind"]] = counts.get(row["kind"], 0) + 1
            if counts[row["kind"]] <= FEWEST:
                texts.append(rng.choice(passages))
                label.append(row["kind"])
                continue
        learn += rng.sample(passages, min(PASSAGES, len(passages)))
    return learn, texts, {"kind": label}


def worlds(data: Path) -> Parts:
    """A small vocabulary, and factors that most sentences tell nothing of."""
    source = f"{NAME}:documents={4 * LEARNED}"
    stories = list(World().stories(parse(for_scoring(source))["seed"], 4 * JUDGED))
    labels = {name: [story.factors[name] for story in stories] for name in ("subject", "mood")}
    return [source], [story.text for story in stories], labels


SETS: Mapping[str, Callable[[Path], Parts]] = {"four-kinds": four_kinds, "proposals": proposals, "worlds": worlds}


def _questions(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        return _fitting([json.loads(line)["question"] for line in lines])


def _paragraphs(text: str, heading: str = "\0") -> Iterator[str]:
    """Paragraphs that are no headings."""
    return _fitting(part for part in re.split(r"\n\s*\n" if heading == "\0" else "\n", text) if heading not in part[:2])


def _speeches(text: str) -> Iterator[str]:
    """Speeches that follow one another, as many as make a document."""
    gathered: Sequence[str] = ()
    for speech in text.split("\n\n"):
        gathered = (*gathered, speech)
        if sum(map(len, gathered)) >= SHORTEST:
            yield from _fitting(["\n\n".join(gathered)])
            gathered = ()


def _fitting(texts: Iterable[str]) -> Iterator[str]:
    """Those that are long enough, cut between two words."""
    for text in texts:
        if len(text := text.strip()) >= SHORTEST:
            yield text if len(text) <= LONGEST else text[:LONGEST].rsplit(maxsplit=1)[0]
