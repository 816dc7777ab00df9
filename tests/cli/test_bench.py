"""`pyro-ltm bench`: figures on the terminal and in JSON, on random tokens and on a user's own."""

from __future__ import annotations

import json

import pytest
from pyro_ltm_cli.bench import duration


def test_on_random_tokens(invoke, settings):
    result = invoke("bench", *settings(), "--rounds", "1")
    assert result.exit_code == 0, result.stderr
    for row in ("nano on cpu", "a fast step", "a slow step", "in fast steps", "tokens a second", "peak memory"):
        assert row in result.stdout
    assert "epoch" not in result.stdout
    assert "pyro-ltm train --preset nano" in result.stderr + result.stdout


def test_json_of_prepared_data(invoke, settings, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("the cat sat on the mat and looked at the dog. " * 300)
    assert invoke("prepare", str(text), "--out", str(tmp_path / "tokens"), "--vocab-size", "260").exit_code == 0
    result = invoke("bench", *settings(**{"model.max_length": 256}), "--data", str(tmp_path / "tokens"), "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    meta = json.loads((tmp_path / "tokens" / "meta.json").read_text())
    assert found["corpus_tokens"] == meta["splits"]["train"]["tokens"]
    assert found["epoch_seconds"] == pytest.approx(found["corpus_tokens"] / found["tokens_per_second"])
    assert (found["fast_steps"], found["sequences"], found["rounds"]) == (2, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--data", "nowhere"], "nowhere"),
        (["--set", "fast.steps=-1"], "fast.steps = -1"),
        (["--set", "compile=true", "--set", "guide.name=laplace", "--set", "objective.name=map"], "gradients"),
    ],
)
def test_bad_input_is_one_line(arguments, expected, invoke, refused):
    result = invoke("bench", *arguments)
    refused(result.exit_code, result.stdout, result.stderr, expected)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0351, "35.1 ms"), (4.217, "4.22 s"), (720, "12 min"), (12000, "3 h 20 min"), (440640, "5.1 days")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
