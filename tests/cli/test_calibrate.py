"""`pyro-ltm calibrate`."""

from __future__ import annotations

import json

from pyro_ltm.runs import Run

SMALL = ("--texts", 10, "--length", 6, "--draws", 9)


def test_calibrate(ask, invoke, trained):
    found = ask("calibrate", trained, *SMALL, "--sandwich", 2, "--chains", 2, "--leapfrogs", 1)
    one, both = found["calibration"], found["sandwich"]
    assert (one["texts"], one["draws"], one["tokens"]) == (both["texts"], 9, both["at_most"]["tokens"]) == (10, 9, 60)
    for test in one["tests"]:
        assert sum(test["histogram"]) == 10
        assert 0 <= test["p_value"] <= 1
    assert one == json.loads(json.dumps(Run.load(trained).calibrate(10, length=6, draws=9).to_dict()))
    for name in ("at_most", "at_least", "bound", "importance_weighted"):
        assert both[name]["nats_per_token"] > 0
    shown = invoke("calibrate", trained, *SMALL, "--sandwich", 2).stdout
    assert f"In short: {one['verdict']}" in shown
    assert "Nats of the same texts, from both sides" in shown
    assert "10 texts of the model itself, 60 tokens" in shown


def test_what_cannot_be_calibrated_is_refused(refuse, trained, twin):
    refuse("calibrate", trained, "--texts", 4, says=("at least 10 texts",))
    refuse("calibrate", trained, "--chains", 2, says=("--sandwich",))
    refuse("calibrate", trained, "--length", 1000, says=("from 1 to 32 tokens",))
    refuse("calibrate", twin, says=("no thoughts",))
