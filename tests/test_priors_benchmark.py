"""The benchmark of priors: its plan, its table, and rows that are there already are left alone."""

from __future__ import annotations

import json

from benchmarks import pages, priors
from pyro_ltm.priors import PRIORS


def row(name, fitted=False):
    figures = {"rate": 18.5, "rate_stderr": 0.5, "nats": 0.75, "nats_stderr": 0.01, "iwae": 0.74, "distortion": 0.7}
    return {"prior": name, "seed": 0, "steps": 5, "fitted": fitted, "from_prior": 0.9, "seconds": None, **figures}


def test_the_plan_names_priors_that_there_are_and_fits_under_a_run_that_is_there():
    plan = list(priors.planned(5, [0, 1]))
    assert len({one.name for one in plan}) == len(plan)
    assert all(one.prior == "twin" or PRIORS.parse(one.prior) for one in plan)
    for place, one in enumerate(plan):
        assert not one.fitted or priors.Row("gaussian", one.seed, 5) in plan[:place]


def test_rows_become_a_table_in_the_order_of_the_plan(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(pages, "FIGURES", tmp_path)
    monkeypatch.setattr(pages, "write", written.update)
    rows = [row("twin"), row("flow", fitted=True), row("gaussian")]
    priors.publish({priors._row(one).name: one for one in rows})
    (kept,) = tmp_path.glob("priors-*.json")
    assert [one["prior"] for one in json.loads(kept.read_text())] == ["gaussian", "flow", "twin"]
    assert written["priors"].splitlines()[3] == (
        "| fitted flow | 0 | 5 | 18.50 ± 0.50 | 0.7500 ± 0.0100 | 0.7400 | 0.7000 | 0.9000 | - |"
    )


def test_a_row_that_is_done_is_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(priors, "prepared", lambda *_: None)
    measured = []
    monkeypatch.setattr(priors, "measure", lambda one, *_: measured.append(one.name) or row(one.prior))
    priors.main(["--out", str(tmp_path), "--steps", "5", "--seeds", "0", "--only", "flow"])
    assert measured == ["fitted-flow-s0-5", "trained-flow-s0-5"]
    priors.main(["--out", str(tmp_path), "--steps", "5", "--seeds", "0", "--only", "flow"])
    assert len(measured) == 2
