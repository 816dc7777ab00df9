"""The benchmark of rethinking: its tasks are right, its rows are gone on with, its table says what they say."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import rethinking, rethinking_tasks, rows
from benchmarks.rethinking_tasks import TASKS, Exercise, exercises

TINY = ["model.dim=16", "model.layers=1", "model.thoughts=2", "slow.batch_size=2", "slow.warmup=1", "slow.steps=2"]


def test_answers_are_right():
    for one in exercises("modulus", 40, 0):
        m = int(re.match(r"mod (\d+):", one.prompt)[1])
        sums = re.findall(r"(\d)\+(\d)=(\d)", one.prompt + one.answer)
        assert len(sums) == 6
        assert all((int(a) + int(b)) % m == int(c) for a, b, c in sums)
    for one in exercises("lookup", 40, 0):
        table, asked = (dict(re.findall(r"(\w)=(\d)", part)) for part in (one.prompt + one.answer).split("?"))
        assert len(table) == 4
        assert asked.items() <= table.items()
    for one in exercises("rule", 40, 0):
        pairs = [[side.split() for side in pair.split(">")] for pair in (one.prompt + one.answer)[5:].split(";")]
        assert len(pairs) == 5
        picks = ([0, 1], [1, 0], [0, 0], [1, 1])
        assert any(all([before[p] for p in pick] == after for before, after in pairs) for pick in picks)
    for one in exercises("words", 40, 0):
        steps, result = re.match(r" ([\d +-]+) = (\d+)\n#### \2$", one.answer).groups()
        assert sum(int(part) for part in steps.replace("- ", "-").replace("+ ", "").split()) == int(result)
        assert all(number in one.prompt for number in re.findall(r"\d+", steps))


@pytest.mark.parametrize(
    ("task", "answer", "right", "wrong"),
    [
        ("modulus", "3", ["3", "3 1+1=2"], ["", "31", " 3", "2"]),
        ("rule", " a b", [" a b", " a b; c", " a b;"], [" a", " ab", " a b c"]),
        ("words", " 2 + 3 = 5\n#### 5", [" 5\n#### 5", "#### 5.0"], ["#### 15", ""]),
    ],
)
def test_answers_are_read(task, answer, right, wrong):
    one = Exercise(task, "", answer)
    assert all(one.is_right(text) for text in right)
    assert not any(one.is_right(text) for text in wrong)


def test_no_question_stands_in_the_training_text(tmp_path):
    seen = rethinking_tasks.write_documents(tmp_path / "d.jsonl", 80, seed=0)
    texts = [json.loads(line)["text"] for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert len(texts) == len(seen) == 80
    for task in TASKS:
        for one in exercises(task, 30, 0, without=seen):  # of the same seed, so that they would be the same
            assert not any(text.startswith(one.prompt) for text in texts)


def test_rows_are_kept_and_gone_on_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rethinking, "TASKS", {name: TASKS[name] for name in ("lookup", "words")})
    for name, value in {"DOCUMENTS": 200, "VOCABULARY": 280, "ASKED": 2, "COUNTED": 1, "MOST": 5}.items():
        monkeypatch.setattr(rethinking, name, value)
    monkeypatch.setattr(rethinking, "LENGTH", 96)
    monkeypatch.setattr(rethinking, "ROUNDS", (0, 1))
    monkeypatch.setattr(rethinking, "SETTINGS", [*TINY, "model.window=48"])
    out = ["--out", str(tmp_path), "--seeds", "0"]
    rethinking.main([*out, "--hours", "0"])
    assert rows.known(tmp_path) == {}
    rethinking.main(out)
    found = rows.known(tmp_path)
    assert list(found) == ["s0-ltm", "s0-twin"]
    ltm, twin = (found[name]["tasks"]["lookup"] for name in found)
    assert ltm["operations"]["1"] > 2 * ltm["operations"]["0"] > 0
    paid = {rounds: round(cost / twin["operations"]) for rounds, cost in ltm["operations"].items()}
    assert twin["samples"] == {rounds: min(5, count) for rounds, count in paid.items()}
    capsys.readouterr()
    rethinking.main(out)
    assert capsys.readouterr().out == "", "nothing is measured again"
    lines = rethinking.tables(found)["rethinking"].splitlines()
    assert len(lines) == 2 + 2 * 2


def test_the_draft_of_the_highest_bound_is_kept():
    one = {"right": [[False, True, False], [True, False, False]], "scores": [[-2, -1, -3], [-2.0, -1.5, -1.0]]}
    assert [rethinking.kept(one, rounds) for rounds in (0, 1, 2)] == [[False, True], [True, False], [True, False]]
    assert rethinking.share([[True, False], [True, True]]) == "75.0 ± 21.7 (50 to 100)"
