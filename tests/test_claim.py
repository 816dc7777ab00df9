"""The claim is measured row by row, its compute is equal, and its tables say what its rows say."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_world import TINY, WORLD, use_tiny_world

from benchmarks import claim, claim_picture, claim_tables, rows, search, texts
from benchmarks.claim import EQUAL_TOKENS, FAR, FLOOR, LONGER, LTM, LTM_FEW, TWIN_FEW, WIDER, Row
from benchmarks.roofline import slow_step_flops
from benchmarks.trained import configure, operations, train
from pyro_ltm.config import apply_settings
from pyro_ltm.errors import UserError
from pyro_ltm.presets import preset
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.scores import difference


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    use_tiny_world(monkeypatch)
    changed = {
        "PLAN": [(WORLD, 8)],
        "FEW_TEXTS": (WORLD,),
        "LONG_TEXTS": (),
        "RUN_OUT_TEXTS": (),
        "MINI_TEXTS": (),
        "STEPS": 3,
        "FEW": 6,
        "LOOKS": 1,
    }
    for name, value in (changed | {"PROMPT": 4, "SCHEDULE": [*claim.SCHEDULE, *TINY]}).items():
        monkeypatch.setattr(claim, name, value)
    return tmp_path


def test_operations_are_those_of_the_products():
    left, right = torch.randn(3, 4), torch.randn(4, 5, requires_grad=True)
    assert count_operations(lambda: left @ right) == 2 * 3 * 4 * 5
    assert count_operations(lambda: (left @ right).sum().backward()) == 2 * 2 * 3 * 4 * 5
    assert count_operations(lambda: left + 1) == 0
    heads = torch.randn(1, 2, 6, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_operations(lambda: attend(heads, heads, heads)) == 2 * (2 * 2 * 6 * 6 * 4)


def test_operations_of_a_training_are_those_of_its_steps(tiny):
    parts = texts.prepared(WORLD, tiny, tiny)
    twin = configure("nano", parts.train, [*TINY, "model.thoughts=0", "model.window=4", "slow.steps=4"])
    counted = operations(twin, parts.train)
    # The way back makes the logits again. The banded attention is done in blocks, of which its mask throws some away.
    again = 2 * (2 * 32) * twin.model.dim * twin.model.vocab_size
    least = 4 * (slow_step_flops(twin.model, 2, 32) + again)
    assert least <= counted <= 1.25 * least
    ltm = apply_settings(twin, ["model.thoughts=2", "fast.steps=2"])
    half = apply_settings(ltm, ["slow.decoder_warmup=0.5"])
    assert 2 * operations(half, parts.train) == counted + operations(ltm, parts.train)
    found = train(apply_settings(half, ["slow.eval_every=2"]), parts.train, parts.validation, weights="best")
    assert set(found.validations) == {0, 2, 4}
    assert found.best_step == min(found.validations, key=lambda step: found.validations[step])


def test_rows_are_measured_once_and_make_the_tables(tiny, monkeypatch):
    out = tiny / "out"
    claim.main(["--out", str(out), "--seeds", "0", "--hours", "0"])
    assert rows.known(out) == {}
    claim.main(["--out", str(out), "--seeds", "0"])
    kept = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    claim.main(["--out", str(out), "--seeds", "0,1"])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found = rows.known(out)

    def row(side, seed=0):
        return found[Row(WORLD, 8, side, seed).name]

    ltm, twin = row(LTM), row(EQUAL_TOKENS)
    assert ltm["steps"] == twin["steps"] == row(WIDER)["steps"] == 3
    for side in (LONGER, WIDER):
        assert row(side)["operations"] <= 1.02 * ltm["operations"]
    assert row(LONGER)["operations"] > ltm["operations"] - twin["operations"] / 3
    better = min((LONGER, WIDER), key=lambda side: row(side)["validation"])
    assert {key for key in found if "twin" in key and key.endswith("s1")} == {
        Row(WORLD, 8, side, 1).name for side in (EQUAL_TOKENS, better, TWIN_FEW)
    }
    assert row(LTM_FEW)["best_step"] in (0, 3)

    tables = claim_tables.tables(found)
    floor = sum(found[Row(WORLD, 8, FLOOR, 0).name]["nats"])
    both = {side: sum(row(side)["nats"]) + sum(row(side, 1)["nats"]) for side in (LTM, EQUAL_TOKENS)}
    share = 100 * (both[EQUAL_TOKENS] - both[LTM]) / (both[EQUAL_TOKENS] - 2 * floor)
    assert f"| {share:.1f} ± " in tables["claim closed"]
    nats = {side: torch.tensor([row(side, seed)["nats"] for seed in (0, 1)]).mean(0) for side in (LTM, EQUAL_TOKENS)}
    gap = difference(nats[EQUAL_TOKENS], nats[LTM], torch.tensor(ltm["tokens"], dtype=torch.float64), None)
    assert f"{gap.nats_per_token:.4f} ± " in tables["claim"]
    assert tables["claim rows"].count("tiny") == 0
    assert tables["claim rows"].count(WORLD) == len(found) - 1, "all but the floor"
    assert all(f"| {name} |" in tables["claim levels"] for name in ("tiny worlds", "rate"))
    assert claim_picture.plotted(found) == {"equal tokens": {}, "equal compute": {}}, "of fewer than three seeds"
    monkeypatch.setattr(claim_picture, "SEEDS", 2)
    assert set(claim_picture.plotted(found)["equal tokens"]) == {"tiny worlds, window 8"}
    claim_picture.draw(found, tiny / "picture.png")


def test_long_texts_are_learned_by_their_preset_and_the_slow_loop_of_the_others(tiny, monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", [*claim.SCHEDULE, "fast.steps=2"])
    parts = texts.prepared(WORLD, tiny, tiny)
    ltm, twin = (claim.config_of(Row(WORLD, 8, side, 0, "nano-long"), parts) for side in (LTM, EQUAL_TOKENS))
    long = preset("nano-long")
    assert (ltm.optimizer, ltm.objective, ltm.fast.subsample) == (long.optimizer, long.objective, long.fast.subsample)
    far, ltm_far = (
        claim.with_compute_of_ltm(Row(WORLD, 8, side, 0, "nano-long"), parts) for side in (FAR, claim.LTM_FAR)
    )
    assert (ltm.model.window, twin.model.window) == (8, 8)
    assert (far.model.window, ltm_far.model.window) == (claim.FAR_WINDOW, claim.FAR_WINDOW)
    assert twin.slow.steps < far.slow.steps
    assert ltm_far.slow.steps <= ltm.slow.steps
    for one in (far, ltm_far):
        assert operations(one, parts.train) <= 1.02 * operations(ltm, parts.train)
    assert ltm.slow_optimizer == twin.slow_optimizer == claim.config_of(Row(WORLD, 8, LTM, 0), parts).slow_optimizer


def test_where_data_run_out_each_side_has_its_best_validation(tiny, monkeypatch):
    """And with later seeds the LTM meets the twin that was best of the first seed's."""
    few = {"PLAN": [], "FEW_TEXTS": (), "RUN_OUT_TEXTS": (WORLD,), "LONG_STEPS": 4, "LOOKS": 2, "PARTICLES": 2}
    for name, value in few.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(claim, "SCHEDULE", [*claim.SCHEDULE, "fast.steps=6"])
    out = tiny / "out"
    claim.main(["--out", str(out), "--seeds", "0,1"])
    found = rows.known(out)
    first = {row["side"]: row for row in found.values() if row["seed"] == 0}
    ltm, whole, half, longer = (first[side] for side in (claim.LTM_STOPPED, *claim.STOPPED))
    assert (ltm["steps"], whole["steps"], half["steps"]) == (4, 4, 2)
    assert longer["steps"] > 4
    for row in found.values():
        seen = row["validations"]
        assert len(seen) >= 3
        assert row["best_step"] == min((int(step) for step in seen), key=lambda s: seen[str(s)])
    assert longer["operations"] <= 1.02 * ltm["operations"]
    best = min(claim.STOPPED, key=lambda side: first[side]["validation"])
    assert {row["side"] for row in found.values() if row["seed"] == 1} == {claim.LTM_STOPPED, best}
    lines = claim_tables.tables(found)["claim stopped"].splitlines()
    levels = {
        side: sum(sum(found[Row(WORLD, 8, side, seed, "nano-long").name]["nats"]) for seed in (0, 1)) / 2
        for side in (claim.LTM_STOPPED, best)
    }
    gap = (levels[best] - levels[claim.LTM_STOPPED]) / sum(ltm["tokens"])
    assert f"| {gap:.4f} ± " in next(line for line in lines if f"| {best} |" in line)


