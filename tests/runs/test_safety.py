"""Nothing that was trained, converted or prepared is lost, and weights that ran away are never kept as good ones."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
import torch
from helpers.tiny_run import configure
from safetensors.torch import load_file

import pyro_ltm as ltm
from pyro_ltm.errors import UserError
from pyro_ltm.runs.run import Run
from pyro_ltm.training.checkpoint import Checkpoint


@pytest.fixture
def tokens(tiny_run):
    return tiny_run / "data"


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def model(folder):
    return (folder / "model.safetensors").read_bytes()


def test_weights_without_a_trainers_state_are_not_thrown_away(run):
    for path in run.glob("trainer*.safetensors"):
        path.unlink()
    before = model(run)
    with pytest.raises(UserError, match=r"has weights but no trainer\.safetensors"):
        ltm.train(None, data=None, out=run, resume=True)
    assert model(run) == before


def test_converted_weights_are_not_thrown_away(run, tokens, tmp_path):
    source = Run.load(run)
    Run.create(tmp_path / "converted", source.config, source.model, source.loop, source.tokenizer)
    before = model(tmp_path / "converted")
    with pytest.raises(UserError, match="has weights but no trainer"):
        ltm.train(None, data=tokens, out=tmp_path / "converted", resume=True)
    assert model(tmp_path / "converted") == before


@pytest.mark.parametrize("steps", [2, 4])
def test_a_kill_between_the_two_files_of_a_checkpoint(tokens, tiny_run, tmp_path, monkeypatch, steps):
    write = Checkpoint._write_weights

    def die(self, counters, *tensors):
        if counters.step == steps:
            raise KeyboardInterrupt
        write(self, counters, *tensors)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_write_weights", die)
        with pytest.raises(KeyboardInterrupt):
            ltm.train(configure(), data=tokens, out=tmp_path / "run")
    ltm.train(None, data=None, out=tmp_path / "run", resume=True)
    assert model(tmp_path / "run") == model(tiny_run)


def test_a_damaged_copy_of_the_weights_is_mended_by_resuming(run):
    whole = model(run)
    (run / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        Run.load(run)
    ltm.train(None, data=None, out=run, resume=True)
    assert model(run) == whole


@pytest.mark.parametrize("resume", [False, True])
def test_prepared_tokens_of_the_user_are_not_replaced(resume, birds, tmp_path):
    prepared = ltm.prepare([str(birds)], tmp_path / "project/data", vocab_size=280, sequence_length=16)
    before = (prepared.path / "train.bin").read_bytes()
    with pytest.raises(UserError, match="project/data: is there already"):
        ltm.train(configure(), data=str(birds), out=tmp_path / "project", resume=resume)
    assert (prepared.path / "train.bin").read_bytes() == before
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["data"]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "metrics.jsonl", "data.json"])
def test_a_file_of_the_user_is_not_replaced(name, resume, tokens, tmp_path):
    """A folder of a Hugging Face model, say, has files of these names."""
    (tmp_path / name).write_text('{"text": "mine"}')
    with pytest.raises(UserError, match=f"has a {name} but no config.toml"):
        ltm.train(configure(), data=tokens, out=tmp_path, resume=resume)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: '{"text": "mine"}'}


@pytest.mark.parametrize("moment", ["note_data", "Run.create"])
def test_tokens_of_a_run_that_was_killed_as_it_began_are_its_own(moment, birds, tiny_run, tmp_path, monkeypatch):
    def die(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"pyro_ltm.training.launch.{moment}", die)
        with pytest.raises(KeyboardInterrupt):
            ltm.train(configure(), data=str(birds), out=tmp_path / "run")
    assert (tmp_path / "run/data/meta.json").exists()
    with pytest.raises(UserError, match=r"before its config\.toml was written; give the whole command"):
        ltm.train(None, data=None, out=tmp_path / "run", resume=True)
    ltm.train(configure(), data=str(birds), out=tmp_path / "run")
    assert model(tmp_path / "run") == model(tiny_run)


def test_a_preparation_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UserError):
        ltm.train(configure(), data=str(tmp_path / "nowhere.txt"), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_one_training_writes_a_folder(tokens, tiny_run, tmp_path):
    """A second that is started while the first one trains is refused, and the first one ends as if alone."""
    refused = []

    def start_another(progress):
        if progress.step == 2 and not refused:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    def second():
        for resume in (False, True):
            with pytest.raises(UserError, match=r"is being written by process \d+ on host .*; wait for it"):
                ltm.train(configure("seed=1"), data=tokens, out=tmp_path / "run", resume=resume)
            refused.append(resume)

    ltm.train(configure(), data=tokens, out=tmp_path / "run", on_progress=start_another)
    assert refused == [False, True]
    assert model(tmp_path / "run") == model(tiny_run)


def test_weights_that_run_away_are_not_saved(tokens, tmp_path):
    """Each step is finite by itself, and leads to weights that give no finite bound."""
    config = configure("slow.lr=1e25", "slow.save_every=1", "slow.steps=30", "slow.clip=0.0", "slow.weight_decay=0.0")
    with pytest.raises(UserError, match=r"not finite|no finite bound"):
        ltm.train(config, data=tokens, out=tmp_path / "run")
    kept = load_file(tmp_path / "run/model.safetensors")
    assert all(value.abs().max() < 100 for value in kept.values())
    assert torch.isfinite(torch.tensor(Run.load(tmp_path / "run").evaluate(sequences=2).nats_per_token))


def test_the_last_step_may_not_end_in_ruins(tokens, tmp_path):
    config = configure("slow.lr=1e30", "slow.steps=1", "slow.weight_decay=0.0")
    with pytest.raises(UserError, match=r"not finite|no finite bound"):
        ltm.train(config, data=tokens, out=tmp_path / "run")


def test_a_configuration_that_was_cut_short_is_damage(run):
    path = run / "config.toml"
    path.write_text(path.read_text().split("[slow]")[0])
    for use in (lambda: Run.load(run), lambda: ltm.train(None, data=None, out=run, resume=True)):
        with pytest.raises(UserError, match=r"config\.toml: damaged: slow is missing"):
            use()


def test_weights_that_are_not_finite_are_refused(run):
    source = Run.load(run)
    with torch.no_grad():
        source.model.decoder.norm.weight[0] = float("nan")
    source.save_weights(4)
    with pytest.raises(UserError, match="not finite"):
        Run.load(run)


@pytest.mark.parametrize(
    "setting",
    [
        *("slow.beta1=1.0", "slow.beta2=1.0", "optimizer.lr=inf", "optimizer.eps=inf", "objective.beta=inf"),
        *("guide.init_log_variance=nan", "guide.init_log_variance=1000.0", "guide.init_loc=inf"),
        *("guide.init_noise=-1.0", "guide.seed=3"),
    ],
)
def test_settings_that_cannot_be(setting, tokens, tmp_path):
    with pytest.raises(UserError):
        ltm.train(configure(setting), data=tokens, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_what_can_be_no_name_is_no_run(name):
    with pytest.raises(UserError, match="not a run folder"):
        Run.load(name)


def test_options_of_no_use_are_refused(tokens, tmp_path):
    with pytest.raises(UserError, match="of use only for text"):
        ltm.train(configure(), data=tokens, out=tmp_path / "run", tokenizer="nowhere.json")


def test_the_configuration_says_what_the_data_are(tokens, tmp_path):
    config = configure("data.packing=document", "data.sequence_length=9")
    ltm.train(config, data=tokens, out=tmp_path / "run")
    assert Run.load(tmp_path / "run").config.data.packing == "contiguous"
    assert Run.load(tmp_path / "run").config.data.sequence_length == 16


def test_scores_on_the_fits_own_noise_are_not_called_bounds(tokens, tmp_path):
    ltm.train(configure("fast.noise=fixed"), data=tokens, out=tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert all("own_noise_nats_per_token" in row and "bound_nats_per_token" not in row for row in train)


def test_a_run_without_held_out_text_says_what_to_do(birds, tmp_path):
    tokens = ltm.prepare([str(birds)], tmp_path / "all", vocab_size=280, sequence_length=16, validation_fraction=0.0)
    run = ltm.train(configure(), data=tokens.path, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"no split 'validation'.*--data"):
        run.evaluate()
