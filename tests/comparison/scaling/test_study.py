"""A study in real processes: killed, resumed, shared by workers, extended; every cell is trained once, to the bit."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from pathlib import Path

import pytest
from helpers.processes import Forked
from helpers.tiny_run import TINY, configure

import pyro_ltm as ltm
from pyro_ltm.comparison.scaling import run as module
from pyro_ltm.comparison.scaling.analysis import WRITING, below, gaps
from pyro_ltm.comparison.scaling.grid import DIFFUSION, TWIN, Axis, Budget, Grid
from pyro_ltm.comparison.scaling.result import check_settings, check_target, read_row, read_rows, write_row
from pyro_ltm.comparison.scaling.run import Callbacks, Scoring, run_study
from pyro_ltm.data import TokenDataset
from pyro_ltm.digests import without_digest
from pyro_ltm.errors import UserError
from pyro_ltm.locks import locked
from pyro_ltm.runs import Run
from pyro_ltm.runs.evaluation_file import read_evaluation
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.training.launch import as_the_data_are, train
from pyro_ltm.training.shortage import told_what_fits

AXES = ["model.dim=16,24", "fast.steps=1,2"]
MADE = ["slow.steps=6", "slow.save_every=1", "slow.eval_sequences=2"]
SCORING = Scoring(sequences=4, particles=2)
OPTIONS = ["--preset", "nano", "--rivals", "none", "--sequences", "4", "--particles", "2"]


@pytest.fixture(scope="module")
def tokens(birds, tmp_path_factory):
    return ltm.prepare([str(birds)], tmp_path_factory.mktemp("text") / "t", vocab_size=280, sequence_length=16).path


def grid_of(tokens, *axes, **more):
    config = as_the_data_are(configure(*MADE), TokenDataset(tokens))
    return Grid(config, tuple(map(Axis.parse, axes)), **{"rivals": (), **more})


@pytest.fixture(scope="module")
def undisturbed(tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "s"
    run_study(grid_of(tokens, *AXES), data=tokens, out=out, scoring=SCORING)
    return out


def command(tokens, out, *more):
    settings = [part for one in [*TINY, *MADE] for part in ("--set", one)]
    axes = [part for one in AXES for part in ("--axis", one)]
    return ["scale", "--data", tokens, "--out", out, *OPTIONS, *settings, *axes, *more]


def figures(out: Path) -> dict:
    """All that a study holds, but for clocks, machines and workers; and the weights of each cell."""
    found = json.loads((out / "study.json").read_text())
    for cell in found["cells"]:
        for name in ("seconds", "machine", "worker"):
            del cell[name]
    weights = {path.parent.name: path.read_bytes() for path in (out / "runs").glob("*/model.safetensors")}
    return {"cells": found["cells"], "settings": found["settings"], "weights": weights}


def wait_until(true, seconds=100.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_in_the_middle_and_resumed_by_two_workers(undisturbed, tokens, tmp_path):
    out = tmp_path / "s"
    first = Forked(*command(tokens, out))
    second_cell = out / "runs" / "ltm--fast.steps=1--model.dim=24--seed=0"
    wait_until((second_cell / "trainer.safetensors").exists)
    first.kill()
    first.communicate(60)
    before = {row.name: row.worker for row in read_rows(out)}
    assert 1 <= len(before) < 4
    workers = [Forked(*command(tokens, out, "--resume")) for _ in range(2)]
    said = [worker.communicate(200) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert figures(out) == figures(undisturbed)
    after = {row.name: row.worker for row in read_rows(out)}
    assert before.items() <= after.items(), "done once is done"
    begun = [line.split()[1] for _, err in said for line in err.splitlines() if line.startswith("Cell: ltm")]
    assert sorted(begun) == sorted(after.keys() - before.keys()), "no cell is begun by two workers"
    for folder in (out / "runs").iterdir():
        if folder.is_dir():
            steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
            assert steps == [1, 2, 3, 4, 5, 6]
    assert (out / "scaling.html").is_file()
    assert not list((out / "runs").glob(".*")), "no lock, no half-written file is left"


def test_shards_are_the_whole_and_extension_trains_only_what_is_new(undisturbed, tokens, tmp_path):
    parts = tmp_path / "s"
    for index in (2, 1):
        study = run_study(grid_of(tokens, *AXES), data=tokens, out=parts, scoring=SCORING, shard=(index, 2))
        assert len(study.rows) == 2 * (3 - index)
    assert figures(parts) == figures(undisturbed)
    before = {path: path.stat().st_mtime_ns for path in parts.glob("runs/*/*")}
    wider = grid_of(tokens, "model.dim=16,24,32", "fast.steps=1,2", "model.window=4")
    study = run_study(wider, data=tokens, out=parts, scoring=SCORING)
    assert len(study.rows) == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len((parts / "study.csv").read_text().splitlines()) == 7


def test_a_study_is_given_further_figures_without_training(undisturbed, tokens, tmp_path):
    """They are those of a study that asked for them from the beginning, and all else stays as it was."""
    grid, whole = grid_of(tokens, AXES[1], rivals=(TWIN,), equal=("tokens",)), tmp_path / "whole"
    more = dataclasses.replace(SCORING, predictive=True, reference_protocol=True)
    run_study(grid, data=tokens, out=whole, scoring=more)
    later = tmp_path / "later"
    begun: list[str] = []
    watch = Callbacks(begun.append)
    run_study(grid, data=tokens, out=later, scoring=SCORING)
    before = {row.name: row for row in read_rows(later)}
    files = {path: path.stat().st_mtime_ns for path in later.glob("runs/*/*") if not path.name.endswith(".json")}
    assert all(row.predictive is None for row in before.values())
    study = run_study(grid, data=tokens, out=later, scoring=more, watch=watch)
    assert figures(later) == figures(whole)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert [line.partition(", ")[2] for line in begun] == ["trained before: predictive and reference"] * 2
    for row in study.rows:
        asked = {
            "predictive": row.predictive,
            "reference": row.reference,
            "sequence_predictive": row.sequence_predictive,
        }
        assert row == dataclasses.replace(before[row.name], **asked)
        assert bool(row.predictive) == bool(row.reference) == (row.family == "ltm")
    begun.clear()
    run_study(grid, data=tokens, out=later, scoring=more, watch=watch)
    run_study(grid, data=tokens, out=later, scoring=SCORING, watch=watch)
    assert not begun, "what is there stays, whoever asks for less"


def test_a_figure_that_a_cell_cannot_have_is_noted_and_asked_for_no_more(tokens, tmp_path):
    grid, out = grid_of(tokens, "prior.name=mixture", "objective.name=elbo"), tmp_path / "s"
    begun: list[str] = []
    how = {"data": tokens, "out": out, "watch": Callbacks(begun.append)}
    more = dataclasses.replace(SCORING, reference_protocol=True)
    for retry, cells in ((False, 1), (False, 1), (True, 2)):
        study = run_study(grid, scoring=more, retry_failed=retry, **how)
        (row,) = study.of("ltm")
        assert row.reference is None
        assert row.without == {"reference": "the KL to its prior, mixture, has no closed form"}
        assert len(begun) == cells


@pytest.mark.long
def test_a_cell_that_another_has_in_hand_is_come_back_to(undisturbed, tokens, tmp_path):
    """A worker goes on with others; when the other has died, it takes the cell over."""
    out = Path(shutil.copytree(undisturbed, tmp_path / "s"))
    held, free = (out / "runs" / name for name in ("ltm--fast.steps=1--seed=0", "ltm--seed=0"))
    for folder in (held, free):
        (folder / "cell.json").unlink()
    with locked(held):
        worker = Forked(*command(tokens, out, "--resume"))
        wait_until((free / "cell.json").exists)
        assert worker.poll() is None
        assert not (held / "cell.json").exists()
    begun = [line.split()[1] for line in worker.communicate(100)[1].splitlines() if line.startswith("Cell: ltm")]
    assert begun == [free.name, held.name]
    assert worker.returncode == 0
    assert figures(out) == figures(undisturbed)


def test_each_cell_is_a_run_with_its_evaluation(undisturbed, tokens):
    for row in read_rows(undisturbed):
        run = Run.load(undisturbed / "runs" / row.name)
        found = read_evaluation(run)
        assert found["bound"]["nats_per_token"] == row.bound.nats_per_token
        again = SCORING.evaluate(run, TokenDataset(tokens, "validation")).bound
        assert again.nats_per_token == row.bound.nats_per_token
        assert row.parameters == sum(weight.numel() for weight in run.trainable.parameters())
        assert row.parameters - row.body == run.config.model.vocab_size * run.config.model.dim
        assert row.latent == 2 * row.dim
        assert row.tokens == row.curve[-1].tokens > 200
        assert row.epochs == row.tokens / TokenDataset(tokens).tokens


def test_rivals_stand_beside_each_cell_and_differences_are_paired(tokens, tmp_path):
    grid = grid_of(tokens, "fast.steps=2", rivals=(TWIN, DIFFUSION))
    how = Scoring(sequences=4, particles=2, predictive=True, reference_protocol=True)
    study = run_study(grid, data=tokens, out=tmp_path / "s", scoring=how)
    assert study.families == ["ltm", "twin", "masked-diffusion"]
    trained = [gap for gap in gaps(study) if gap.equal != WRITING]
    assert [(gap.rival.family, gap.equal) for gap in trained] == [
        (family, equal) for family in (TWIN, DIFFUSION) for equal in ("tokens", "flops")
    ]
    (ltm_row,) = study.of("ltm")
    assert ltm_row.predictive is not None
    assert ltm_row.reference is not None
    evaluation = read_evaluation(Run.load(tmp_path / "s" / "runs" / ltm_row.name))
    assert {"bound", "prefix", "reference"} <= evaluation.keys()
    for gap in trained:
        for name, one in gap.by.items():
            level = gap.rival.level(name).nats_per_token - ltm_row.level(name).nats_per_token
            assert one.nats_per_token == pytest.approx(level, abs=1e-4)
        assert gap.by.keys() == {"bound", "iwae", "predictive"}
        exact = gap.rival.family == TWIN
        assert (gap.rival.level("predictive") == gap.rival.bound) == exact
        assert (gap.rival.predictive is None) == exact, "it is not scored for what its bound says"
        level = gap.rival.bound.nats_per_token - ltm_row.bound.nats_per_token
        assert gap.nats_per_token == pytest.approx(level, abs=1e-4)
        assert gap.rival.reference is None
        assert 0 < gap.stderr < 0.5
        assert (gap.rival.steps == ltm_row.steps) == (gap.equal == "tokens")
        more = gap.rival.training_operations / ltm_row.training_operations
        assert gap.equal == "tokens" or 1 <= more <= 1.1 + more / gap.rival.steps
    assert below(ltm_row, ltm_row).nats_per_token == 0


def test_a_study_with_other_settings_is_refused_and_left_alone(undisturbed, tokens, tmp_path):
    out = Path(shutil.copytree(undisturbed, tmp_path / "s"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = Grid(as_the_data_are(configure(*MADE, "slow.lr=0.5"), TokenDataset(tokens)), rivals=())
    with pytest.raises(UserError, match=r"its study was made with slow.lr = 0.01 and not 0.5; choose another --out"):
        run_study(other, data=tokens, out=out, scoring=SCORING)
    with pytest.raises(UserError, match="particles = 2 and not 16"):
        run_study(grid_of(tokens, *AXES), data=tokens, out=out, scoring=Scoring(sequences=4))
    with pytest.raises(UserError, match=r"made with budget.tokens = None and not 960; choose another --out"):
        run_study(grid_of(tokens, *AXES, budget=Budget(tokens=960)), data=tokens, out=out, scoring=SCORING)
    for axis, why in (("model.max_length=8", "reads at most 8"), ("model.vocab_size=9", "280 tokens, the model 9")):
        with pytest.raises(UserError, match=f"ltm--{axis}--seed=0: .*{why}"):
            run_study(grid_of(tokens, axis), data=tokens, out=out, scoring=SCORING)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    later = without_digest(json.loads((out / "study.json").read_text()))
    later["settings"]["model.wings"] = 2
    (out / "study.json").write_text(json.dumps(later))
    with pytest.raises(UserError, match=r"its study was made with model\.wings, which this release does not know"):
        run_study(grid_of(tokens, *AXES), data=tokens, out=out, scoring=SCORING)
    (out / "runs" / "ltm--seed=0" / "cell.json").write_text('{"format": "pyro-ltm scaling study 1", "name": 3}')
    with pytest.raises(UserError, match=r"cell.json: damaged: name: expected str, got int; remove the file to score"):
        read_row(out / "runs" / "ltm--seed=0")


def test_a_figure_that_changed_on_the_disk_is_not_gone_on_with(undisturbed, tmp_path):
    out = Path(shutil.copytree(undisturbed, tmp_path / "s"))
    cell, study = next((out / "runs").glob("*/cell.json")), out / "study.json"
    row, found = read_row(cell.parent), check_target(out)
    for path, key, says in ((cell, "nats_per_token", "remove the file"), (study, "particles", "another --out")):
        whole = path.read_text()
        path.write_text(json.dumps(without_digest(json.loads(whole))))  # as an earlier release wrote it
        assert (read_row(cell.parent), check_target(out)) == (row, found)
        path.write_text(re.sub(rf'("{key}": \d)', r"\g<1>1", whole, count=1))
        with pytest.raises(UserError, match=rf"{path.name}: damaged: its checksum is not .* \(crc32\); .*{says}"):
            check_settings(out, found["settings"]) if path == study else read_rows(out)
        path.write_text(whole)
    assert (read_row(cell.parent), check_target(out)) == (row, found)


def test_a_training_that_runs_away_has_a_note_and_the_others_go_on(tokens, tmp_path):
    grid, out, begun = (
        grid_of(tokens, "slow.lr=1e30,0.01", "slow.clip=0.0", "slow.weight_decay=0.0", "slow.max_nonfinite=1"),
        tmp_path / "s",
        [],
    )

    def run(**more):
        begun.clear()
        how = {"data": tokens, "out": out, "scoring": SCORING, "watch": Callbacks(lambda line: begun.append(line))}
        return run_study(grid, **how, **more)

    study = run()
    notes = {row.axes["slow.lr"]: (row.note[:7], row.bound is None) for row in study.rows}
    assert notes == {1e30: ("failed:", True), 0.01: ("", False)}
    assert len(study.of("ltm")) == len(begun) - 1 == 1
    (failed,) = study.failed
    run()
    assert not begun, "how a cell ended is known: only who asks for it gets it tried once more"
    write_row(out / "runs" / failed.name, dataclasses.replace(failed, worker="another"))
    again = run(retry_failed=True)
    assert begun == [f"{failed.name} (1 of 2)"]
    assert again.failed == [failed], "tried once, by this worker"


def test_a_cell_without_memory_has_a_note_and_the_others_go_on(tokens, tmp_path, monkeypatch):
    def train_small(config, **how):
        with told_what_fits(how["out"], config.slow):
            if config.model.dim == 24:
                raise MemoryError
        return train(config, **how)

    grid = grid_of(tokens, "model.dim=24,16")
    with monkeypatch.context() as patch:
        patch.setattr(module, "train", train_small)
        study = run_study(grid, data=tokens, out=tmp_path / "s", scoring=SCORING)
    assert [(row.dim, row.note) for row in study.rows if row.bound is None] == [(24, "failed: out of memory")]
    assert len(study.of("ltm")) == 1
    assert not run_study(grid, data=tokens, out=tmp_path / "s", scoring=SCORING, retry_failed=True).failed


def test_another_error_is_no_failed_training_whatever_the_folder_is_called(tokens, tmp_path):
    """Trainings that ran away were known by a word of their message, and a folder's name is part of all messages."""
    out = tmp_path / "infinite"
    (out / "runs" / "ltm--seed=0").mkdir(parents=True)
    (out / "runs" / "ltm--seed=0" / "config.toml").write_text("[slow")
    with pytest.raises(UserError, match=r"infinite.*config\.toml"):
        run_study(grid_of(tokens), data=tokens, out=out, scoring=SCORING)
    assert read_row(out / "runs" / "ltm--seed=0") is None
