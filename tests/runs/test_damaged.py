"""A damaged run is refused in a line that names the file and what is wrong in it, before anything is trained on."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pyro_ltm as ltm
from pyro_ltm.errors import UserError
from pyro_ltm.runs.data import open_data
from pyro_ltm.runs.folder import FORMAT
from pyro_ltm.runs.metrics import MetricsLog, read_metrics
from pyro_ltm.runs.run import Run


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run with no earlier checkpoint that could stand in for the last."""
    return shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("trainer-*"))


def rewrite(path, change):
    """Gives the tensors and the metadata of a safetensors file to `change`, and writes what is left of them.

    Without a checksum, as files of earlier releases are, so that it is what the file holds that is refused.
    """
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors, meta = load_file(path), json.loads(header[FORMAT])
    del meta["crc32"]
    form = change(tensors, meta) or FORMAT
    save_file(tensors, path, metadata={form: meta if isinstance(meta, str) else json.dumps(meta)})


def replace(name, value):
    def change(tensors, meta):
        tensors[name] = value(tensors[name])

    return change


WEIGHT = "model.decoder.tok_embeddings.weight"
WEIGHTS = [
    (lambda tensors, meta: tensors.pop(WEIGHT) is None, f"{WEIGHT} is missing"),
    (lambda tensors, meta: tensors.update(extra=torch.zeros(2)), "extra is none of them"),
    (lambda tensors, meta: tensors.update({"guide.extra": torch.zeros(2)}), "guide.extra is none of them"),
    (replace(WEIGHT, lambda value: value[:, :8].clone()), "is float32 [280, 8] and should be float32 [280, 16]"),
    (replace(WEIGHT, lambda value: value.T.contiguous()), "is float32 [16, 280]"),
    (replace(WEIGHT, lambda value: value.long()), "is int64 [280, 16] and should be float32"),
    (replace(WEIGHT, lambda value: value * torch.nan), "not finite"),
    (lambda tensors, meta: meta.update(step="9"), "its metadata: step: expected int, got str"),
    (lambda tensors, meta: meta.update(step=-1), "its metadata: step: expected int >= 0"),
    (lambda tensors, meta: "pyro-ltm run 2", "of another release (pyro-ltm run 2; this one reads pyro-ltm run 1)"),
    (lambda tensors, meta: "other", "not one of a pyro-ltm run"),
]


@pytest.mark.parametrize(("change", "says"), WEIGHTS, ids=[says for _, says in WEIGHTS])
def test_weights(change, says, run):
    rewrite(run / "model.safetensors", change)
    with pytest.raises(UserError) as caught:
        Run.load(run)
    assert str(run / "model.safetensors") in str(caught.value)
    assert says in str(caught.value)


MOMENT = "optimizer.0.exp_avg"
STATES = [
    (replace(MOMENT, lambda value: value[:, :8].clone()), f"{MOMENT} is float32 [280, 8]"),
    (replace(MOMENT, lambda value: value.T.contiguous()), f"{MOMENT} is float32 [16, 280]"),
    (replace(MOMENT, lambda value: value.double()), f"{MOMENT} is float64"),
    (replace(MOMENT, lambda value: value * torch.inf), "not all that it holds is finite"),
    (replace(f"{MOMENT}_sq", lambda value: value - 1), "below zero"),
    (replace("optimizer.0.step", lambda value: value.expand(2).clone()), "optimizer.0.step is float32 [2]"),
    (lambda tensors, meta: tensors.pop(MOMENT) is None, "tensors of the optimizer's"),
    (lambda tensors, meta: tensors.update({"optimizer.x": tensors.pop(MOMENT)}), f"{MOMENT} is missing"),
    (lambda tensors, meta: tensors.update({"optimizer.99.exp_avg": tensors.pop(MOMENT)}), f"{MOMENT} is missing"),
    (lambda tensors, meta: tensors.update(z=torch.zeros(1)), "z is none of them"),
    (lambda tensors, meta: meta.pop("position") is None, "position is missing"),
    (lambda tensors, meta: meta.update(tokens="many"), "tokens: expected int, got str"),
    (lambda tensors, meta: meta.update(seconds=-1.0), "seconds: expected float >= 0"),
    (lambda tensors, meta: meta.update(step=1), "its data position is not that of step 1"),
    (lambda tensors, meta: meta.update(data="other"), "of another run, which learned from other data"),
]


