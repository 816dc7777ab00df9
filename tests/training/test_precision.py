"""`dtype = "auto"`: settled once, as a run begins, and then part of the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pyro_ltm as ltm
from pyro_ltm.data import Tokenizer
from pyro_ltm.inference.build import build
from pyro_ltm.model import precision
from pyro_ltm.model.precision import resolve_dtype
from pyro_ltm.runs import Run

TINY = [
    *("model.dim=16", "model.layers=1", "model.heads=2", "model.thoughts=1", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=1", "slow.steps=2", "slow.batch_size=3"),
    *("slow.eval_every=0", "slow.save_every=1", "slow.warmup=2", "dtype=auto"),
]


@pytest.fixture
def processor(monkeypatch):
    """A processor whose products in half precision take so many times as long."""

    def become(half):
        monkeypatch.setattr(precision, "product_seconds", lambda model, device: {"float32": 1.0, "bfloat16": half})

    return become


@pytest.mark.parametrize(("half", "dtype"), [(0.3, "bfloat16"), (0.9, "float32"), (2.0, "float32")])
def test_takes_half_precision_where_it_is_clearly_faster(processor, half, dtype):
    processor(half)
    config = ltm.apply_settings(ltm.preset("nano"), [*TINY, "model.vocab_size=300"])
    assert resolve_dtype(config, "cpu").dtype == dtype
    assert build(config)[0].decoder.compute_dtype == getattr(torch, dtype)


def test_a_precision_that_is_named_is_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "product_seconds", None)
    assert resolve_dtype(ltm.preset("nano"), "cpu") == ltm.preset("nano")


def test_measures_the_real_thing():
    """A product takes some time, and which precision is the faster is for the processor to say."""
    seconds = precision.product_seconds(ltm.preset("nano").model, torch.device("cpu"))
    assert seconds.keys() == precision.DTYPES.keys()
    assert min(seconds.values()) > 0
    assert resolve_dtype(ltm.preset("medium"), "cpu").dtype in precision.DTYPES


def test_a_run_keeps_what_was_settled(processor, tmp_path):
    text = tmp_path / "birds.txt"
    text.write_text("".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(400)))
    config = ltm.apply_settings(ltm.preset("nano"), TINY)
    processor(0.3)
    ltm.train(config, data=str(text), out=tmp_path / "run")
    processor(2.0)
    run = ltm.train(config, data=None, out=tmp_path / "run", resume=True)
    assert run.config.dtype == Run.load(tmp_path / "run").config.dtype == "bfloat16"
    assert Run.load(tmp_path / "run", dtype="auto").config.dtype == "float32"


def test_a_run_made_of_parts_records_what_they_settled_on(tmp_path):
    config = ltm.apply_settings(ltm.preset("nano"), [*TINY, "model.vocab_size=300", "dtype=bfloat16"])
    tokenizer = Tokenizer.train(["a few words"], 280, at_most=True)
    Run.create(tmp_path / "run", replace(config, dtype="auto"), *build(config), tokenizer)
    assert Run.load(tmp_path / "run").config.dtype == "bfloat16"
