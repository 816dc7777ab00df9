"""`pyro-ltm bench`: figures on the terminal and in JSON, on random tokens and on a user's own."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from pyro_ltm_cli.estimate import duration

from pyro_ltm.profiling.speed import Speed


def test_on_random_tokens(invoke, settings):
    result = invoke("bench", *settings(), "--rounds", "1")
    assert result.exit_code == 0, result.stderr
    for row in ("nano on cpu", "a fast step", "a slow step", "in fast steps", "tokens a second", "memory: total"):
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


MEASURED = Speed(
    sequences=8,
    tokens=1000,
    fast_seconds=0.5,
    slow_seconds=1.5,
    data_seconds=0.5,
    fast_steps=4,
    accumulate=5,
    rounds=3,
    steps=100,
    decoder_warmup_steps=40,
    decoder_warmup_seconds=1.0,
    validations=3,
    validation_seconds=7.0,
    weights_bytes=1024 << 20,
    optimizer_bytes=2048 << 20,
    peak_bytes=512 << 20,
)


@pytest.fixture
def show(monkeypatch, invoke, settings):
    """What the command prints of `speed`, where that is what was measured."""

    def run(speed, *arguments):
        monkeypatch.setattr("pyro_ltm.profiling.speed.measure_speed", lambda *_, **__: speed)
        result = invoke("bench", *settings(), *arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return run


def rows(shown):
    """The figures of a table by their names."""
    found = (re.split(r"\s{2,}", line.strip()) for line in shown.splitlines())
    return dict(row for row in found if len(row) == 2)


def test_each_figure_has_its_row(show):
    assert rows(show(MEASURED)) == {
        "a fast step": "500 ms",
        "a slow step": "1.5 s",
        "a training step": "20 s",
        "in fast steps": "50%",
        "waiting for data": "12.5%",
        "tokens a second": "250",
        "memory: weights": "1,024.0 MiB",
        "memory: optimizer state": "2,048.0 MiB",
        "memory: a step's peak, beyond those": "512.0 MiB",
        "memory: total": "3,584.0 MiB",
        "a training step without thoughts, at first": "7.5 s",
        "a validation": "7 s",
        "the run's 100 steps and 3 validations": "25 min",
    }


def test_what_is_not_known_has_no_row(show):
    shown = rows(show(replace(MEASURED, peak_bytes=None, validations=0, decoder_warmup_steps=0)))
    assert [name for name in shown if name.startswith("memory")] == ["memory: weights", "memory: optimizer state"]
    assert "a validation" not in shown
    assert shown["the run's 100 steps"] == "33 min"


def test_json_has_what_was_measured(show):
    found = json.loads(show(MEASURED, "--json"))
    assert {name: found[name] for name in MEASURED.to_dict()} == MEASURED.to_dict()
    memory = [found[f"{name}_bytes"] >> 20 for name in ("weights", "optimizer", "peak", "total")]
    assert memory == [1024, 2048, 512, 3584]
    assert (found["run_seconds"], found["tokens_per_second"]) == (40 * 7.5 + 60 * 20.0 + 3 * 7.0, 250.0)


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
