"""What is said before work that takes long."""

from __future__ import annotations

import pytest
from pyro_ltm_cli import estimate

ANNOUNCE = estimate.announce


@pytest.fixture
def at_once(monkeypatch):
    """Everything takes long."""
    monkeypatch.setattr(estimate, "announce", ANNOUNCE)
    monkeypatch.setattr(estimate, "LONG", 0.0)


def test_a_training_is_announced_and_is_the_same(invoke, settings, trained, tmp_path, at_once):
    few = settings(**{"slow.steps": 2})
    said = invoke("train", "--data", trained / "data", "--out", tmp_path / "a", *few)
    assert said.exit_code == 0, said.stderr
    (line,) = [line for line in said.stderr.splitlines() if line.startswith("Training takes about")]
    for part in ("2 slow steps", "guide mean-field", "objective analytic-elbo", "--steps N", "--preset"):
        assert part in line
    more = invoke("train", "--resume", "--out", tmp_path / "a", "--steps", 3)
    assert "1 slow steps" in more.stderr  # what is left of it
    estimate.LONG = 1e9
    quiet = invoke("train", "--data", trained / "data", "--out", tmp_path / "b", *few)
    assert "Training takes" not in quiet.stderr
    invoke("train", "--resume", "--out", tmp_path / "b", "--steps", 3)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_guides_that_learn_first_are_announced_once(invoke, trained, tmp_path, at_once):
    options = ("--guides", "mean-field,amortized", "--objectives", "elbo", "--sequences", 2, "--fast-steps", 1)
    found = invoke("compare", trained, *options, "--particles", 2, "--guide-steps", 2, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    (line,) = [line for line in found.stderr.splitlines() if "parameters of their own" in line]
    for part in ("pairs: 1", "2 slow steps", "--guide-steps N"):
        assert part in line


def test_why_a_preset_was_chosen(invoke, tmp_path, settings):
    few = settings(**{"slow.steps": 1, "model.max_length": 32, "data.sequence_length": 32})
    found = invoke("train", "--data", "worlds:size=2,length=3,documents=200", "--out", tmp_path / "run", *few)
    assert "preset nano-worlds, for its documents are a world's, and short; another: --preset NAME" in found.stderr
