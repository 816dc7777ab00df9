"""The study of the design space runs at a tiny size, goes on where it was, and its tables say what its cells say."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

import pytest
from helpers.scaling_rows import FLOOR, rows

from benchmarks import pages, scaling, scaling_pictures, scaling_tables, texts
from pyro_ltm.comparison.scaling.grid import DIFFUSION, TWIN, Axis, Grid

WORLD = "worlds-15"
TINY = ["model.dim=16", "model.thoughts=4", "slow.steps=2", "slow.eval_sequences=1"]


def published_in(folder, monkeypatch):
    """Figures and pictures come there, and no page changes."""
    monkeypatch.setattr(pages, "FIGURES", folder)
    monkeypatch.setattr(pages, "pages", list)
    drawn = partial(scaling_pictures.draw, operations=folder / "operations.png", sizes=folder / "sizes.png")
    monkeypatch.setattr(scaling_pictures, "draw", drawn)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Worlds of three sentences, few cells."""
    sources = {"train": "worlds:documents=60,length=3", "test": "worlds:documents=6,length=3"}
    one = texts.Text(label="tiny worlds", length=32, batch_size=2, test_sequences=4, **sources)
    monkeypatch.setitem(texts.TEXTS, WORLD, one)
    parts = [(["fast.steps=1"], (0,), (TWIN, DIFFUSION))] * 2  # the second has nothing left to do
    for name, value in {"TEXT_NAMES": (WORLD,), "WINDOWS": (8,), "MIDDLE": TINY, "PARTS": parts}.items():
        monkeypatch.setattr(scaling, name, value)
    monkeypatch.setattr(scaling, "SCORING", scaling.Scoring(sequences=3, particles=2))
    published_in(tmp_path, monkeypatch)
    return tmp_path


@pytest.mark.long
def test_cells_are_measured_once_and_published(tiny, capsys):
    scaling.main(["--out", str(tiny / "runs"), "--shared", str(tiny)])
    begun = capsys.readouterr().out.splitlines()
    assert len(begun) == len(set(begun)) == 1 + 2 * 2
    scaling.main(["--table", str(tiny / "runs")])
    (path,) = tiny.glob("scaling-*.json")
    found = json.loads(path.read_text())
    (study,) = found.values()
    assert len(study["cells"]) == len(begun)
    assert {gap["equal"] for gap in study["gaps"]} == {"tokens", "flops", "writing"}
    assert (tiny / "runs" / "worlds-15-w8" / "scaling.html").is_file()
    made = scaling_tables.tables(found)
    assert made["scaling cells"].count("\n") == 2 + len(begun)
    assert all("why" in law for law in study["laws"])
    assert made["scaling laws"].count("\n") == 2, "of one cell no law is expected, and nothing is said"
    same = {"thoughts": 4, "dim": 16, "layers": 2}
    by_steps = scaling_tables._by(found, "fast_steps", "fast steps", same)
    (cell,) = scaling_tables.ltms(study["cells"], {**same, "fast_steps": 1})
    assert f"| worlds-15-w8 | 1 | 1 | {cell['bound']['nats_per_token']:.4f} |" in by_steps


def test_parts_and_seeds_of_the_plan_can_be_chosen(tiny, monkeypatch, capsys):
    asked = []
    parts = [([axis], (0,), (TWIN, DIFFUSION)) for axis in ("fast.steps=1", "fast.steps=2", "fast.steps=3")]
    monkeypatch.setattr(scaling, "PARTS", parts)
    monkeypatch.setattr(scaling, "run_study", lambda grid, **_: asked.append(grid))
    run = ["--out", str(tiny / "runs"), "--shared", str(tiny)]
    scaling.main([*run, "--parts", "3,1", "--seeds", "5,7", "--rivals", "twin"])
    assert [grid.axes[0].values for grid in asked] == [(("3",),), (("1",),)]
    assert {(*grid.seeds, *grid.rivals) for grid in asked} == {(5, 7, TWIN)}
    asked.clear()
    scaling.main(run)
    assert [grid.axes[0].values for grid in asked] == [(("1",),), (("2",),), (("3",),)]
    assert {(*grid.seeds, *grid.rivals) for grid in asked} == {(0, TWIN, DIFFUSION)}
    with pytest.raises(SystemExit):
        scaling.main([*run, "--parts", "4"])
    assert "from 1 to 3" in capsys.readouterr().err


