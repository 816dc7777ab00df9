"""`pyro-ltm gsm8k`."""

from __future__ import annotations

import json

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
    how = ["--set", "optimizer.lr=0.1", "--set", "fast.steps=1"]
    found = ask("gsm8k", trained, *options, *how, "--limit", 3, "--samples-out", out)
    assert found["problems"] == 3
    assert (found["step"], found["fast_steps"], found["max_new_tokens"]) == (4, 1, 4)
    assert found["settings"] == how[1::2]
    assert set(found["pass_at"]) == {"1", "2"}
    assert "####" in found["extraction"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = [sum(row["right"]) for row in rows]
    assert found["pass_at"]["2"] == pytest.approx(sum(map(bool, right)) / 3)
    again = ask("gsm8k", trained, *options, "--limit", 1, "--rethink", 1, "--keep", "bound", "--refit-every", 2)
    assert (again["rethink"], again["refit_every"], found["rethink"]) == (1, 2, 0)
    shown = invoke("gsm8k", trained, *options).stdout
    for words in ("pass@2", "2 fast steps, at most 4 new tokens, temperature 0.7, seed 0"):
        assert words in shown


def test_bad_problems(refuse, trained, problems, tmp_path):
    refuse("gsm8k", trained, "--test", "missing.jsonl", "--train", problems, says=("missing.jsonl: cannot be read",))
    options = ["--test", problems, "--train", problems]
    refuse("gsm8k", trained, *options, "--shots", 9, says=("there are 4 examples",))
    refuse("gsm8k", trained, *options, "--set", "slow.lr=1", says=("only the fast loop can change",))
