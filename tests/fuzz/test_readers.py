"""Every reader of files, given files that are wrong: it reads them, or refuses them in one line. Nothing else.

The short form takes 2,000 files and more, the long one 100,000, and draws more of their pictures.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from helpers import fuzz
from helpers.bases import write_base_without_weights
from helpers.figures import comparison
from helpers.scaling_rows import row, show_cells

import pyro_ltm as ltm
from pyro_ltm.comparison.comparison_file import check_target, save
from pyro_ltm.comparison.scaling.result import write_row
from pyro_ltm.comparison.trainings import decoder_training
from pyro_ltm.config import load_toml
from pyro_ltm.data import TokenDataset, Tokenizer, read_source, unigram_nats
from pyro_ltm.digests import without_digest
from pyro_ltm.errors import UserError
from pyro_ltm.inference.build import check_config
from pyro_ltm.locks import _refusal, _signature
from pyro_ltm.model.grafting import base_files
from pyro_ltm.model.reference import read_reference
from pyro_ltm.reports.comparison_page import draw, render
from pyro_ltm.reports.comparison_table import findings, full_table, notes, short_table
from pyro_ltm.reports.plots import to_png
from pyro_ltm.reports.protocol_plots import draw_evaluation
from pyro_ltm.reports.thoughts_page import likelihoods
from pyro_ltm.reports.training_plots import draw_training
from pyro_ltm.runs.data import open_data
from pyro_ltm.runs.embedding import embed_texts
from pyro_ltm.runs.embeddings_file import is_embeddings, read_embeddings, write_embeddings
from pyro_ltm.runs.evaluation_file import merged, read_evaluation, write_evaluation
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.runs.partial_fits import PartialFits
from pyro_ltm.runs.protocols import evaluate_protocols
from pyro_ltm.runs.run import Run
from pyro_ltm.runs.thoughts_file import read_thoughts, write_thoughts
from pyro_ltm.tasks.gsm8k import read_problems
from pyro_ltm.tasks.prompts import read_prompts
from pyro_ltm.tasks.text_tasks import load_tasks
from pyro_ltm.tasks.written_texts import read_features
from pyro_ltm.training.trainer import Trainer

TINY = [
    *("model.dim=16", "model.layers=1", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=1", "slow.steps=2", "slow.batch_size=3"),
    *("slow.eval_every=1", "slow.eval_sequences=4", "slow.save_every=1", "slow.warmup=0"),
]
TEXT = "".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(100))
TASKS = (
    '[tasks.birds]\nsource = "birds.txt"\npacking = "document"\nsequences = 3\n\n[tasks.w]\nsource = "worlds:size=2"\n'
)
MEGABYTES = 1500
"""More memory than at the start that a whole session of this may have taken at its peak."""


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


def read_config(world: World) -> None:
    check_config(load_toml(world.folder / "run" / "config.toml", whole=True))


def read_partial_config(world: World) -> None:
    load_toml(world.folder / "run" / "config.toml", ltm.preset("small"))


def resume(world: World, name: str = "resumed") -> None:
    run, folder = world.run, world.folder / name
    said: list[str] = []
    own = Run(folder, run.config, run.model, run.loop, run.tokenizer, 0)
    trainer = Trainer(own, world.data, None, on_note=said.append)
    weights = {key: value.clone() for key, value in run.trainable.state_dict().items()}
    try:
        trainer.resume()
    finally:
        trainer.metrics.close()
        run.trainable.load_state_dict(weights)  # the other kinds are of this run, and not of an earlier checkpoint
    if said:
        raise UserError(said[0])


def read_kept_fits(world: World) -> None:
    said: list[str] = []
    kept = PartialFits(world.folder / "e.npz", "these", say=said.append)
    kept.take(0, 1)
    if said:
        raise UserError(said[0])


def read_rows(world: World) -> None:
    rows = read_metrics(world.folder / "run" / "metrics.jsonl")
    decoder_training(world.folder / "run")
    if world.seldom(json.dumps(rows).encode()) and rows:
        to_png(draw_training(rows))


def read_prepared(world: World, name: str) -> None:
    data = TokenDataset(world.folder / name)
    data.batch(range(min(len(data), 4)))
    assert data.lengths.min() > 0


def read_lying(world: World) -> None:
    """A folder whose digests are those of what it holds: all that is left is to look at it."""
    folder = world.folder / "lying"
    meta = json.loads((folder / "meta.json").read_text())
    for name in meta["files"]:
        content = (folder / name).read_bytes()
        meta["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta))
    data = TokenDataset(folder)
    batch = data.batch(range(len(data)))
    assert batch.mask.sum() == data.tokens
    assert max(int(batch.inputs.max()), int(batch.targets.max())) < data.vocab_size
    unigram_nats(data, data)


def read_figures(world: World) -> None:
    found = read_evaluation(world.run)
    if found is not None:
        likelihoods(found)
        same = {key: found.get(key) for key in ("fingerprint", "data", "settings")}
        merged(found, {**same, "reference": {"sequences": 4, "tokens": 64}})
        if world.seldom(json.dumps(found).encode()):
            for figure, _ in draw_evaluation(found).values():
                to_png(figure)


def read_comparison(world: World) -> None:
    comparison = check_target(world.folder / "compared", "training")
    assert comparison is not None
    for table in (short_table, full_table, findings, notes):
        table(comparison)
    found = json.dumps(comparison.to_dict()).encode()
    if world.seldom(found):
        render(comparison, {})
        for figure, _ in draw(comparison).values():
            to_png(figure)


def read_cells(world: World) -> None:
    show_cells(world.folder / "study", world.seldom((world.folder / "study/runs/c/cell.json").read_bytes()))


def read_text(world: World, name: str) -> None:
    for document in read_source(str(world.folder / name)):
        assert document.text.encode() is not None


def read_embedded(world: World, name: str) -> None:
    is_embeddings(world.folder / name)
    rows, _ = read_embeddings(world.folder / name)
    rows.pooled()
    rows.about(0)


def read_holder(world: World) -> None:
    """What a lock says of its holder stands in the error of who is refused; a damaged one says nothing of it."""
    refusal = _refusal(world.folder / "held", world.folder / "held" / "lock")
    if f"process {os.getpid()} on" not in refusal:
        raise UserError(refusal)


def read_tokenizer(world: World) -> None:
    tokenizer = Tokenizer.load(world.folder / "tokenizer.json")
    ids = tokenizer.encode("The 7th bird sang.")
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.decode(ids)


def mutate_reference(draw: random.Random, content: bytes) -> bytes:
    """The arguments of the model, or one of its tensors, or the bytes."""
    if draw.random() < 0.5:
        return fuzz.mutate_bytes(draw, content)
    found = torch.load(io.BytesIO(content), weights_only=True)
    if draw.random() < 0.7:
        found["model_args"] = fuzz.mutate_value(draw, found["model_args"])
    else:
        name = draw.choice(list(found["model"]))
        tensor = found["model"].pop(name)
        shapes = (
            tensor[:1],
            tensor.reshape(-1),
            tensor.long(),
            tensor.bool(),
            tensor.to_sparse(),
            3,
            "x",
            None,
            [tensor],
            tensor[0],
        )
        found["model"][draw.choice((name, name, f"{name}.x", "module." + name, 7))] = draw.choice(shapes)
    out = io.BytesIO()
    torch.save(found, out)
    return out.getvalue()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": partial(gzip.compress, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
KINDS = {
    "config": Kind("run/config.toml", fuzz.mutate_toml, read_config, few=60, many=1500),
    "config over a preset": Kind("run/config.toml", fuzz.mutate_toml, read_partial_config, many=1500),
    "tasks": Kind("tasks.toml", fuzz.mutate_toml, lambda world: load_tasks(world.folder / "tasks.toml"), many=1500),
    "weights": Kind("run/model.safetensors", fuzz.mutate_tensors, lambda world: Run.load(world.folder / "run"), few=60),
    "checkpoint": Kind("resumed/trainer.safetensors", fuzz.mutate_tensors, resume, few=60, writes=True),
    "checkpoint before which there is one": Kind(
        "sealed/trainer.safetensors", fuzz.mutate_tensors, partial(resume, name="sealed"), few=20, writes=True
    ),
    "sealed weights": Kind(
        "sealed/model.safetensors", fuzz.mutate_tensors, lambda world: Run.load(world.folder / "sealed"), few=20
    ),
    "sealed comparison": Kind(
        "sealed/compare.json", fuzz.mutate_json, lambda world: check_target(world.folder / "sealed", "training"), few=20
    ),
    "kept fits": Kind(".e.npz.fits", fuzz.mutate_tensors, read_kept_fits, few=60),
    "metrics": Kind("run/metrics.jsonl", fuzz.mutate_lines, read_rows, many=1500),
    "note of the data": Kind("run/data.json", fuzz.mutate_json, lambda world: open_data(world.folder / "run", "train")),
    "prepared": Kind("tokens/meta.json", fuzz.mutate_json, partial(read_prepared, name="tokens"), many=2000),
    "prepared in shards": Kind("shards/meta.json", fuzz.mutate_json, partial(read_prepared, name="shards"), few=30),
    "lying ids": Kind("lying/train.bin", fuzz.mutate_bytes, read_lying, few=60, writes=True),
    "lying index": Kind("lying/train.index.npy", fuzz.mutate_bytes, read_lying, few=60, writes=True),
    "lying meta": Kind("lying/meta.json", fuzz.mutate_json, partial(read_prepared, name="lying")),
    "evaluation": Kind("run/evaluation.json", fuzz.mutate_json, read_figures, many=1500),
    "comparison": Kind("compared/compare.json", fuzz.mutate_json, read_comparison, many=1500),
    "cell of a study": Kind("study/runs/c/cell.json", fuzz.mutate_json, read_cells, many=1500),
    "thoughts": Kind("a.st", fuzz.mutate_tensors, lambda world: read_thoughts(world.folder / "a.st")),
    "thoughts in .npz": Kind("a.npz", fuzz.mutate_bytes, lambda world: read_thoughts(world.folder / "a.npz")),
    "embeddings": Kind("e.safetensors", fuzz.mutate_tensors, partial(read_embedded, name="e.safetensors"), few=60),
    "embeddings in .npz": Kind("e.npz", fuzz.mutate_bytes, partial(read_embedded, name="e.npz"), few=60),
    "embeddings in .parquet": Kind("e.parquet", fuzz.mutate_bytes, partial(read_embedded, name="e.parquet"), few=60),
    "checkpoint of the reference": Kind("a.pt", mutate_reference, lambda world: read_reference(world.folder / "a.pt")),
    "index of a base": Kind(
        "base/model.safetensors.index.json", fuzz.mutate_json, lambda world: base_files(world.folder / "base")
    ),
    "a model's end of text": Kind(
        "base/tokenizer_config.json", fuzz.mutate_json, lambda world: Tokenizer.load(world.folder / "base")
    ),
    "lock": Kind("held/lock", fuzz.mutate_json, read_holder, many=300),
    "problems": Kind("problems.jsonl", fuzz.mutate_lines, lambda world: read_problems(world.folder / "problems.jsonl")),
    "prompts": Kind("a.jsonl", fuzz.mutate_lines, lambda world: read_prompts(world.folder / "a.jsonl"), few=40),
    "lines of prompts": Kind(
        "birds.txt", fuzz.mutate_bytes, lambda world: read_prompts(world.folder / "birds.txt"), few=40, many=300
    ),
    "features": Kind("features.npy", fuzz.mutate_bytes, lambda world: read_features(world.folder / "features.npy")),
    "text": Kind("birds.txt", fuzz.mutate_bytes, partial(read_text, name="birds.txt"), many=500),
    "json lines": Kind("a.jsonl", fuzz.mutate_lines, partial(read_text, name="a.jsonl"), many=1000),
    "json array": Kind("a.json", fuzz.mutate_json, partial(read_text, name="a.json"), many=500),
    "csv": Kind("a.csv", fuzz.mutate_bytes, partial(read_text, name="a.csv"), many=500),
    "tsv": Kind("a.tsv", fuzz.mutate_bytes, partial(read_text, name="a.tsv"), many=300),
    **{
        f"compressed by {kind}": Kind(f"a.jsonl.{kind}", fuzz.mutate_bytes, partial(read_text, name=f"a.jsonl.{kind}"))
        for kind in COMPRESSIONS
    },
    "parquet": Kind("a.parquet", fuzz.mutate_bytes, partial(read_text, name="a.parquet"), many=1000),
    "tokenizer": Kind("tokenizer.json", fuzz.mutate_json, read_tokenizer, few=60, many=500),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
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
    write_row(folder / "study" / "runs" / "c", row(40, 2))
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
    kept.add({"mean": torch.ones(2, 3), "scale": torch.ones(2, 3)})
    # As an earlier release wrote them: a checksum would be all that is ever looked at.
    for name in ("run/model.safetensors", "resumed/trainer.safetensors", "a.st", "e.safetensors", ".e.npz.fits"):
        fuzz.unseal(folder / name)
    for name in ("run/evaluation.json", "compared/compare.json"):
        path = folder / name
        path.write_text(json.dumps(without_digest(json.loads(path.read_text()))))
    return World(folder, run, TokenDataset(tokens))


def attack(world: World, name: str, count: int, seed: int) -> tuple[int, list[str]]:
    """How many of `count` files of a kind were refused, and a description of each that ended otherwise than it may."""
    kind = KINDS[name]
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
        except (Exception, pytest.PytestWarning) as error:
            wrong.append(f"{name} {number}: {type(error).__name__}: {str(error)[:200]}: {content[:60]!r}")
        for one, kept in before.items():
            one.write_bytes(kept)
    return refused, wrong


@pytest.mark.parametrize("name", KINDS)
def test_some(name, world):
    refused, wrong = attack(world, name, KINDS[name].few, seed=0)
    assert not wrong, "\n".join(wrong)
    assert refused > KINDS[name].few / 20, "the mutations do not bite"


def test_there_are_two_thousand_of_the_short_form():
    assert sum(kind.few for kind in KINDS.values()) >= 2000


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, where it compiles
def test_a_hundred_thousand(world):
    total, wrong = 0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, kind in KINDS.items():
        wrong += attack(World(world.folder, world.run, world.data, pictures=8), name, 3 * kind.many, seed=1)[1]
        total += 3 * kind.many
    assert not wrong, "\n".join(wrong)
    assert total >= 100_000
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


def test_figures_without_a_fraction_of_any_length(world):
    """JSON has no whole numbers of 64 bits; the library that draws has nothing else."""
    path = world.folder / "run" / "metrics.jsonl"
    figures = {"step": 1, "tokens": 9, "seconds": 1, "skipped": 0, "bound_nats_per_token": 10**30, "grad_norm": 10**19}
    rows = [{"kind": "train", **figures}, {"kind": "start", "step": 0, "unigram_nats_per_token": 10**20}]
    kept, before = path.read_bytes(), (world.folder / "run" / "evaluation.json").read_bytes()
    try:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        to_png(draw_training(read_metrics(path)))
        found = without_digest(json.loads(before))
        found["bound"] |= {"nats_per_token": 10**30, "nats_per_token_stderr": 10**20}
        found["bound"]["iwae_curve"][-1] |= {"nats_per_token": 10**19, "stderr": 10**25}
        (world.folder / "run" / "evaluation.json").write_text(json.dumps(found))
        for figure, _ in draw_evaluation(read_evaluation(world.run) or {}).values():
            to_png(figure)
    finally:
        path.write_bytes(kept)
        (world.folder / "run" / "evaluation.json").write_bytes(before)
