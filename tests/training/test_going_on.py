"""A finished run goes on: to more steps, or as the beginning of another."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

import pyro_ltm as ltm
from pyro_ltm.config import SlowConfig, load_toml
from pyro_ltm.errors import UserError
from pyro_ltm.interruption import Stopped
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.runs.run import Run
from pyro_ltm.training.schedule import extended, learning_rate, phase
from pyro_ltm.training.trainer import Trainer

TINY = [
    *("model.dim=16", "model.layers=1", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=2", "slow.steps=4", "slow.batch_size=3"),
    *("slow.eval_every=0", "slow.eval_sequences=4", "slow.save_every=2", "slow.warmup=0", "slow.decoder_warmup=0.25"),
]


def configure(*settings):
    return ltm.apply_settings(ltm.preset("nano"), [*TINY, *settings])


def lines(count, names=7):
    return "".join(f"The {i % names}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(count))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "birds.txt"
    path.write_text(lines(400))
    return path


@pytest.fixture(scope="module")
def tokens(text):
    return ltm.prepare([str(text)], text.parent / "tokens", vocab_size=280, sequence_length=16).path


@pytest.fixture(scope="module")
def trained(tokens):
    return ltm.train(configure(), data=tokens, out=tokens.parent / "trained").folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that lies where the tokens are found from it."""
    copy = trained.parent / f"copy-{tmp_path.name}"
    yield shutil.copytree(trained, copy)
    shutil.rmtree(copy)


def model(folder):
    return (folder / "model.safetensors").read_bytes()


def more(folder, steps, **options):
    config = load_toml(folder / "config.toml", whole=True)
    config = dataclasses.replace(config, slow=dataclasses.replace(config.slow, steps=steps))
    return ltm.train(config, data=None, out=folder, resume=True, **options)


@pytest.mark.parametrize("rewarm", [0, 5])
def test_the_rate_after_an_extension_is_that_of_the_longer_plan(rewarm):
    config = configure("slow.steps=40", "slow.warmup=4", "slow.lr=1.0", "slow.decoder_warmup=0.25")
    longer = extended(config, steps=100, at=40, rewarm=rewarm)
    planned = SlowConfig(**{**dataclasses.asdict(config.slow), "steps": 100})
    for step in range(40, 100):
        share = min(1.0, (step - 39) / rewarm) if rewarm else 1.0
        assert learning_rate(step, longer.slow) == pytest.approx(share * learning_rate(step, planned), rel=1e-12)
    assert [phase(step, longer) for step in range(40)] == [phase(step, config) for step in range(40)]
    assert {phase(step, longer) for step in range(40, 100)} == {(False, 1.0)}
    again = extended(longer, steps=200, at=90)
    assert (again.slow.planned, again.slow.changed_at, again.slow.rewarm) == (40, 90, 0)


def test_a_finished_run_goes_on_to_more_steps(run):
    before = read_metrics(run / "metrics.jsonl")
    more(run, 7, rewarm=2)
    after = read_metrics(run / "metrics.jsonl")
    assert after[: len(before)] == before
    assert after[len(before)] == {"kind": "plan", "step": 4, "steps": 7, "steps_before": 4, "rewarm": 2, "decay": 0}
    assert [row["step"] for row in after[len(before) :]] == [4, 5, 6, 7, 7]
    loaded = Run.load(run)
    assert loaded.step == 7
    assert loaded.config.slow == dataclasses.replace(
        Run.load(run).config.slow, steps=7, planned=4, changed_at=4, rewarm=2
    )
    rates = [row["lr"] for row in after if row["kind"] == "train"]
    assert rates == [learning_rate(step, loaded.config.slow) if step > 3 else rates[step] for step in range(7)]
    ltm.train(None, data=None, out=run, resume=True)  # nothing more to do
    assert Run.load(run).step == 7


