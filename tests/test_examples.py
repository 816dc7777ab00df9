"""Every example runs, and none is forgotten."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.few_documents import use_few_documents
from helpers.processes import without_extras
from pyro_ltm_cli.main import cli

from examples import algorithm_1, worlds
from pyro_ltm.config import apply_settings, load_toml
from pyro_ltm.inference.build import check_config
from pyro_ltm.presets import PRESETS, preset
from pyro_ltm.thoughts import probes

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.xdist_group("examples")  # one process runs the demo for all


SMALL = ["model.dim=32", "model.layers=1", "model.heads=2", "fast.steps=2"]
SMALL = [word for change in (*SMALL, "slow.batch_size=4", "slow.eval_sequences=8") for word in ("--set", change)]


FEW_WORLDS = {"WORLDS": "worlds:length=8,documents=40", "DOCUMENTS": 3, "FAST_STEPS": 2}


def run(name, folder, *arguments, short=False):
    """What an example says: as a process, or in short in this one: a smaller model, fewer folds, no extras."""
    if short:
        return run_here(name, folder, *arguments)
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_here(name, folder, *arguments):
    def call(command, **options):
        words = command[command.index("pyro_ltm_cli.main") + 1 :]
        words += {"train": SMALL, "evaluate": ["--sequences", "8"], "report": ["--sequences", "12"]}.get(words[0], [])
        done = CliRunner(catch_exceptions=False).invoke(cli, words)
        assert done.exit_code == 0, done.output
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout)

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(folder)
        use_few_documents(patch)
        without_extras(patch.setattr)
        patch.setattr(probes, "FOLDS", 3)
        patch.setattr(subprocess, "run", call)
        patch.setitem(sys.modules, "worlds", worlds)
        for changed, value in FEW_WORLDS.items():
            patch.setattr(worlds, changed, value)
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return said.getvalue()


@pytest.fixture(scope="module", params=["short", pytest.param("to the letter", marks=pytest.mark.long)])
def demo(request, tmp_path_factory):
    """The demo's folder, what it said, and whether it is the short one."""
    folder, short = tmp_path_factory.mktemp("demo"), request.param == "short"
    return folder / "demo", run("demo.py", folder, "--out", "demo", "--steps", "2", short=short), short


def test_none_is_forgotten():
    notebooks = {path.with_suffix(".py").name for path in EXAMPLES.glob("*.ipynb")}  # run by test_notebook.py
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "algorithm_1.py",
        "demo.py",
        "compare_guides.py",
        "made_language.py",  # what the notebooks import
        "worlds.py",
    } | notebooks, "run it here"


def test_algorithm_1_trains(capsys):
    algorithm_1.main(steps=3, report=1)
    bounds = [float(line.split()[5]) for line in capsys.readouterr().out.splitlines() if "at most" in line]
    assert len(bounds) == 3
    assert bounds[-1] < bounds[0]


@pytest.mark.long
def test_worlds_show_a_way_to_go(tmp_path):
    found = worlds.compare(tmp_path, None)
    assert found["bound"]["sequences"] == found["twin"]["sequences"] == 16
    assert found["closed"]["bound"]["share"] > 0.05


def test_the_demo_runs(demo):
    folder, said, short = demo
    summary = json.loads((folder / "demo.json").read_text())
    assert summary["bound"]["sequences"] == summary["twin"]["sequences"] == (8 if short else 128)
    assert (folder / "ltm/plots/bounds.png").read_bytes().startswith(b"\x89PNG")
    long = summary["worlds"]
    assert long["bound"]["sequences"] == long["twin"]["sequences"] == (3 if short else 16)
    assert long["floor"]["nats_per_token"] < long["twin"]["nats_per_token"]
    assert set(summary["probe"]["baselines"]) > {"untrained decoder", "bag of words"}
    learned, judged = (set(texts_of(folder / name)) for name in ("text.jsonl", "kinds.jsonl"))
    assert len(judged) >= 100
    assert not learned & judged
    for part in (
        "Written again from its thoughts",
        "whose thoughts lie nearest",
        "nats a token",
        "entropy, exactly",
        "Next:",
    ):
        assert part in said


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def check_comparison(folder, said):
    pairs = json.loads((folder / "comparison/compare.json").read_text())["pairs"]
    assert len(pairs) == 9
    assert all(pair["elbo"] is not None for pair in pairs)
    assert "Isotropic" in said
    assert "Thermodynamic" in (folder / "comparison/compare.html").read_text()


def test_guides_are_compared_under_a_run(demo, tmp_path):
    few = ["--sequences", "2"] if demo[2] else []
    said = run("compare_guides.py", tmp_path, str(demo[0] / "ltm"), "--out", "compared", *few, short=demo[2])
    check_comparison(tmp_path / "compared", said)


@pytest.mark.long
def test_guides_are_compared_under_a_run_that_is_trained_first(tmp_path):
    said = run("compare_guides.py", tmp_path, "--out", "compared", "--steps", "2")
    check_comparison(tmp_path / "compared", said)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit(name):
    check_config(apply_settings(preset(name), ["model.vocab_size=300"]))


CONFIGURATIONS = sorted(path for path in EXAMPLES.glob("*.toml") if path.name != "tasks.toml")  # texts, not settings


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_configurations_are_read_and_fit(path):
    check_config(load_toml(path, preset("nano")))
