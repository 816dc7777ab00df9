"""`pyro-ltm gsm8k` and `pyro-ltm score-samples`."""

from __future__ import annotations

import json

import numpy as np
import pytest


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    rows = [{"question": f"kalo {n}?", "answer": f"#### {n}"} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_gsm8k(ask, invoke, trained, problems, tmp_path):
    options = ["--test", problems, "--train", problems, "--shots", 0, "--k", 2, "--max-new-tokens", 4]
    out = tmp_path / "written.jsonl"
    found = ask("gsm8k", trained, *options, "--limit", 3, "--samples-out", out)
    assert found["problems"] == 3
    assert set(found["pass_at"]) == {"1", "2"}
    assert "####" in found["extraction"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = [sum(row["right"]) for row in rows]
    assert found["pass_at"]["2"] == pytest.approx(sum(map(bool, right)) / 3)
    assert "pass@2" in invoke("gsm8k", trained, *options).stdout


def test_bad_problems(refuse, trained, problems, tmp_path):
    refuse("gsm8k", trained, "--test", "missing.jsonl", "--train", problems, says="missing.jsonl: cannot be read")
    refuse("gsm8k", trained, "--test", problems, "--train", problems, "--shots", 9, says="there are 4 examples")


def test_score_samples_of_a_run(ask, invoke, trained, twin, tmp_path):
    out = tmp_path / "texts.jsonl"
    options = ["score-samples", "--run", trained, "--num", 12, "--max-new-tokens", 8]
    found = ask(*options, "--scorer", twin, "--texts-out", out)
    assert found["generative_is_exact"]
    assert found["generative"]["nats_per_token"] > 0
    assert found["metrics"]["texts"] == 12
    assert 0 < found["speed"]["tokens"] <= 12 * 8
    assert found["speed"]["tokens_per_second"] == pytest.approx(found["speed"]["tokens"] / found["speed"]["seconds"])
    again = ask("score-samples", "--texts", out, "--reference", out, "--scorer", twin)
    assert again["metrics"] == found["metrics"]
    assert again["generative"]["nats_per_token"] == pytest.approx(found["generative"]["nats_per_token"])
    assert again["mauve"]["score"] > 0.7, "a set of texts against itself"
    assert "not comparable" in again["features"]
    assert "self-BLEU" in invoke(*options).stdout


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