@pytest.mark.parametrize(("change", "says"), STATES, ids=[says for _, says in STATES])
def test_a_checkpoint(change, says, run):
    rewrite(run / "trainer.safetensors", change)
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(UserError) as caught:
        ltm.train(None, data=None, out=run, resume=True)
    assert says in str(caught.value)
    assert (run / "model.safetensors").read_bytes() == before


def test_what_a_later_release_adds_is_passed_over(run):
    """It would raise the format's number where it changed what the rest means."""
    for name in ("model.safetensors", "trainer.safetensors"):
        rewrite(run / name, lambda tensors, meta: meta.update(later={"a": [1]}))
    note = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**note, "later": 1}))
    assert ltm.train(None, data=None, out=run, resume=True).step == 4


def test_a_checkpoint_of_an_older_release_does_not_count_its_tensors(run):
    rewrite(run / "trainer.safetensors", lambda tensors, meta: meta.pop("states") is None)
    assert ltm.train(None, data=None, out=run, resume=True).step == 4


def test_a_configuration_of_a_model_that_no_memory_holds(run):
    text = (run / "config.toml").read_text().replace("dim = 16", "dim = 65536")
    (run / "config.toml").write_text(text)
    with pytest.raises(UserError, match=r"is float32 \[280, 16\] and should be float32 \[280, 65536\]"):
        Run.load(run)


ROWS = [
    ('{"kind": "validation", "step": 0}', "nats_per_token is missing"),
    ('{"kind": "train", "step": 0}', "tokens is missing"),
    ('{"kind": "validation", "step": 0, "nats_per_token": "low"}', "nats_per_token: expected float | null, got str"),
    ('{"kind": "validation", "step": 0, "nats_per_token": 1e200}', "a number beyond 1e+100"),
    ('{"kind": "validation", "step": -1, "nats_per_token": 1}', "step: expected int >= 0"),
    ('{"kind": "sleep", "step": 0}', "kind: invalid value 'sleep'"),
    ('{"step": 1}', "kind is missing"),
    ('{"kind": "start", "step": 0, "unigram_nats_per_token": "' + "x" * 100_000 + '"}', "got str"),
    ("[]", "expected object, got array"),
    ("nonsense", "not valid JSON"),
    ("[" * 100_000, "deep"),
    (" " * (1 << 20), "over 1 MiB"),
]


@pytest.mark.parametrize(("row", "says"), ROWS, ids=[says for _, says in ROWS])
def test_metrics(row, says, tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = '{"kind": "validation", "step": 1, "nats_per_token": 2, "seed": 18446744073709551615}\n'
    path.write_text(good + row + "\n" + good)
    with pytest.raises(UserError) as caught:
        read_metrics(path)
    assert f"{path}:2: damaged: " in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("rest", ['{"kind": "tra', "\0\0\0", "[" * 9999])
def test_a_row_that_a_kill_cut_short_is_left_out(rest, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("validation", {"step": 1, "nats_per_token": float("nan")})
    log.close()
    with open(log.path, "a") as file:
        file.write(rest)
    assert read_metrics(log.path) == [{"kind": "validation", "step": 1, "nats_per_token": None}]


@pytest.mark.parametrize(
    "note", ["{", "[]", "{}", '{"folder": 1, "fingerprint": ""}', '{"folder": "\\u0000", "fingerprint": ""}']
)
def test_the_note_of_its_data(note, run):
    (run / "data.json").write_text(note)
    with pytest.raises(UserError, match=r"name (other|the) data with --data"):
        open_data(run, "train")
    if "u0000" not in note:
        assert Run.load(run).data_fingerprint is None