def test_a_search_goes_on_where_it_was(tiny, capsys, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "SEQUENCES", {32: 4})
    monkeypatch.setattr(search, "SLOW", [*search.SLOW, *TINY[:-2], "model.window=4"])
    monkeypatch.setattr(search, "BUDGET", 8)
    monkeypatch.setattr(search, "LOOKS", 2)
    journal = tiny / "search.log"
    for trials in (1, 2):
        search.main(["--out", str(tiny), "--text", WORLD, "--journal", str(journal), "--trials", "1"])
        assert f"{trials} to the end, 0 pruned, 0 refused." in capsys.readouterr().out
    before = journal.read_bytes()
    search.main(["--table", "--journal", str(journal)])
    assert capsys.readouterr().out.startswith(f"{WORLD}\n\n| ELBO, validation |")
    assert journal.read_bytes() == before


def test_to_look_at_what_was_found_changes_nothing(tmp_path, capsys):
    pytest.importorskip("optuna")
    journal = tmp_path / "search.log"
    journal.write_bytes(search.JOURNAL.read_bytes())
    search.main(["--table", "--journal", str(journal)])
    assert capsys.readouterr().out.count(" to the end, ") == 2
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [search.JOURNAL.read_bytes()]
    with pytest.raises(UserError, match=r"none\.log: missing"):
        search.main(["--table", "--journal", str(tmp_path / "none.log")])
