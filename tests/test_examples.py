"""Every example runs, and none is forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples import algorithm_1
from pyro_ltm.config import apply_settings, load_toml
from pyro_ltm.inference.build import check_config
from pyro_ltm.presets import PRESETS, preset

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.xdist_group("examples")  # one process runs the demo for all


def run(name, folder, *arguments):
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's folder, and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    return folder / "demo", run("demo.py", folder, "--out", "demo", "--steps", "2")


def test_none_is_forgotten():
    notebooks = {path.with_suffix(".py").name for path in EXAMPLES.glob("*.ipynb")}  # run by test_notebook.py
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "algorithm_1.py",
        "demo.py",
        "compare_guides.py",
    } | notebooks, "run it here"


def test_algorithm_1_trains(capsys):
    algorithm_1.main(steps=6, report=2)
    bounds = [float(line.split()[5]) for line in capsys.readouterr().out.splitlines() if "at most" in line]
    assert len(bounds) == 3
    assert bounds[-1] < bounds[0]


def test_the_demo_runs(demo):
    folder, said = demo
    summary = json.loads((folder / "demo.json").read_text())
    assert summary["bound"]["sequences"] == summary["twin"]["sequences"] == 128
    assert (folder / "ltm/plots/bounds.png").read_bytes().startswith(b"\x89PNG")
    assert "Next:" in said


def check_comparison(folder, said):
    pairs = json.loads((folder / "comparison/compare.json").read_text())["pairs"]
    assert len(pairs) == 9
    assert all(pair["elbo"] is not None for pair in pairs)
    assert "isotropic" in said
    assert "thermodynamic" in (folder / "comparison/compare.html").read_text()


def test_guides_are_compared_under_a_run(demo, tmp_path):
    said = run("compare_guides.py", tmp_path, str(demo[0] / "ltm"), "--out", "compared")
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
