"""A folder with one valid file of each kind that is read, and what happens to readers whose file is made wrong."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import lzma
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from helpers import fuzz
from helpers.bases import write_base_without_weights
from helpers.figures import comparison
from helpers.scaling_rows import row

import pyro_ltm as ltm
from pyro_ltm.comparison.comparison_file import save
from pyro_ltm.comparison.scaling.grid import Grid
from pyro_ltm.comparison.scaling.result import Level, open_study, write_row
from pyro_ltm.comparison.scaling.run import Scoring, study_settings
from pyro_ltm.data import TokenDataset
from pyro_ltm.digests import without_digest
from pyro_ltm.files import unfinished
from pyro_ltm.locks import _signature
from pyro_ltm.runs.embedding import embed_texts
from pyro_ltm.runs.embeddings_file import write_embeddings
from pyro_ltm.runs.evaluation_file import write_evaluation
from pyro_ltm.runs.notes import OriginNote, write_note
from pyro_ltm.runs.partial_fits import PartialFits
from pyro_ltm.runs.protocols import evaluate_protocols
from pyro_ltm.runs.run import Run
from pyro_ltm.runs.thoughts_file import write_thoughts

TINY = [
    *("model.dim=16", "model.layers=1", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=1", "slow.steps=2", "slow.batch_size=3"),
    *("slow.eval_every=1", "slow.eval_sequences=4", "slow.save_every=1", "slow.warmup=0"),
]
PREPARED: dict[str, Any] = {"vocab_size": 280, "sequence_length": 16, "packing": "document"}
TEXT = "".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(100))
TASKS = (
    '[tasks.birds]\nsource = "birds.txt"\npacking = "document"\nsequences = 3\n\n[tasks.w]\nsource = "worlds:size=2"\n'
)


@dataclass(frozen=True)
class World:
    """A folder with one valid file of each kind, and what readers need besides.

    Attributes:
        pictures: of how many files that were read the pictures are drawn: one in so many.
    """

    folder: Path
    run: Run
    data: TokenDataset
    pictures: int = 50

    def seldom(self, content: bytes) -> bool:
        """True for one file in `pictures`, always the same ones."""
        return hashlib.blake2b(content, digest_size=4).digest()[0] % self.pictures == 0


@dataclass(frozen=True)
class Kind:
    """A kind of file: where a valid one lies, what is done to it, and how it is read.

    Attributes:
        few, many: files of the short form, and a third of those of the long one; reading takes from less than one to
            some 50 ms.
        writes: reading writes files beside it, which are put back.
    """

    path: str
    mutate: fuzz.Mutate
    read: Callable[[World], object]
    few: int = 60
    many: int = 1000
    writes: bool = False


def _zstd(content: bytes) -> bytes:
    with pyarrow.BufferOutputStream() as out:
        with pyarrow.CompressedOutputStream(out, "zstd") as stream:
            stream.write(content)
        return bytes(out.getvalue())


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": partial(gzip.compress, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": _zstd,
}


def write_files(folder: Path) -> World:
    """One valid file of each kind."""
    (folder / "birds.txt").write_text(TEXT)
    options = {"vocab_size": 280, "sequence_length": 16}
    tokens = ltm.prepare([str(folder / "birds.txt")], folder / "tokens", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_ltm.data.packing.SHARD", 300)
        ltm.prepare([str(folder / "birds.txt")], folder / "shards", **options)
    config = ltm.apply_settings(ltm.preset("nano"), TINY)
    run = ltm.train(config, data=tokens.path, out=folder / "run")
    shutil.copytree(run.folder, folder / "sealed")
    shutil.copytree(run.folder, folder / "resumed", ignore=shutil.ignore_patterns("trainer-*"))
    write_base_without_weights(folder / "base", TEXT)
    rows = [{"id": i, "text": line, "tags": ["a", None]} for i, line in enumerate(TEXT.splitlines()[:20])]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "a.json").write_text(json.dumps(rows))
    for suffix, compress in COMPRESSIONS.items():
        (folder / f"a.jsonl.{suffix}").write_bytes(compress((folder / "a.jsonl").read_bytes()))
    (folder / "a.tsv").write_text("id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in rows))
    shape = {
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "vocab_size": 280,
        "max_seq_len": 16,
        "max_z_len": 2,
        "window_size": 4,
    }
    weights = dict(run.model.decoder.state_dict())
    torch.save({"model": weights, "model_args": shape}, folder / "a.pt")
    (folder / "held").mkdir()
    (folder / "held" / "lock").write_bytes(_signature())
    (folder / "a.csv").write_text("id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    ltm.prepare([str(folder / "a.jsonl")], folder / "lying", **options, packing="document", validation_fraction=0)
    (folder / "tasks.toml").write_text(TASKS)
    shutil.copy(folder / "run" / "tokenizer.json", folder / "tokenizer.json")
    evaluation = evaluate_protocols(run, run.dataset(), protocols=("bound", "prefix"), sequences=4, particles=2)
    of = {"run": str(run.folder), "step": run.step, "fingerprint": run.fingerprint, "data": "birds"}
    write_evaluation(run, {**evaluation.to_dict(), **of, "settings": ["fast.steps=1"]})
    (folder / "compared").mkdir()
    save(comparison(), folder / "compared")
    more = {"predictive": Level(2.5, 0.1), "sequence_predictive": [25.0] * 3, "reference": Level(1.5, None)}
    write_row(folder / "study" / "runs" / "c", row(40, 2, without={"a": "why"}, sequence_iwae=[23.0] * 3, **more))
    open_study(folder / "study", settings_of_study(run), {"command": "scale"})
    write_thoughts(folder / "a.npz", {"thoughts": torch.ones(2, 2, 16)}, {"texts": ["a", "b"]})
    write_thoughts(folder / "a.st", {"thoughts": torch.ones(2, 2, 16)}, {"texts": ["a", "b"]})
    embedded = embed_texts(run, ["The 7th bird sang.", "9 trees."])
    for suffix in (".safetensors", ".npz", ".parquet"):
        fit = {"fingerprint": run.fingerprint, "fit": {}}
        write_embeddings(folder / f"e{suffix}", replace(embedded, table={"id": [1, "b"], "n": [0.5, None]}), fit)
    problem = json.dumps({"question": "How many birds?", "answer": "2 + 3 = 5\n#### 5"})
    (folder / "problems.jsonl").write_text(f"{problem}\n{problem}\n")
    np.save(folder / "features.npy", np.ones((3, 4), dtype=np.float32))
    shutil.copy(folder / "compared" / "compare.json", folder / "sealed")
    kept = PartialFits(folder / "e.npz", "these", seconds=-1.0)
    kept.add(0, {"mean": torch.ones(2, 3), "scale": torch.ones(2, 3)})
    # As an earlier release wrote them: a checksum would be all that is ever looked at.
    for name in ("run/model.safetensors", "resumed/trainer.safetensors", "a.st", "e.safetensors", ".e.npz.fits"):
        fuzz.unseal(folder / name)
    (folder / "begun").mkdir()
    write_note(folder / "begun" / "init.json", OriginNote("../run", run.step, run.fingerprint, ["model"]))
    truths = [{"prompt": row["text"][:9], "truth": row["text"][9:]} for row in rows]
    (folder / "truths.jsonl").write_text("".join(json.dumps(one) + "\n" for one in truths))
    ltm.prepare([str(folder / "a.jsonl")], folder / "undisturbed", **PREPARED)
    stop_preparing(folder)
    for name in ("run/evaluation.json", "compared/compare.json", "study/study.json", "study/runs/c/cell.json"):
        path = folder / name
        path.write_text(json.dumps(without_digest(json.loads(path.read_text()))))
    return World(folder, run, TokenDataset(tokens))


def settings_of_study(run: Run) -> dict[str, Any]:
    """Those of a study around a run, as `scale` asks for them when it goes on."""
    return study_settings(Grid(run.config, rivals=()), "tokens", Scoring(), "cpu")


def stop_preparing(folder: Path) -> None:
    """What a `prepare` leaves that was killed after its second save: `killed` beside its note."""

    def kill(what: str, pieces: int, characters: int) -> None:
        if what == "encode" and pieces > 9:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        for name in ("GROUP", "SAVED"):
            patch.setattr(f"pyro_ltm.data.filling.{name}", 100)
        with contextlib.suppress(KeyboardInterrupt):
            ltm.prepare([str(folder / "a.jsonl")], folder / "killed", progress=kill, **PREPARED)
    os.rename(unfinished(folder / "killed"), folder / "stopped")


def attack(world: World, name: str, kind: Kind, count: int, seed: int) -> tuple[int, list[str]]:
    """How many of `count` files of a kind were refused, and a description of each that ended otherwise than it may."""
    path, draw = world.folder / kind.path, random.Random(f"{seed} {name}")
    written = [one for one in path.parent.iterdir() if one.is_file()] if kind.writes else [path]
    valid, before = path.read_bytes(), {one: one.read_bytes() for one in written}
    assert fuzz.answer(lambda: kind.read(world)) == "", "the valid file itself"
    refused, wrong = 0, []
    for number in range(count):
        content = kind.mutate(draw, valid)
        path.write_bytes(content)
        try:
            refused += bool(fuzz.answer(lambda: kind.read(world)))
        except (Exception, fuzz.Hang, pytest.PytestWarning) as error:
            wrong.append(f"{name} {number}: {type(error).__name__}: {str(error)[:200]}: {content[:60]!r}")
        for one, kept in before.items():
            one.write_bytes(kept)
    return refused, wrong
