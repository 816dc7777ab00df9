"""Studies that are measured row by row: each runs, is resumed, and its tables say what its rows say."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from helpers.tiny_world import TINY, WORLD, use_tiny_world

from benchmarks import (
    claim,
    continuations,
    distributed,
    epochs,
    fewer_steps,
    in_context,
    late,
    options,
    pages,
    priors,
    rows,
    test_time,
    texts,
)
from pyro_ltm.config import apply_settings
from pyro_ltm.data.in_context import task
from pyro_ltm.presets import PRESETS, preset
from pyro_ltm.scores import difference


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    use_tiny_world(monkeypatch)
    monkeypatch.setattr(claim, "STEPS", 2)
    monkeypatch.setattr(claim, "SCHEDULE", [*claim.SCHEDULE, *TINY])
    return tmp_path


def measured(study, out):
    """The rows of a study, with seed 0: none in no time, then all, and none again."""
    options = ["--out", str(out), "--seeds", "0"]
    rows.run(study, [*options, "--hours", "0"])
    assert rows.known(out) == {}
    rows.run(study, options)
    kept = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    rows.run(study, options)
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == kept
    return rows.known(out)


def cells(table, *begin):
    """The only line of a table that begins with these cells."""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
    (found,) = [line for line in lines if line[: len(begin)] == list(begin)]
    return found


def test_in_context(tiny, monkeypatch):
    changed = {"PLAN": [("lookup", 2, 8)], "AXES": {}, "STEPS": 2, "SCHEDULE": TINY, "SHOTS": (0, 2)}
    for name, value in {**changed, "LEARNED": 60, "ASKED": 5, "BATCH": 2, "PARTICLES": 2, "FIT_STEPS": 2}.items():
        monkeypatch.setattr(in_context, name, value)
    found = measured(in_context.STUDY, tiny / "out")
    ltm, twin = found["lookup-2-w8-ltm-s0"], found["lookup-2-w8-twin-s0"]
    assert ltm["steps"] == twin["steps"] == 2
    assert found["lookup-2-w8-twin-longer-s0"]["operations"] <= 1.02 * ltm["operations"]
    made = in_context.tables(found)
    nats = ltm["fitted"]["2"]["nats"]
    assert cells(made["in-context nats"], "lookup", "2", "8", "LTM")[6].startswith(f"{sum(nats) / len(nats):.3f} ± ")
    best = cells(made["in-context"], "lookup", "2", "", "best, exactly")
    assert best[5:] == [f"{task('lookup', 2).known_after(shots).accuracy:.3f}" for shots in in_context.SHOTS]
    gap = sum(ltm["fitted"]["2"]["right"]) - sum(twin["fitted"]["2"]["right"])
    assert cells(made["in-context gaps"], "lookup", "2", "8", "LTM", "twin")[-1].startswith(f"{gap / 5:+.3f} ± ")
    assert len(made["in-context rows"].splitlines()) == 2 + len(found)


@pytest.mark.parametrize(("name", "size"), in_context.HARD)
def test_a_document_of_a_task_is_a_sequence(name, size, tmp_path, monkeypatch):
    monkeypatch.setattr(in_context, "LEARNED", 50)
    data = in_context.prepared(in_context.Row(name, size, in_context.LTM, 0), tmp_path)
    assert set(data.lengths) == {data.sequence_length}
    assert len(data) == 50


def test_test_time(tiny, monkeypatch):
    changed = {"PLAN": [(WORLD, 8)], "SEQUENCES": 3, "CHUNKS": 4, "FITS": (0, 2), "ADAPTATIONS": (0, 1)}
    for name, value in {**changed, "PARTICLES": 2, "RATES": (0.01,), "TUNED": 2}.items():
        monkeypatch.setattr(test_time, name, value)
    (row,) = measured(test_time.STUDY, tiny / "out").values()
    (one, two), (none, adapted) = row["fitted"].values(), row["adapted"].values()
    assert none["operations"] < adapted["operations"] < two["operations"]
    assert one["operations"] < two["operations"]
    tokens = torch.tensor(row["tokens"], dtype=torch.float64)
    gain = difference(torch.tensor(none["nats"]), torch.tensor(adapted["nats"]), tokens, None).nats_per_token
    made = test_time.tables({"a": row})
    assert cells(made["test-time steps"], "tiny worlds", "8", "twin, adapted", "1")[6].startswith(f"{gain:+.4f} ± ")
    equal = cells(made["test-time"], "tiny worlds", "8", "1", "2")
    better = adapted["validation"] < none["validation"]
    assert equal[6] == str(int(better)), "of those that cost no more, the one that is best on validation text"
    assert equal[8].startswith(f"{gain if better else 0.0:+.4f} ± ")
    other = deepcopy(row) | {"seed": 1}
    other["adapted"]["1"]["nats"] = [
        nats - 2 * tokens for nats, tokens in zip(adapted["nats"], row["tokens"], strict=True)
    ]
    both = cells(test_time.tables({"a": row, "b": other})["test-time steps"], "tiny worlds", "8", "twin, adapted", "1")[
        6
    ]
    assert both.startswith(f"{gain + 1:+.4f} ± ")
    assert both.endswith(f" ({gain:+.4f} to {gain + 2:+.4f})")


def test_epochs(tiny, monkeypatch):
    for name, value in {"EPOCHS": (2,), "SHARES": {WORLD: 0.06}, "LOOKS": 2, "PARTICLES": 2}.items():
        monkeypatch.setattr(epochs, name, value)
    monkeypatch.setattr(claim, "PREFIX_STEPS", 2)
    found = measured(epochs.STUDY, tiny / "out")
    ltm, twin = found[f"{WORLD}-e2-ltm-s0"], found[f"{WORLD}-e2-twin-s0"]
    assert ltm["steps"] == twin["steps"] == ltm["sequences"], "two epochs, two sequences a step"
    assert str(ltm["best_step"]) in ltm["validations"]
    assert ltm["validations"][str(ltm["best_step"])] == min(ltm["validations"].values())
    made, tokens = epochs.tables(found), torch.tensor(ltm["tokens"], dtype=torch.float64)
    gap = difference(torch.tensor(twin["nats"]), torch.tensor(ltm["nats"]), tokens, None).nats_per_token
    assert cells(made["epochs"], "tiny worlds", "2", "1")[5].startswith(f"{gap:+.4f} ± ")
    assert len(made["epochs rows"].splitlines()) == 2 + len(found)


def test_late(tiny, monkeypatch):
    """The LTM learns without thoughts at first; its twin of equal compute gets its operations as more slow steps."""
    for name, value in {"TEXT_NAMES": (WORLD,), "STEPS": 40, "LOOKS": 2, "PARTICLES": 2}.items():
        monkeypatch.setattr(late, name, value)
    monkeypatch.setattr(claim, "PREFIX_STEPS", 2)
    found = measured(late.STUDY, tiny / "out")
    ltm, twin, longer = (found[f"{WORLD}-{side}-s0"] for side in ("ltm", "twin", "twin-longer"))
    assert ltm["steps"] == twin["steps"] == 40 < longer["steps"]
    assert 0.95 * ltm["operations"] < longer["operations"] <= 1.02 * ltm["operations"]
    made, tokens = late.tables(found), torch.tensor(ltm["tokens"], dtype=torch.float64)
    for column, rival in ((2, twin), (5, longer)):
        gap = difference(torch.tensor(rival["nats"]), torch.tensor(ltm["nats"]), tokens, None).nats_per_token
        assert cells(made["late"], "tiny worlds", "1")[column].startswith(f"{gap:.4f} ± ")
    assert len(made["late rows"].splitlines()) == 2 + len(found)


def test_fewer_steps(tiny, monkeypatch):
    few = [*TINY, "slow.steps=5", "fast.steps=2", "data.sequence_length=32"]
    monkeypatch.setitem(PRESETS, "nano", apply_settings(preset("nano"), few))
    for name, value in {"PLAN": (("nano", WORLD),), "TOKENS": 96, "PARTICLES": 2}.items():
        monkeypatch.setattr(fewer_steps, name, value)
    found = measured(fewer_steps.STUDY, tiny / "out")
    whole, less = (found[f"nano-{WORLD}-ltm-{slow}-s0"] for slow in ("adamw", "muon"))
    assert (whole["steps"], less["steps"]) == (5, 3)
    gap = difference(*(torch.tensor(row["nats"]) for row in (whole, less)), torch.tensor(whole["tokens"]), None)
    made = cells(fewer_steps.tables(found)["fewer steps"], "nano", "tiny worlds", "ltm", "1")
    assert made[4].endswith(" in 5 steps")
    assert made[6].startswith(f"{gap.nats_per_token:.4f} ± ")
    assert made[7] == ("yes" if gap.nats_per_token >= 0 else "no")


def test_options(tiny, monkeypatch):
    """An option is compared on each side; of an average the averaged weights are scored."""
    assert not [row for row in options.planned([0]) if (row.option, row.side) == (options.ZERO, "twin")]
    changed = {"TEXT": WORLD, "STEPS": 3, "LOOKS": 1, "PARTICLES": 2, "EVERY": 1, "SHOWN": 2, "SOAP": {}}
    changed |= {"OPTIONS": {"none": (), "averaged": options.OPTIONS["averaged"]}, "FEW_OPTIONS": {options.FEW: ()}}
    changed |= {"WORLDS_OPTIONS": {"worlds": (options.ZERO_CROSS,)}, "operations": lambda *_: 1}
    for name, value in changed.items():
        monkeypatch.setattr(options, name, value)
    monkeypatch.setattr(claim, "FEW", 6)
    found = measured(options.STUDY, tiny / "out")
    made = options.tables(found)
    for side, column in (("twin", 4), ("ltm", 7)):
        none, averaged = (found[f"{option}-{side}-s0"] for option in ("none", "averaged"))
        assert none["nats"] != averaged["nats"]
        gap = difference(*(torch.tensor(row["nats"]) for row in (none, averaged)), torch.tensor(none["tokens"]), None)
        line = cells(made["options"], "averaged", "slow.average=0.99")
        assert line[column].startswith(f"{gap.nats_per_token:.4f} ± ")
    world = found["worlds-ltm-s0"]
    assert cells(made["options worlds"], "worlds", options.ZERO_CROSS, "0")[3] == str(world["rates"]["2"])
    assert len(made["options rows"].splitlines()) == 2 + len(found) - 1, "those of worlds have a table of their own"


def test_continuations(tiny, monkeypatch):
    long_enough = replace(texts.TEXTS[WORLD], test="worlds:documents=24,length=3")
    monkeypatch.setitem(texts.TEXTS, WORLD, long_enough)
    changed = {"TEXT": WORLD, "LENGTH": 32, "BATCH": 2, "STEPS": 2, "PROMPT": 5, "NEW": 4, "ROUNDS": 1}
    for name, value in changed.items():
        monkeypatch.setattr(continuations, name, value)
    found = measured(continuations.STUDY, tiny / "out")
    ltm, twin = found["ltm-s0"], found["twin-s0"]
    assert list(ltm["after"]) == ["ltm", "ltm, rethinking 1", "truth"]
    assert ltm["after"]["truth"] == twin["after"]["truth"], "the same prompts and the same scorer"
    assert ltm["alone"]["other passages"] == twin["alone"]["other passages"]
    made = continuations.tables(found)
    one = twin["after"]["twin"]
    assert cells(made["continuations"], "twin")[2:4] == [
        f"{one['mauve']:.3f} ± {one['mauve_spread']:.3f}", f"{one['bits']:.3f} ± {one['bits_stderr']:.3f}"
    ]  # fmt: skip
    assert cells(made["continuations"], "truth")[2] == "-"
    assert len(made["written from nothing"].splitlines()) == 2 + 3


def test_priors(tiny, monkeypatch):
    changed = {"TEXT": WORLD, "TRAINED": ("gaussian", "mixture:2"), "FITTED": ("mixture:2",)}
    few = {"SETTINGS": [*priors.SETTINGS, *TINY], "PARTICLES": 2, "SCORED": 3, "FITTED_TO": 4, "FIT_STEPS": 2}
    few |= {"WRITTEN": 12, "LONG": 8}
    for name, value in (changed | few).items():
        monkeypatch.setattr(priors, name, value)
    found = measured(priors.study(2), tiny / "out")
    kinds = ("fitted-mixture_2", "trained-gaussian", "trained-mixture_2", "trained-twin")
    assert list(found) == [f"{kind}-s0-2" for kind in kinds]
    gaussian, twin = found["trained-gaussian-s0-2"], found["trained-twin-s0-2"]
    assert twin["rate"] == 0 < gaussian["rate"]
    assert {row["floor"] for row in found.values()} == {gaussian["floor"]}
    assert len({row["written"]["real_bits"] for row in found.values()}) == 1, "the same twin scores the same beginnings"
    assert len(priors.tables(found)["priors"].splitlines()) == 2 + len(found)


@pytest.mark.parametrize(
    "study",
    [in_context.STUDY, test_time.STUDY, epochs.STUDY, late.STUDY, options.STUDY, continuations.STUDY],
    ids=lambda study: study.kind,
)
def test_notes_have_the_tables_of_the_committed_rows(study):
    note = (pages.ROOT / "benchmarks" / "notes" / f"{study.kind}.md").read_text(encoding="utf-8")
    if not list(pages.FIGURES.glob(f"{study.kind}-????-??-??.json")):
        assert "<!--" not in note, "nothing is shown that was not measured"
        return
    made = study.tables(pages.newest(study.kind))
    assert all(f"<!-- {name} -->\n{table}<!-- end {name} -->" in note for name, table in made.items())


def test_rows_are_published_beside_those_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "FIGURES", tmp_path)
    (tmp_path / "some-2020-01-01.json").write_text('{"a": 1, "b": 2}')
    assert rows.publish("some", {"b": 3}) == {"a": 1, "b": 3} == pages.newest("some")
    assert rows.publish("some", {}) == {"a": 1, "b": 3}
    assert len(list(tmp_path.iterdir())) == 2


def test_tables_of_two_processes():
    sides = distributed.SIDES
    seconds = [(2.0, 1.0, 1.25, 1.0), (2.2, 1.0, 1.25, 1.0), (2.4, 1.5, 1.5, 1.0)]
    found = {
        f"round-s{n}": {"seconds": dict(zip(sides, each, strict=True)), "tokens": 4096}
        for n, each in enumerate(seconds)
    }
    shared, memory = list(distributed.KINDS), {"one": [9_000_000], "two, DDP": [8_000_000, 7_000_000]}
    found["memory"] = {"bytes": memory, "foreseen": memory}
    made = distributed.tables(found)
    assert cells(made["two processes"], "one") == ["one", "1,862", "2.200", ""]
    assert cells(made["two processes"], shared[0]) == [shared[0], "4,096", "1.000", "2.00 (1.60 to 2.20)"]
    assert cells(made["two processes, memory"], shared[0])[1:] == ["8", "7"] * 2
    assert cells(made["two processes, memory"], "one")[1:] == ["9", ""] * 2
    assert "MB" not in distributed.tables({})["two processes, memory"]


@pytest.mark.long
def test_two_processes_are_measured(tmp_path, monkeypatch):
    few = {"model.dim": 16, "model.layers": 2, "model.heads": 2, "model.max_length": 16, "slow.steps": 3}
    for name in ("TIMED", "LARGE", "SMALL"):
        monkeypatch.setattr(distributed, name, {**getattr(distributed, name), **few})
    for name, value in {"WORDS": 5000, "SMALL_VOCABULARY": 300, "VOCABULARY": 400}.items():
        monkeypatch.setattr(distributed, name, value)
    found = measured(distributed.STUDY, tmp_path / "out")
    assert list(found) == ["memory", "round-s0"]
    assert found["round-s0"]["seconds"].keys() == set(distributed.SIDES)
    assert min(found["round-s0"]["seconds"].values()) > 0
    assert [len(sizes) for sizes in found["memory"]["bytes"].values()] == [1, 2, 2]
    assert 10**8 < found["memory"]["libraries"] < 2 * 10**9
