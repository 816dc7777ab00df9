"""`pyro-ltm score-samples`, under a run and under a Hugging Face model."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from helpers.causal_lms import save_model

from pyro_ltm.runs import Run
from pyro_ltm.tasks.written_texts import RunScorer

LINES = [f"the cat sat on {n} mats while a bird sang" for n in range(12)]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    pytest.importorskip("transformers", reason="the extra scorers is not installed")
    return save_model(tmp_path_factory.mktemp("models") / "gpt2", length=64)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES), encoding="utf-8")
    return path


def test_score_samples_of_a_run(ask, invoke, trained, twin, tmp_path):
    out = tmp_path / "texts.jsonl"
    options = ["score-samples", "--run", trained, "--num", 12, "--max-new-tokens", 8]
    found = ask(*options, "--scorer", twin, "--texts-out", out)
    assert found["generative_is_exact"]
    assert found["generative"]["meaning"].startswith("exact")
    assert found["generative"]["nats_per_token"] > 0
    assert found["metrics"]["texts"] == 12
    how = {"run": str(trained), "step": 4, "temperature": 1.0, "max_new_tokens": 8, "seed": 0, "texts": None}
    assert how.items() <= found.items()
    assert (found["scorer"], found["scorer_step"], found["fast_steps"]) == (str(twin), 4, 0)
    assert 0 < found["speed"]["tokens"] <= 12 * 8
    assert found["speed"]["tokens_per_second"] == pytest.approx(found["speed"]["tokens"] / found["speed"]["seconds"])
    again = ask("score-samples", "--texts", out, "--reference", out, "--scorer", twin)
    assert again["metrics"] == found["metrics"]
    assert again["generative"]["nats_per_token"] == pytest.approx(found["generative"]["nats_per_token"])
    under, written = again["generative"], [json.loads(line)["text"] for line in out.read_text().splitlines()]
    nats = under["nats_per_token"] * under["tokens"]
    assert under["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(len(text.encode()) for text in written))
    assert again["mauve"]["score"] > 0.7, "a set of texts against itself"
    assert "not comparable" in again["features"]
    assert "self-BLEU" in invoke(*options).stdout


def test_a_run_with_thoughts_scores_by_an_upper_bound(ask, refuse, trained, texts):
    options = ["score-samples", "--texts", texts, "--scorer", trained, "--particles", 1]
    found = ask(*options, "--reference", texts)
    for one in (found["generative"], found["reference_generative"]):
        assert one["meaning"].startswith("upper bound on nats")
    assert (found["fast_steps"], found["settings"], found["generative_is_exact"]) == (2, [], False)
    settings = ["optimizer.lr=0.1", "fast.steps=9", "fast.noise=antithetic"]
    asked = [part for setting in settings for part in ("--set", setting)]
    tight, single = ask(*options, *asked), ask(*options, *asked[:4])
    assert (tight["fast_steps"], tight["generative"]["fast_steps"], tight["settings"]) == (9, 9, settings)
    assert tight["generative"]["nats_per_token"] < found["generative"]["nats_per_token"]
    assert tight["generative"]["nats_per_token"] != single["generative"]["nats_per_token"], "the fit's noise is heard"
    refuse(*options, "--set", "slow.lr=1", says=("only the fast loop can change",))
    refuse("score-samples", "--texts", texts, "--set", "fast.steps=9", says=("--set: is of a run that scores",))


def test_no_two_texts_are_fitted_on_one_noise(trained):
    found = RunScorer(Run.load(trained), particles=1).score(LINES[:1] * 33)  # more than go into a batch
    assert len(set(found.sequence_nats.tolist())) == 33


def test_features_are_read(ask, refuse, tmp_path):
    texts = tmp_path / "t.jsonl"
    texts.write_text('{"text": "one two three"}\n' * 12)
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", generator.normal(size=(40, 3)))
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    found = ask("score-samples", "--texts", texts, "--features", a, "--reference-features", b)
    assert found["features"] == "given"
    assert 0 < found["mauve"]["score"] <= 1
    refuse("score-samples", "--texts", texts, "--features", a, says="go together")
    refuse(
        "score-samples", "--texts", texts, "--features", texts, "--reference-features", b, says="not a readable .npy"
    )
    refuse("score-samples", says="either --run")


def test_a_hugging_face_model_scores(ask, invoke, gpt2, texts):
    from pyro_ltm.integrations.causal_lm import CausalLM

    found = ask("score-samples", "--texts", texts, "--reference", texts, "--scorer", gpt2)
    direct = CausalLM.load(gpt2).score(LINES).to_dict()
    assert found["generative"] == {**direct, "meaning": found["generative"]["meaning"]}
    assert found["generative"]["meaning"].startswith("exact")
    assert found["fast_steps"] is None
    assert found["reference_generative"] == found["generative"]
    assert found["generative_is_exact"]
    assert found["mauve"]["score"] > 0.7, "a set of texts against itself"
    assert str(gpt2) in found["features"]
    shown = invoke("score-samples", "--texts", texts, "--scorer", gpt2).stdout
    for words in (
        "generative perplexity, exact",
        "bits a byte, exact",
        "each text after <|begin|>; 64 tokens at a time",
    ):
        assert words in shown


def test_a_hugging_face_model_scores_what_a_run_writes_and_json_stands_alone(spawn, trained, gpt2):
    options = ["--run", trained, "--num", 3, "--max-new-tokens", 6, "--scorer", gpt2, "--json"]
    process = spawn("score-samples", *options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["generative"]["texts"] == 3
    assert err == ""


def test_bad_scorers(refuse, gpt2, texts, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    for scorer in (empty, tmp_path / "missing"):
        refuse("score-samples", "--texts", texts, "--scorer", scorer, says=("neither a run folder", "config.json"))
    (empty / "config.json").write_text("[]")
    refuse("score-samples", "--texts", texts, "--scorer", empty, says=("expected object, got array",))
    monkeypatch.setitem(sys.modules, "transformers", None)
    refuse("score-samples", "--texts", texts, "--scorer", gpt2, says=("pip install -e '.[scorers]'",))
