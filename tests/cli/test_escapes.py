"""What a terminal would obey is shown and not sent to it, wherever the text comes from; JSON and files stay exact."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pyro_ltm_cli.output import show_table

ESCAPE = "\x1b]0;owned\x07\x9b2J\u202e[bold]"
SEEN = r"\x1b]0;owned\x07\x9b2J\u202e[bold]"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(result):
    """All that the command printed."""
    assert not OBEYED.search(result.stdout + result.stderr), (result.stdout, result.stderr)
    return result.stdout + result.stderr


def test_in_paths_columns_and_values(invoke, trained, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({ESCAPE: "x"}) + "\n", encoding="utf-8")
    (tmp_path / "c.toml").write_text('"\\u001b[2J" = 1\n', encoding="utf-8")
    for command in (
        ["prepare", ESCAPE, "--out", tmp_path / "d"],
        ["prepare", tmp_path / "a.jsonl", "--out", tmp_path / "d"],
        ["train", "--data", ESCAPE, "--out", tmp_path / "r"],
        ["train", "--data", "worlds", "--config", tmp_path / "c.toml", "--out", tmp_path / "r"],
        ["train", "--data", "worlds", "--set", f"{ESCAPE}=1", "--out", tmp_path / "r"],
        ["info", tmp_path / ESCAPE],
        ["evaluate", trained, "--data", ESCAPE],
        ["guides", ESCAPE],
        [ESCAPE],
        [f"--{ESCAPE}"],
        ["generate", trained, "--temperature", ESCAPE],
    ):
        result = invoke(*command)
        assert result.exit_code == 2
        assert r"\x1b" in shown(result)


def test_in_prompts_and_texts(invoke, ask, trained, tmp_path):
    prompt = "kalo " + ESCAPE
    result = invoke("generate", trained, "--prompt", prompt, "--max-new-tokens", 1)
    assert result.exit_code == 0
    assert SEEN in shown(result)
    answer = ask("generate", trained, "--prompt", prompt, "--max-new-tokens", 1)
    assert answer["prompt"] == prompt
    result = invoke("reconstruct", trained, "--text", ESCAPE)
    assert SEEN in shown(result)


def test_in_tables(capsys):
    show_table(ESCAPE, ["name", ESCAPE], [[ESCAPE, "1"]])
    out = capsys.readouterr().out
    assert not OBEYED.search(out)
    assert out.count("[bold]") == 3


def test_everything_is_printed_in_one_place():
    """Where control characters are made visible: another `echo` would go round it."""
    folder = Path(__file__).parents[2] / "cli"
    prints = re.compile(r"click\.s?echo\(|(?<![.\w])print\(|std(out|err)\.write\(|\bConsole\(")
    found = {path.name for path in folder.glob("*.py") if prints.search(path.read_text(encoding="utf-8"))}
    assert found == {"main.py", "output.py", "progress.py"}
