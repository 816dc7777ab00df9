"""What README.md and docs/commands.md tell a newcomer to type works: commands and Python, in order, in an empty folder.

The short form takes a few steps where they take some hundred, and most of its commands share this process, since
to import torch takes longer than most of them; the long one runs it to the letter.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest
from pyro_ltm_cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "commands.md")
SHORT = ["--set", "slow.steps=3", "--set", "slow.eval_sequences=8", "--set", "slow.batch_size=4"]

OWN = ("report", "bench")
"""Commands that have a process of their own in the short form, too. Most of the others have one in examples/demo.py."""


def blocks(language: str) -> list[str]:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-2000:]}"
    return done


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_commands(tmp_path, monkeypatch, short):
    monkeypatch.chdir(tmp_path)
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) >= 9
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "pyro-ltm"
        if short and arguments[0] == "train":
            arguments += SHORT
        if short and "--sequences" in arguments:
            arguments[arguments.index("--sequences") + 1] = "8"
        if short and arguments[0] not in OWN:
            done = click.testing.CliRunner(catch_exceptions=False).invoke(cli, arguments)
            assert done.exit_code == 0, f"{line}\n{done.output[-2000:]}"
        else:
            run(tmp_path, sys.executable, "-W", "error", "-m", "pyro_ltm_cli.main", *arguments)
    assert (tmp_path / "runs/first/plots/training.png").is_file()
    assert (tmp_path / "thoughts.safetensors").is_file()


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_python(tmp_path, short):
    code = "\n".join(blocks("python"))
    if short:
        assert "slow.steps=200" in code
        code = code.replace('"slow.steps=200"', '"slow.steps=3", "slow.batch_size=4", "slow.eval_sequences=8"')
        code = code.replace("sequences=64", "sequences=8")
    output = run(tmp_path, sys.executable, "-W", "error", "-c", code).stdout
    assert "nats a token" in output
    assert "thoughts" in output