def test_an_extended_run_that_is_killed_ends_as_one_left_alone(trained, run, tmp_path, monkeypatch):
    whole = trained.parent / f"whole-{tmp_path.name}"
    shutil.copytree(trained, whole)
    more(whole, 9, rewarm=3)

    def die(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # before anything was saved by the new plan
        patch.setattr(Trainer, "save", die)
        with pytest.raises(KeyboardInterrupt):
            more(run, 9, rewarm=3)
    with pytest.raises(KeyboardInterrupt):
        ltm.train(None, data=None, out=run, resume=True, on_progress=stop_after(7))
    ltm.train(None, data=None, out=run, resume=True)
    assert model(run) == model(whole)
    shutil.rmtree(whole)


def stop_after(step):
    """Dies at once after this step, before it is saved."""

    def watch(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    return watch


def test_steps_that_are_done_cannot_be_taken_back(run):
    before = model(run)
    for steps in (1, 3):
        with pytest.raises(UserError, match=r"has done 4 slow steps already; give more than that"):
            more(run, steps)
    with pytest.raises(UserError, match="rewarm is of a run that is extended"):
        more(run, 4, rewarm=3)
    assert model(run) == before
    assert load_toml(run / "config.toml").slow.steps == 4


def test_nothing_else_may_change(run):
    config = dataclasses.replace(load_toml(run / "config.toml", whole=True), seed=3)
    with pytest.raises(UserError, match=r"another configuration \(seed = 0 became 3\)"):
        ltm.train(config, data=None, out=run, resume=True)


def test_what_compares_the_sequences_of_a_micro_batch_keeps_its_size(tokens, tmp_path):
    """Cut apart otherwise they would be compared with others, or with none at all."""
    out, mmd = tmp_path / "run", ("objective.name=mmd", "slow.batch_size=4", "slow.accumulate=2")
    ltm.train(configure(*mmd), data=tokens, out=out)
    for size, says in (("2", "go on with slow.batch_size = 4"), ("1", "slow.batch_size = 1: objective mmd compares")):
        other = configure(*mmd[:1], f"slow.batch_size={size}", f"slow.accumulate={8 // int(size)}", "slow.steps=5")
        with pytest.raises(UserError, match=says):
            ltm.train(other, out=out, resume=True)


def test_a_run_that_has_not_begun_may_be_planned_anew(trained, tokens, tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ltm.train(configure("slow.steps=99"), data=tokens, out=tmp_path / "run", on_progress=stop)
    seen = []
    ltm.train(configure(), data=tokens, out=tmp_path / "run", resume=True, on_resume=lambda *at: seen.append(at))
    assert seen == [(0, 4)]
    assert model(tmp_path / "run") == model(trained)


@pytest.mark.parametrize(("line", "other"), [("clip = 1.0", "clip = 0.5"), ("steps = 4", "steps = 8")])
def test_a_configuration_that_is_not_that_of_the_checkpoint_is_refused(line, other, run):
    path = run / "config.toml"
    changed = path.read_text().replace(f"\n{line} ", f"\n{other} ")
    assert changed != path.read_text()
    path.write_text(changed)
    key, _, was = line.partition(" = ")
    with pytest.raises(UserError, match=rf"slow\.{key} was {was}; put it back"):
        ltm.train(None, data=None, out=run, resume=True)


def test_a_checkpoint_of_an_older_release_says_nothing_of_its_configuration(run, monkeypatch):
    whole = model(run)
    monkeypatch.setattr("pyro_ltm.training.checkpoint.flat", lambda config: None)
    shutil.rmtree(run)
    ltm.train(configure(), data=run.parent / "tokens", out=run)
    monkeypatch.undo()
    ltm.train(None, data=None, out=run, resume=True)
    assert model(run) == whole


def test_saving_by_the_clock_changes_nothing(tokens, trained, tmp_path, monkeypatch):
    saved = []
    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self: (saved.append(self.counters.step), save(self)))
    config = configure("slow.save_every=100", "slow.save_minutes=1e-9")
    ltm.train(config, data=tokens, out=tmp_path / "often")
    assert saved == [1, 2, 3, 4]
    assert model(tmp_path / "often") == model(trained)
    saved.clear()
    ltm.train(configure("slow.save_every=100", "slow.save_minutes=60.0"), data=tokens, out=tmp_path / "seldom")
    assert saved == [4]
    assert Run.load(tmp_path / "often").fingerprint == Run.load(tmp_path / "seldom").fingerprint


def test_a_signal_after_the_look_at_it_leaves_the_next_step(tokens, trained, tmp_path, monkeypatch):
    """The run ends when it has saved, and not without."""

    def interrupted_here(self):
        self.interrupted = self.counters.step == 2
        return False

    monkeypatch.setattr(Trainer, "_save_is_due", interrupted_here)
    with pytest.raises(Stopped, match="at step 2 of 4; everything is saved"):
        ltm.train(configure(), data=tokens, out=tmp_path / "run")
    monkeypatch.undo()
    ltm.train(None, data=None, out=tmp_path / "run", resume=True)
    assert model(tmp_path / "run") == model(trained)


def test_a_new_run_begins_with_the_weights_of_another(text, trained, tmp_path):
    other = text.parent / "other.txt"
    other.write_text(lines(300, names=3))
    seen = []

    def look(progress):
        if progress.validation is not None and progress.step == 0:
            seen.append(model(text.parent / "new"))

    config = configure("data.vocab_size=400", "slow.lr=0.01", "slow.steps=2")
    run = ltm.train(config, data=str(other), out=text.parent / "new", init_from=trained, on_progress=look)
    assert seen
    begun = json.loads((run.folder / "init.json").read_text())
    assert (begun["run"], begun["step"], begun["parts"]) == ("../trained", 4, ["model", "guide"])
    assert begun["fingerprint"] == Run.load(trained).fingerprint
    assert run.tokenizer.fingerprint == Run.load(trained).tokenizer.fingerprint
    first = tmp_path / "first.safetensors"
    first.write_bytes(seen[0])
    ours, theirs = load_file(first), load_file(trained / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_longer_texts_leave_the_thoughts_where_they_stood(tokens, trained, tmp_path):
    """Else all that reads them would begin turned: by 8 positions a thought in 16 tokens, by 16 in 32."""
    longer, out = configure("model.max_length=32", "slow.lr=0"), tmp_path / "run"
    run, old = ltm.train(longer, data=tokens, out=out, init_from=trained), Run.load(trained)
    batch, z = old.dataset().batch([0, 1]), torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0))
    nats = [one.model.likelihood(z, batch).log_prob(batch.targets) for one in (run, old)]
    assert torch.equal(*nats)
    assert run.config.model.thought_stride == 8
    again = ltm.train(dataclasses.replace(longer, slow=dataclasses.replace(longer.slow, steps=5)), out=out, resume=True)
    assert again.config.model.thought_stride == 8
    with pytest.raises(UserError, match=r"its weights are of model\.thought_stride = 8, and not 4"):
        ltm.train(configure("model.thought_stride=4"), data=tokens, out=tmp_path / "other", init_from=trained)


def test_a_run_that_began_with_anothers_weights_is_killed_as_it_begins(tokens, trained, monkeypatch):
    whole, killed = tokens.parent / "whole", tokens.parent / "killed"
    ltm.train(configure(), data=tokens, out=whole, init_from=trained)

    def die(self):
        raise KeyboardInterrupt

    for moment in ("save", "_begin", "_step"):
        shutil.rmtree(killed, ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, moment, die)
            with pytest.raises(KeyboardInterrupt):
                ltm.train(configure(), data=tokens, out=killed, init_from=trained)
        ltm.train(None, data=None, out=killed, resume=True)
        assert model(killed) == model(whole)
    assert model(whole) != model(trained)


def test_a_damaged_note_of_the_weights_that_it_began_with(tokens, trained, monkeypatch):
    """Killed before its first checkpoint, it would begin again with random weights."""
    out = tokens.parent / "noted"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", lambda self: sys.exit())
        with pytest.raises(SystemExit):
            ltm.train(configure(), data=tokens, out=out, init_from=trained)
    whole = (out / "init.json").read_text()
    for damaged in (whole[:-9], whole.replace("step", "stop")):
        (out / "init.json").write_text(damaged)
        for go_on in (lambda: ltm.train(None, data=None, out=out, resume=True), lambda: Run.load(out)):
            with pytest.raises(UserError, match=r"init\.json: damaged: .*; put the run's own file back"):
                go_on()
        assert (out / "init.json").read_text() == damaged


def test_weights_that_do_not_fit_are_refused(text, tokens, trained, tmp_path):
    foreign = ltm.prepare([str(text)], tmp_path / "foreign", vocab_size=270, sequence_length=16)
    cases = [
        ({"data": foreign.path}, (), "made by another tokenizer than that of .*trained"),
        ({"data": tokens}, ("model.dim=32",), r"its weights are of model.dim = 16, and not 32: --set model.dim=16"),
        ({"data": tokens}, ("model.thoughts=0",), r"model.thoughts = 2, and not 0"),
        ({"data": str(text), "tokenizer": foreign.path / "tokenizer.json"}, (), "not that of .*trained"),
        ({"data": tokens, "init_from": tokens}, (), "not a run folder"),
    ]
    for options, settings, message in cases:
        with pytest.raises(UserError, match=message):
            ltm.train(configure(*settings), out=tmp_path / "run", **{"init_from": trained, **options})
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="did not begin with the weights of"):
        ltm.train(None, data=None, out=trained, resume=True, init_from=trained)


def test_another_guide_begins_anew(tokens, trained):
    out = tokens.parent / "other-guide"
    ltm.train(configure("guide.name=full-rank"), data=tokens, out=out, init_from=trained)
    assert json.loads((out / "init.json").read_text())["parts"] == ["model"]


def test_runs_and_data_are_moved_together(text, trained, tmp_path):
    assert json.loads((trained / "data.json").read_text())["folder"] == "../tokens"
    moved = shutil.copytree(text.parent, tmp_path / "moved")
    assert Run.load(moved / "trained").dataset().folder.path.resolve() == moved / "tokens"
    noted = json.loads((moved / "trained/data.json").read_text())
    absolute = {**noted, "folder": str(moved / "tokens")}  # as older releases noted it
    (moved / "trained/data.json").write_text(json.dumps(absolute))
    assert len(Run.load(moved / "trained").dataset()) > 0
