"""`pyro-ltm generate --prompts` and `--rethink`."""

from __future__ import annotations

import json
import sys

import pytest

PROMPTS = ["kalo", "mi terson ve", "du", "kalo"]
SHORT = ("--max-new-tokens", 5)


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{n}", "prompt": text, "text": "not this"} for n, text in enumerate(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_row_for_each_continuation(invoke, ask, trained, lines, records, tmp_path):
    options = ["generate", trained, *SHORT, "--num", 2, "--seed", 3]
    shown = invoke(*options, "--prompts", lines)
    assert shown.exit_code == 0, shown.stderr
    rows = rows_of(shown.stdout)
    assert list(rows[0]) == ["id", "prompt", "continuation", "sample", "tokens", "ended", "seed"]
    assert [(row["id"], row["prompt"], row["sample"]) for row in rows] == [
        (number, prompt, sample) for number, prompt in enumerate(PROMPTS, 1) for sample in range(2)
    ]
    assert all(row["tokens"] <= 5 and row["seed"] == 3 for row in rows)
    assert "generate: 8/8 texts" in shown.stderr
    out = tmp_path / "written.jsonl"
    found = ask(*options, "--prompts", records, "--out", out)
    assert (found["texts"], found["out"], found["run"], found["step"]) == (8, str(out), str(trained), 4)
    assert found["cost"]["tokens"] == sum(row["tokens"] + row["ended"] for row in rows)
    written = rows_of(out.read_text())
    assert [row.pop("id") for row in written] == [f"p{n}" for n in range(4) for _ in range(2)]
    for row in rows:
        del row["id"]
    assert written == rows, "the same prompts in another kind of file"


def test_other_columns_and_a_twin(invoke, ask, twin, records):
    named = ask("generate", twin, "--prompts", records, "--text-column", "text", *SHORT)["rows"]
    assert [row["prompt"] for row in named] == ["not this"] * 4
    assert len({row["continuation"] for row in named}) > 1, "the same prompt again, on other noise"


def test_rethinking(ask, invoke, trained, lines, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "rewards_of_mine.py").write_text(
        "import math\n\n\ndef brevity(z, text):\n    assert z.shape == (2, 16)\n    return -len(text)\n\n\n"
        "def never(z, text):\n    return -math.inf\n\n\ndef lost(z, text):\n    return math.nan\n\n\n"
        "def broken(z, text):\n    raise OSError(5, 'gone')\n\n\nnumber = 3\n"
    )
    options = ["generate", trained, *SHORT]
    keep = [*options, "--rethink", 2, "--keep"]
    for row in ask(*keep, "rewards_of_mine:brevity", "--prompts", lines)["rows"]:
        assert max(row["scores"]) == -len(row["prompt"] + row["continuation"]) == row["scores"][row["kept"]]
    first = ask(*options, "--prompt", "kalo", "--operations")
    (text,) = ask(*keep, "rewards_of_mine:never", "--prompt", "kalo")["texts"]
    drafts = text.pop("drafts")
    assert text == first["texts"][0] | {"kept": 0, "scores": [None] * 3}, "JSON has no infinity"
    assert (len(drafts), drafts[0]) == (3, text["text"])
    (text,) = ask(*keep, "bound", "--prompt", "kalo")["texts"]
    assert len(text["scores"]) == 3
    dear = ask(*options, "--prompt", "kalo", "--refit-every", 1, "--operations")["cost"]["operations_per_token"]
    assert dear > first["cost"]["operations_per_token"]
    assert invoke(*options, "--prompt", "kalo", "--rethink", 0).stdout == invoke(*options, "--prompt", "kalo").stdout
    for name, says in {
        "rewards_of_mine:lost": "lost(z, text) gave NaN for the text 'kalo",
        "rewards_of_mine:broken": "broken(z, text) failed: OSError: [Errno 5] gone (rewards_of_mine.py, line 18)",
        "rewards_of_mine:number": "is a int; expected a function",
        "rewards_of_mine:absent": "rewards_of_mine",
        "no_such_module_here:f": "no_such_module_here",
        "likelihood": "give bound, or a function of your own as module:function",
    }.items():
        result = invoke(*keep, name, "--prompt", "kalo")
        assert result.exit_code == 2
        assert says in result.stderr.splitlines()[-1]


def test_a_twin_cannot_rethink(refuse, twin):
    refuse("generate", twin, "--prompt", "kalo", "--rethink", 1, says=("twin", "nothing to fit again"))


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("kalo\n\ndu\n", "p.txt", ("p.txt:2: an empty prompt",)),
        ("", "p.txt", ("no prompts in it",)),
        ('{"prompt": "kalo"}\n{"prompt": ""}\n', "p.jsonl", ("p.jsonl:2: an empty prompt",)),
        ('{"prompt": "kalo"}\n{"prompt"\n', "p.jsonl", ("p.jsonl:2: not valid JSON",)),
        ('{"prompt": "kalo"}\n[1]\n', "p.jsonl", ("p.jsonl:2: a JSON list",)),
        ('{"prompt": 3}\n', "p.jsonl", ("p.jsonl:1: 'prompt' is int",)),
        ('{"promt": "kalo"}\n', "p.jsonl", ("no column 'prompt'", "its columns are promt")),
        ("kalo\n" + "kalo miter " * 40, "p.txt", ("p.txt:2: the text has", "at most 31")),
        ("kalo\n" + "kalo miter " * 7, "p.txt", ("p.txt:2:", "5 new ones", "ask for at most")),
    ],
)
def test_bad_prompts(content, name, says, refuse, trained, tmp_path):
    (tmp_path / name).write_text(content)
    refuse("generate", trained, "--prompts", tmp_path / name, *SHORT, says=says)


def test_bad_options(refuse, trained, lines, records, tmp_path):
    def check(*options, says):
        refuse("generate", trained, *options, says=(says,), quiet=False)

    check("--prompts", tmp_path / "none.txt", says="no such file")
    check("--prompts", records, "--text-column", "question", says="no column 'question'")
    check("--prompts", lines, "--text-column", "question", says="lines of text have no column 'question'")
    check("--prompts", lines, "--prompt", "kalo", says="give neither --prompt nor --thoughts")
    check("--prompts", lines, "--out", lines, says="is read by this command")
    check("--prompts", lines, "--out", trained / "config.toml", says="is a part of")
    check("--prompt", "kalo", "--out", tmp_path / "o.jsonl", says="--out: is for the rows of --prompts")
    check("--prompts", lines, "--out", tmp_path / "o.csv", says="o.csv: expected a name that ends in .jsonl or .ndjson")
    check("--prompt", "kalo", "--keep", "a:b", says="--keep: chooses among the texts of --rethink")
