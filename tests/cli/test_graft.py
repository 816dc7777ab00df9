"""`pyro-ltm graft`, and every command on what it makes."""

from __future__ import annotations

import sys

import pytest
from helpers.bases import save_base, texts

pytest.importorskip("transformers", reason="the extra graft is not installed")

TINY = {"data.sequence_length": 12, "fast.steps": 1, "slow.batch_size": 2, "slow.eval_sequences": 2, "slow.warmup": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("models") / "gpt2")


def test_from_a_folder_to_texts(ask, invoke, base, tmp_path, monkeypatch):
    text, data, first, run = (tmp_path / name for name in ("texts.jsonl", "data", "graft", "run"))
    text.write_text(texts(12), encoding="utf-8")
    made = ask("graft", base, "--out", first, "--layers", "1", "--thoughts", 2, "--max-length", 16)
    assert made["config"]["graft"]["layers"] == "1"
    assert made["parameters"]["base"] > made["parameters"]["cross_attention"] > 0
    prepared = ask("prepare", text, "--tokenizer", base, "--sequence-length", 12, "--out", data)
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    ask("train", "--init-from", first, "--data", data, "--out", run, "--steps", 2, *settings)
    assert prepared["vocab_size"] == made["config"]["model"]["vocab_size"]
    found = ask("evaluate", run, "--protocol", "all", "--sequences", 2, "--particles", 1, "--prefix", 4)
    assert found["twin_run"] == str(run / "base")
    assert found["below_twin"].keys() >= {"bound", "prefix"}
    assert len(ask("generate", run, "--num", 2, "--max-new-tokens", 3)["texts"]) == 2
    thoughts = tmp_path / "thoughts.safetensors"
    ask("infer", run, "--input", text, "--out", thoughts)
    assert thoughts.stat().st_size > 0
    shown = invoke("info", run)
    assert "graft.base" in shown.stdout
    monkeypatch.chdir(tmp_path)
    few = ("--sequences", 4, "--steps", 2, "--batch-size", 2, "--score-sequences", 2)
    fitted = invoke("fit-prior", "run", "--prior", "mixture:2", *few, "--out", "fitted")
    assert fitted.exit_code == 0, fitted.stderr
    assert "nats/token" not in fitted.stderr, "what it counts is a sequence's nats"
    run.rename(tmp_path / "elsewhere")
    assert ask("generate", "fitted", "--max-new-tokens", 3)["texts"]


def test_says_what_to_do_next(invoke, base, tmp_path):
    done = invoke("graft", base, "--out", tmp_path / "run", "--train", "lora", "--rank", 2)
    assert done.exit_code == 0
    assert "gives the logits of its base model, to the bit" in done.stdout
    assert "train --init-from" in done.stdout


def test_refused(refuse, base, tmp_path, monkeypatch):
    out = tmp_path / "run"
    refuse("graft", base, "--out", out, "--rank", 2, says=("--rank is of --train lora",))
    refuse("graft", base, "--out", out, "--thoughts", 3, says=("multiple of the 2 grafted layers",))
    refuse("graft", tmp_path, "--out", out, says=("config.json: cannot be read",))
    refuse("graft", base, "--out", out, "--end-of-text", "<none>", says=("has no token '<none>'",))
    monkeypatch.setitem(sys.modules, "transformers", None)
    refuse("graft", base, "--out", out, says=("pip install -e '.[graft]'",))
    assert not out.exists()
