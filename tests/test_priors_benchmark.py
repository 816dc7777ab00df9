"""The benchmark of priors: its plan and its table. How rows are kept and gone on with: tests/test_studies.py."""

from __future__ import annotations

from benchmarks import priors
from pyro_ltm.priors import PRIORS


def row(name, fitted=False):
    figures = {"rate": 18.5, "rate_stderr": 0.5, "nats": 0.75, "nats_stderr": 0.01, "iwae": 0.74, "distortion": 0.7}
    return {"prior": name, "seed": 0, "steps": 5, "fitted": fitted, "from_prior": 0.9, "seconds": None, **figures}


def test_the_plan_names_priors_that_there_are_and_fits_under_a_run_that_is_there():
    plan = list(priors.planned([0, 1]))
    assert len({one.name for one in plan}) == len(plan)
    assert all(one.prior == "twin" or PRIORS.parse(one.prior) for one in plan)
    for place, one in enumerate(plan):
        assert not one.fitted or priors.Row("gaussian", one.seed) in plan[:place]


def test_rows_become_a_table_in_the_order_of_the_plan():
    texts = {"written": {"bits": 2.5, "bits_stderr": 0.02, "mauve": 0.8, "mauve_spread": 0.1}}
    table = priors.tables({"a": row("twin"), "b": row("flow", fitted=True) | texts, "c": row("gaussian")})["priors"]
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| twin", "| gaussian", "| fitted flow"]
    assert table.splitlines()[3] == (
        "| gaussian | 0 | 5 | 18.50 ± 0.50 | 0.7500 ± 0.0100 | 0.7400 | 0.7000 | 0.9000 | - | - | - |"
    )
    assert table.splitlines()[4].endswith("| 0.9000 | 2.500 ± 0.020 | 0.800 ± 0.100 | - |")


def test_steps_are_chosen_on_the_command_line(monkeypatch):
    asked = []
    monkeypatch.setattr(priors, "run", lambda study, others: asked.append((list(study.planned([0])), others)))
    priors.main(["--out", "somewhere", "--steps", "200", "--seeds", "0"])
    priors.main(["--out", "somewhere"])
    (few, others), (usual, _) = asked
    assert {row.steps for row in few} == {200}
    assert others == ["--out", "somewhere", "--seeds", "0"]
    assert [row.name for row in usual[:2]] == ["trained-twin-s0-500", "trained-gaussian-s0-500"]
