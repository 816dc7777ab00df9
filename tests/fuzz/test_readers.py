"""Every reader of files, given files that are wrong: it reads them, or refuses them in one line. Nothing else.

The short form takes 2,000 files and more, the long one 100,000, and draws more of their pictures.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import shutil
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import fuzz
from helpers.bases import save_base
from helpers.fuzz_files import COMPRESSIONS, PREPARED, Kind, World, attack, settings_of_study, write_files
from helpers.scaling_rows import show_cells

import pyro_ltm as ltm
from pyro_ltm.comparison.comparison_file import check_target
from pyro_ltm.comparison.scaling.result import open_study
from pyro_ltm.comparison.trainings import decoder_training
from pyro_ltm.config import GraftConfig, load_toml
from pyro_ltm.data import TokenDataset, TokenFolder, Tokenizer, read_source, unigram_nats
from pyro_ltm.data.tokenizer.cutting import whole_documents
from pyro_ltm.digests import without_digest
from pyro_ltm.errors import UserError
from pyro_ltm.files import unfinished
from pyro_ltm.inference.build import check_config
from pyro_ltm.locks import _refusal
from pyro_ltm.model.grafting import (
    EXTRA,
    base_files,
    check_exact,
    digest_of,
    graft_on,
    layers_named,
    probe_logits,
    shape_for,
)
from pyro_ltm.model.pretrained import load_causal_lm, shape_of
from pyro_ltm.model.reference import read_reference
from pyro_ltm.reports import scaling_page
from pyro_ltm.reports.comparison_page import draw, render
from pyro_ltm.reports.comparison_table import findings, full_table, notes, short_table
from pyro_ltm.reports.plots import to_png
from pyro_ltm.reports.protocol_plots import draw_evaluation
from pyro_ltm.reports.thoughts_page import likelihoods
from pyro_ltm.reports.training_plots import draw_training
from pyro_ltm.runs.data import open_data
from pyro_ltm.runs.embeddings_file import is_embeddings, read_embeddings
from pyro_ltm.runs.evaluation_file import merged, read_evaluation
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.runs.partial_fits import PartialFits
from pyro_ltm.runs.run import Run
from pyro_ltm.runs.thoughts_file import read_thoughts
from pyro_ltm.tasks.gsm8k import read_problems
from pyro_ltm.tasks.prompts import cut_documents, read_prompts
from pyro_ltm.tasks.text_tasks import load_tasks
from pyro_ltm.tasks.written_texts import read_features, score_samples
from pyro_ltm.training.origin import Origin
from pyro_ltm.training.trainer import Trainer

MEGABYTES = 1500
"""More memory than at the start that a whole session of this may have taken at its peak."""


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


def read_study(world: World) -> None:
    """As `scale --resume` does, which writes its page anew."""
    scaling_page.render(open_study(world.folder / "study", settings_of_study(world.run), {}), {})


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


def read_origin(world: World) -> None:
    if Origin.find(world.folder / "begun", None, going_on=True, trained=False) is None:
        raise UserError("no note")


def go_on_preparing(world: World) -> None:
    """A note that is damaged changes nothing: all is begun anew. One whose checksum is made right again is believed."""
    out, said = world.folder / "killed", list[str]()
    for left in (out, unfinished(out)):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(world.folder / "stopped", unfinished(out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_ltm.data.filling.GROUP", 100)  # or so small a text would be passed over without a word
        source = str(world.folder / "a.jsonl")
        made = ltm.prepare([source], out, progress=lambda *done: said.append(done[0]), **PREPARED)
    if "restart" in said:
        assert made.fingerprint == TokenFolder.open(world.folder / "undisturbed").fingerprint
        raise UserError("begun anew")


def read_samples(world: World) -> None:
    texts = [document.text for document in whole_documents(read_source(str(world.folder / "a.jsonl")))]
    score_samples(texts, reference=texts[:3]).to_dict()
    cut_documents(str(world.folder / "a.jsonl"), world.run.tokenizer, 5)


def read_base(world: World) -> None:
    """As `graft` does."""
    folder = world.folder / "llama"
    digest_of(folder)
    base = load_causal_lm(folder, extra=EXTRA)
    shape = shape_for(base, thoughts=2, layers=1, max_length=None)
    tokens, logits = probe_logits(base)
    decoder = graft_on(base, GraftConfig(base=str(folder), layers=layers_named("0", base)), shape, torch.float32)
    check_exact(decoder, tokens, logits)
    shape_of(folder, extra=EXTRA)


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


KINDS = {
    "config": Kind("run/config.toml", fuzz.mutate_toml, read_config, few=40, many=1500),
    "config over a preset": Kind("run/config.toml", fuzz.mutate_toml, read_partial_config, many=1500),
    "tasks": Kind("tasks.toml", fuzz.mutate_toml, lambda world: load_tasks(world.folder / "tasks.toml"), many=1500),
    "weights": Kind("run/model.safetensors", fuzz.mutate_tensors, lambda world: Run.load(world.folder / "run"), few=40),
    "checkpoint": Kind("resumed/trainer.safetensors", fuzz.mutate_tensors, resume, few=40, writes=True),
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
    "evaluation": Kind("run/evaluation.json", fuzz.mutate_json, read_figures, few=40, many=1500),
    "comparison": Kind("compared/compare.json", fuzz.mutate_json, read_comparison, few=40, many=1500),
    "cell of a study": Kind("study/runs/c/cell.json", fuzz.mutate_json, read_cells, many=1500),
    "study": Kind("study/study.json", fuzz.mutate_json, read_study, writes=True),
    "thoughts": Kind("a.st", fuzz.mutate_tensors, lambda world: read_thoughts(world.folder / "a.st")),
    "thoughts in .npz": Kind("a.npz", fuzz.mutate_bytes, lambda world: read_thoughts(world.folder / "a.npz")),
    "embeddings": Kind("e.safetensors", fuzz.mutate_tensors, partial(read_embedded, name="e.safetensors"), few=60),
    "embeddings in .npz": Kind("e.npz", fuzz.mutate_bytes, partial(read_embedded, name="e.npz"), few=60),
    "embeddings in .parquet": Kind("e.parquet", fuzz.mutate_bytes, partial(read_embedded, name="e.parquet"), few=60),
    "checkpoint of the reference": Kind(
        "a.pt", mutate_reference, lambda world: read_reference(world.folder / "a.pt"), few=40
    ),
    "note of the origin": Kind("begun/init.json", fuzz.mutate_json, read_origin, few=30),
    "note of a killed prepare": Kind("stopped/progress.json", fuzz.mutate_sealed, go_on_preparing, few=20),
    "configuration of a base": Kind(
        "base/config.json", fuzz.mutate_json, lambda world: base_files(world.folder / "base"), few=40
    ),
    "index of a base": Kind(
        "base/model.safetensors.index.json", fuzz.mutate_json, lambda world: base_files(world.folder / "base")
    ),
    "a model's end of text": Kind(
        "base/tokenizer_config.json", fuzz.mutate_json, lambda world: Tokenizer.load(world.folder / "base")
    ),
    "lock": Kind("held/lock", fuzz.mutate_json, read_holder, many=300),
    "problems": Kind("problems.jsonl", fuzz.mutate_lines, lambda world: read_problems(world.folder / "problems.jsonl")),
    "prompts": Kind("a.jsonl", fuzz.mutate_lines, lambda world: read_prompts(world.folder / "a.jsonl"), few=40),
    "prompts and truths": Kind(
        "truths.jsonl",
        fuzz.mutate_lines,
        lambda world: read_prompts(world.folder / "truths.jsonl", truth="truth"),
        few=40,
    ),
    "samples": Kind("a.jsonl", fuzz.mutate_lines, read_samples, few=40),
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


OPENED = {  # by transformers, which takes seconds to import: in the long form alone
    "configuration of a base that is opened": Kind("llama/config.json", fuzz.mutate_json, read_base),
    "weights of a base": Kind("llama/model.safetensors", fuzz.mutate_tensors, read_base),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_files(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", KINDS)
def test_some(name, world):
    refused, wrong = attack(world, name, KINDS[name], KINDS[name].few, seed=0)
    assert not wrong, "\n".join(wrong)
    assert refused > KINDS[name].few / 20, "the mutations do not bite"


def test_a_reader_that_hangs_is_reported_with_its_file(world):
    def hang(world):
        if (world.folder / "a.csv").read_bytes() != valid:
            time.sleep(60)

    valid = (world.folder / "a.csv").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz.answer, "__defaults__", (0.05,))
        _, wrong = attack(world, "csv", Kind("a.csv", lambda draw, content: b"other", hang), 1, seed=0)
    assert wrong == ["csv 0: Hang: does not come back within 0.05 seconds: b'other'"]


def test_there_are_two_thousand_of_the_short_form():
    assert sum(kind.few for kind in KINDS.values()) >= 2000


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, where it compiles
def test_a_hundred_thousand(world):
    total, wrong = 0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save_base(world.folder / "llama", "llama")
    for name, kind in {**KINDS, **OPENED}.items():
        wrong += attack(replace(world, pictures=8), name, kind, 3 * kind.many, seed=1)[1]
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
