"""docs/own-guide.md works as a stranger would follow it: the file, the commands, the Python, in an empty folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest
from helpers.processes import without_extras
from pyro_ltm_cli.main import cli

PAGE = Path(__file__).parents[1] / "docs" / "own-guide.md"
SMALL = ["model.dim=16", "model.layers=1", "model.heads=2", "slow.steps=1", "slow.batch_size=2"]
SMALL += ["slow.eval_sequences=2", "fast.steps=1", "data.vocab_size=280", "data.sequence_length=16"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_is_read_in_minutes():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 95


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_page_works_as_it_stands(tmp_path, monkeypatch, capsys, short):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    without_extras(monkeypatch.setattr)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    own, python, others = blocks("python")
    Path("mine.py").write_text(own + others)
    Path("birds.txt").write_text("".join(f"The {i % 7}th bird sang {i % 11} songs.\n" for i in range(100)))
    lines = [line[2:] for block in blocks("console") for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line.replace("python-docs", "birds.txt") if short else line)[1:]
        if short and words[0] == "train":
            words += [word for change in SMALL for word in ("--set", change)]
            words[words.index("--steps") + 1] = "1"
        elif short:
            words += ["--particles", "2"]
        if not short:
            subprocess.run([sys.executable, "-W", "error", "-m", "pyro_ltm_cli.main", *words], check=True)
            continue
        done = click.testing.CliRunner(catch_exceptions=False).invoke(cli, words)
        assert done.exit_code == 0, done.output
    if short:
        python = python.replace('["slow.steps=20"]', repr(SMALL)).replace("python-docs", "birds.txt")
    exec(python, {})
    assert "guide      mine:Isotropic by" in capsys.readouterr().out
