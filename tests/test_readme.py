"""What README.md and two pages of docs/ say to type works: commands and Python, in order, in an empty folder.

The short form takes a few steps of a smaller model where they take some hundred, paints nothing, and shares this
process, since to import torch takes longer than most of its commands; the long one runs it to the letter.
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
from helpers.few_documents import use_few_documents
from helpers.processes import without_extras
from pyro_ltm_cli.main import cli

from pyro_ltm.thoughts import probes

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "commands.md", ROOT / "docs" / "use-thoughts.md")
SMALL = [
    *("model.dim=32", "model.layers=1", "model.heads=2", "fast.steps=2"),
    *("slow.steps=3", "slow.eval_sequences=8", "slow.batch_size=4"),
]
SHORT = [word for change in SMALL for word in ("--set", change)]
FEW = {"--sequences": "8", "--score-sequences": "8", "--particles": "2", "--texts": "10", "--steps": "3"}
FEW_WORLDS = ("worlds:documents=2000", "worlds:documents=100")
MORE = {"train": SHORT, "bench": ["--rounds", "1", *SHORT], "compare": ["--particles", "2"]}
MORE["scale"] = ["--device-flops", "1e9", "--set", "model.layers=1"]
"""What commands of the short form have instead of their numbers, and besides."""


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
    if short:
        use_few_documents(monkeypatch)
        without_extras(monkeypatch.setattr)
        monkeypatch.setattr(probes, "FOLDS", 3)
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) >= 9
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "pyro-ltm"
        if short:
            arguments = [
                FEW.get(before, word.replace(*FEW_WORLDS))
                for before, word in zip(["", *arguments], arguments, strict=False)
            ]
            arguments += MORE.get(arguments[0], [])
            done = click.testing.CliRunner(catch_exceptions=False).invoke(cli, arguments)
            assert done.exit_code == 0, f"{line}\n{done.output[-2000:]}"
        else:
            run(tmp_path, sys.executable, "-W", "error", "-m", "pyro_ltm_cli.main", *arguments)
    assert (tmp_path / "runs/first/plots/training.png").is_file()
    assert (tmp_path / "thoughts.safetensors").is_file()


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_python(tmp_path, monkeypatch, capsys, short):
    code = "\n".join(blocks("python"))
    assert '"slow.steps=200"' in code
    if short:
        monkeypatch.chdir(tmp_path)
        use_few_documents(monkeypatch)
        exec(code.replace('["slow.steps=200"]', repr(SMALL)).replace("sequences=64", "sequences=8"), {})
        output = capsys.readouterr().out
    else:
        output = run(tmp_path, sys.executable, "-W", "error", "-c", code).stdout
    assert "nats a token" in output
    assert "thoughts" in output
