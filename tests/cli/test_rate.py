"""`train --rate`: how much thoughts are to carry."""

from __future__ import annotations

from pyro_ltm.presets import preset
from pyro_ltm.runs import Run


def test_a_rate_is_trained_for_and_what_came_of_it_is_said(invoke, settings, trained, tmp_path):
    out = tmp_path / "run"
    said = invoke("train", "--data", trained / "data", "--out", out, "--rate", 500, *settings(**{"slow.steps": 3}))
    assert said.exit_code == 0, said.stderr
    run = Run.load(out)
    assert (run.config.objective.name, run.config.objective.options["nats"]) == ("mean-rate", 500.0)
    # Three slow steps at a rate that is far below: each takes the log of the multiplier down by a fifth.
    assert float(run.loop.objective.learned()) < 0.1
    assert "nats of thoughts a sequence, where 500 were asked for" in said.stdout
    assert "missed 500 nats by more than 5%" in said.stderr
    again = invoke("train", "--resume", "--out", out, "--steps", 4)
    assert again.exit_code == 0, again.stderr
    assert float(Run.load(out).loop.objective.learned.log) < float(run.loop.objective.learned.log)


def test_it_has_a_preset_of_its_own_for_short_texts(monkeypatch, invoke, text, tmp_path):
    from pyro_ltm import training

    asked = []
    monkeypatch.setattr(training, "train", lambda config, **rest: asked.append(config) or exit(0))
    for options in (["--rate", "40"], ["--rate", "7", "--preset", "nano"], []):
        invoke("train", "--data", text, "--out", tmp_path / "run", *options)
    own, named, none = asked
    assert own == preset("nano-thoughts")
    assert (named.fast, named.objective.options["nats"]) == (preset("nano").fast, 7.0)
    assert none == preset("nano")


def test_which_preset_was_chosen_and_why_is_said_when_training_begins(invoke, settings, text, tmp_path):
    few = settings(**{"slow.steps": 1})
    usual = invoke("train", "--data", text, "--out", tmp_path / "usual", *few)
    assert usual.exit_code == 0, usual.stderr
    said = (
        "trained by the preset nano, for it is neither long nor a world's; another: --preset NAME; for features: --rate"
    )
    assert said in usual.stderr
    rate = invoke("train", "--data", text, "--out", tmp_path / "rate", "--rate", 40, *few)
    assert "by the preset nano-thoughts, for --rate asks for features; without it by nano" in rate.stderr
    named = invoke("train", "--data", text, "--out", tmp_path / "named", "--preset", "nano", *few)
    assert "by the preset" not in named.stderr
    for run, starved in (("usual", True), ("rate", False)):
        shown = invoke("embed", tmp_path / run, "--data", text, "--out", tmp_path / f"{run}.npz")
        assert shown.exit_code == 0, shown.stderr
        assert ("trained for likelihood (objective analytic-elbo)" in shown.stderr) == starved


def test_it_is_refused_where_it_contradicts(refuse, text, tmp_path):
    start = ("train", "--data", text, "--out", tmp_path / "run", "--rate")
    refuse(*start, 3, "--set", "objective.name=elbo", says=("--rate says what the objective is",), quiet=False)
    refuse(*start, 0, says=("--rate",), quiet=False)
    refuse(*start, 3, "--set", "model.thoughts=0", says=("--rate: a twin", "has no thoughts"), quiet=False)
