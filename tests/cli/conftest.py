"""A tiny trained run, made once, and ways to call the command line: inside this process, or as a real one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest
from helpers.processes import Forked, without_extras
from pyro_ltm_cli.main import cli

TINY = {
    "model.dim": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.thoughts": 2,
    "model.max_length": 32,
    "data.sequence_length": 32,
    "data.vocab_size": 300,
    "fast.steps": 2,
    "slow.steps": 4,
    "slow.warmup": 1,
    "slow.batch_size": 4,
    "slow.eval_sequences": 8,
    "optimizer.lr": 0.3,
}

Result = click.testing.Result
Invoke = Callable[..., Result]


def words(count: int, seed: int = 0) -> str:
    """Lines of words that a tokenizer of 300 tokens finds merges in."""
    draw = random.Random(seed)
    known = [
        "".join(draw.choice(("ka", "lo", "mi", "ter", "son", "ve", "du")) for _ in range(draw.randint(1, 3)))
        for _ in range(60)
    ]
    return "".join(" ".join(draw.choices(known, k=8)) + ".\n" for _ in range(count // 8))


@pytest.fixture(scope="session")
def settings() -> Callable[..., list[str]]:
    """The arguments that make a run tiny; `settings(**{"slow.steps": 9})` changes some."""

    def build(**changes: Any) -> list[str]:
        return [part for key, value in {**TINY, **changes}.items() for part in ("--set", f"{key}={value}")]

    return build


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """Calls the command line inside this process."""
    runner = click.testing.CliRunner()

    def call(*arguments: object) -> Result:
        result = runner.invoke(cli, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture(scope="session")
def ask(invoke: Invoke) -> Callable[..., dict[str, Any]]:
    """Calls a command that must succeed with --json, and gives its object."""

    def call(*arguments: object) -> dict[str, Any]:
        result = invoke(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    return call


@pytest.fixture(scope="session")
def spawn() -> Callable[..., subprocess.Popen[str]]:
    """Starts the command line from nothing, warnings as errors: where how Python begins or ends is what is tested."""

    def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-m", "pyro_ltm_cli.main", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **{**pipes, **options})

    return start


@pytest.fixture(scope="session")
def fork() -> type[Forked]:
    """Starts the command line as a process of its own, without the seconds that its imports take."""
    return Forked


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Asserts that a call was refused as bad input is: exit code 2, one line of error. Gives that line."""

    def check(code: int, stdout: str, stderr: str, *expected: str) -> str:
        assert code == 2, stderr
        assert stdout == ""
        assert "Traceback" not in stderr
        line = stderr.splitlines()[-1]
        assert line.startswith("Error: ")
        assert stderr.count("Error: ") == 1
        for text in expected:
            assert text in line
        return line

    return check


@pytest.fixture
def refuse(invoke: Invoke, refused: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """Calls a command that must be refused and must leave nothing behind in `tmp_path`. Gives the line of error."""

    def call(*arguments: object, says: tuple[str, ...] = (), quiet: bool = True) -> str:
        before = listing(tmp_path)
        result = invoke(*arguments)
        line = refused(result.exit_code, result.stdout, result.stderr, *says)
        assert not quiet or result.stderr.count("\n") == 1
        assert listing(tmp_path) == before
        return line

    return call


def listing(folder: Path) -> dict[str, int]:
    """Every path below `folder`, with the size of files."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size if path.is_file() else -1 for path in folder.rglob("*")
    }


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(words(4000), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(invoke: Invoke, settings: Any, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; do not write to it (copy it: `own_run`)."""
    out = tmp_path_factory.mktemp("runs") / "ltm"
    result = invoke("train", "--data", text, "--out", out, *settings())
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def twin(invoke: Invoke, settings: Any, trained: Path) -> Path:
    """The autoregressive twin of `trained`, on the same data."""
    out = trained.parent / "twin"
    result = invoke("train", "--data", trained / "data", "--out", out, *settings(**{"model.thoughts": 0}))
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def own_run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json")))


@pytest.fixture
def with_extras() -> None:
    """For tests of what is painted, or said before a training: commands do all that they do for users."""


@pytest.fixture(autouse=True)
def _without_extras(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands draw their figures and write their files, but nobody paints them; runs that tests share have all."""
    if "with_extras" not in request.fixturenames:
        without_extras(monkeypatch.setattr)


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width and the colours of whoever runs the tests do not matter."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    os.environ.pop("PYTHONWARNINGS", None)


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """Whoever runs the tests in the background, or under nohup, ignores signals; processes would inherit that."""
    names = ("SIGINT", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
