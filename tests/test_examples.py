"""Every example runs, and none is forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_ltm.config import PRESETS, apply_settings, load_toml, preset
from pyro_ltm.inference.parts import Parts

EXAMPLES = Path(__file__).parents[1] / "examples"
PYTHON = {
    "demo.py": ["--out", "demo", "--steps", "2"],
    "compare_guides.py": ["--out", "compared", "--steps", "2"],
}


def test_none_is_forgotten():
    notebooks = {path.with_suffix(".py").name for path in EXAMPLES.glob("*.ipynb")}  # run by test_notebook.py
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PYTHON) | notebooks


@pytest.mark.parametrize("name", PYTHON)
def test_runs(name, tmp_path):
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *PYTHON[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "demo.py":
        summary = json.loads((tmp_path / "demo/demo.json").read_text())
        assert summary["bound"]["sequences"] == summary["twin"]["sequences"] == 128
        assert (tmp_path / "demo/ltm/plots/bounds.png").read_bytes().startswith(b"\x89PNG")
        assert "Next:" in done.stdout
    if name == "compare_guides.py":
        pairs = json.loads((tmp_path / "compared/comparison/compare.json").read_text())["pairs"]
        assert len(pairs) == 9
        assert all(pair["elbo"] is not None for pair in pairs)
        assert "isotropic" in done.stdout
        assert "thermodynamic" in (tmp_path / "compared/comparison/compare.html").read_text()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit(name):
    Parts.check(apply_settings(preset(name), ["model.vocab_size=300"]))


CONFIGURATIONS = sorted(path for path in EXAMPLES.glob("*.toml") if path.name != "tasks.toml")  # texts, not settings


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_configurations_are_read_and_fit(path):
    Parts.check(load_toml(path, preset("nano")))