def test_of_several_seeds_the_mean_and_the_ends_are_shown():
    """Of levels, and of how far each seed lies below the twin of its own."""
    cells = [asdict(row) for row in rows() if row.family == "ltm"][:3]
    names = [f"ltm--seed={seed}" for seed in range(3)]
    for seed, (name, cell) in enumerate(zip(names, cells, strict=True)):
        cell |= {"name": name, "seed": seed, "bound": {"nats_per_token": 3.0 + seed, "stderr": 0.5}, "fast_steps": 4}
    gaps = [
        {"cell": name, "rival": "twin--", "equal": "flops", "below": below, "stderr": 0.125}
        for name, below in zip(names, (-0.5, 0.25, 1.0), strict=True)
    ]
    twins = [{**cells[0], "family": "twin", "name": "twin--"}]
    found = {"worlds-15-w8": {"cells": [*cells, *twins], "gaps": gaps}}
    made = scaling_tables._by(found, "fast_steps", "fast steps", {})
    assert "| worlds-15-w8 | 4 | 3 | 4.0000 (3.0000 to 5.0000) |" in made
    assert "| +0.2500 ± 0.1250 (-0.5000 to +1.0000) |" in made


def test_the_plan_is_of_cells_that_can_be_trained():
    """The latent-thought models, whose shapes the rivals have."""
    common = scaling.configure("nano", FakeTokens(512), [*scaling.claim.FAST, *scaling.MIDDLE])
    names = set()
    for axes, seeds, _ in scaling.PARTS:
        grid = Grid(common, tuple(map(Axis.parse, axes)), (), seeds)
        names |= {cell.name for cell in grid.cells() if cell.family == "ltm"}
    assert 50 < len(names) < 80


def test_cells_measured_elsewhere_stay_in_the_tables():
    def study(machine, *names):
        gaps = [{"cell": name, "rival": "twin", "equal": "tokens", "below": machine} for name in names]
        return {"machines": [machine], "cells": [{"name": name, "by": machine} for name in names], "gaps": gaps}

    both = scaling.with_earlier(study("new", "a", "b"), study("old", "b", "c"))
    assert {cell["name"]: cell["by"] for cell in both["cells"]} == {"a": "new", "b": "new", "c": "old"}
    assert {gap["cell"]: gap["below"] for gap in both["gaps"]} == {"a": "new", "b": "new", "c": "old"}
    assert both["machines"] == ["new", "old"]
    assert scaling.with_earlier(study("new", "a"), {}) == study("new", "a")


def test_laws_are_fitted_anew_to_all_published_cells(monkeypatch, tmp_path):
    """Whatever was published of them, and twice the same."""
    published_in(tmp_path, monkeypatch)
    cells = [asdict(one) for one in rows()]
    one = {"machines": ["a"], "cells": cells, "gaps": [], "laws": [{"why": "an early fit"}]}
    (tmp_path / "scaling-2000-01-01.json").write_text(json.dumps({"worlds-15-w8": one}))
    scaling.main(["--laws"])
    (law,) = pages.newest("scaling")["worlds-15-w8"]["laws"]
    assert law["floor"] == pytest.approx(FLOOR, rel=1e-5)
    assert pages.newest("scaling")["worlds-15-w8"]["cells"] == cells
    made = scaling_tables.tables({"worlds-15-w8": one | {"laws": [law]}})["scaling laws"]
    assert "| P 0.35 (0.35 to 0.35), T 0.70 (0.70 to 0.70) |" in made
    with pytest.raises(SystemExit):
        scaling.main(["--laws", "--table", str(tmp_path)])


class FakeTokens:
    vocab_size = 1024

    def __init__(self, sequence_length: int):
        self.sequence_length = sequence_length
