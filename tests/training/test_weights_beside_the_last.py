"""The moving average of the weights, and those of the best validation: beside the last ones, in training and after."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from helpers.processes import train_until_killed
from safetensors.torch import load_file

import pyro_ltm as ltm
from pyro_ltm.errors import UserError
from pyro_ltm.noise import fold
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.runs.run import Run
from pyro_ltm.training.average import Average

TINY = [
    *("model.dim=16", "model.layers=1", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=2", "slow.steps=7", "slow.batch_size=3"),
    *("slow.eval_every=1", "slow.eval_sequences=4", "slow.save_every=3", "slow.warmup=7", "slow.lr=1.0"),
]
BOTH = ["slow.average=0.8", "slow.keep_best=true"]
FILES = ("model.safetensors", "average.safetensors", "best.safetensors")


def configure(*settings):
    return ltm.apply_settings(ltm.preset("nano"), [*TINY, *settings])


def lines(count):
    return "".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(count))


def validations(folder):
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "validation"]


def score(run):
    """As a run is validated while it trains."""
    return run.evaluate(particles=1, sequences=4, batch_size=3, seed=fold(0, "validation")).nats_per_token


@pytest.fixture(scope="module")
def run(tokens):
    return ltm.train(configure(*BOTH), data=tokens, out=tokens.parent / "run").folder


@pytest.fixture(scope="module")
def plain(tokens):
    """The same run without either."""
    return ltm.train(configure(), data=tokens, out=tokens.parent / "plain").folder


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_that_of_its_closed_form(decay):
    draw = torch.Generator().manual_seed(0)
    path = [torch.randn(3, 4, generator=draw, dtype=torch.float64) for _ in range(60)]
    weights = {"a": torch.full((3, 4), 1e9, dtype=torch.float64)}  # what it begins with has no share at all
    average = Average(weights, decay)
    for step, value in enumerate(path):
        weights["a"].copy_(value)
        average.update(step)
    stay = [min(decay, step / (step + 9)) for step in range(60)]
    shares = torch.tensor([(1 - stay[t]) * math.prod(stay[t + 1 :]) for t in range(60)], dtype=torch.float64)
    assert float(shares.sum()) == pytest.approx(1.0, rel=1e-14)
    torch.testing.assert_close(
        average.tensors["a"], torch.einsum("t,tij->ij", shares, torch.stack(path)), rtol=1e-13, atol=1e-14
    )


def test_in_place_of_the_weights_and_back_to_the_bit():
    weights = {"a": torch.nn.Parameter(torch.randn(5)), "b": torch.nn.Parameter(torch.randn(2, 3))}
    average = Average({name: value.detach() for name, value in weights.items()}, 0.9)
    before = {name: value.detach().clone() for name, value in weights.items()}
    for value in average.tensors.values():
        value.mul_(1 / 3)
    theirs = {name: value.clone() for name, value in average.tensors.items()}
    with average.in_place():
        assert all(torch.equal(weights[name], theirs[name]) for name in weights)
    for name in weights:
        assert torch.equal(weights[name], before[name])
        assert torch.equal(average.tensors[name], theirs[name])


def test_it_changes_nothing_of_the_training(run, plain):
    assert (run / FILES[0]).read_bytes() == (plain / FILES[0]).read_bytes()
    assert Run.load(run).fingerprint == Run.load(plain).fingerprint
    assert not (plain / FILES[1]).exists()
    assert not (plain / FILES[2]).exists()
    ours, theirs = validations(run), validations(plain)
    added = {"average_nats_per_token", "average_nats_per_token_stderr"}
    assert [{key: value for key, value in row.items() if key not in added} for row in ours] == theirs


def test_the_average_is_scored_as_it_is_loaded(run):
    rows = validations(run)
    assert "average_nats_per_token" not in rows[0]  # nothing is averaged yet
    averaged = Run.load(run, weights="average")
    assert (averaged.weights, averaged.step) == ("average", 7)
    assert score(averaged) == rows[-1]["average_nats_per_token"] != rows[-1]["nats_per_token"]
    assert score(Run.load(run)) == rows[-1]["nats_per_token"]
    assert averaged.fingerprint != Run.load(run).fingerprint
    assert averaged.about == {"run": str(run), "step": 7, "weights": "average"}


def test_the_average_after_one_step_is_its_weights(tokens):
    one = ltm.train(configure("slow.steps=1", "slow.average=0.999"), data=tokens, out=tokens.parent / "one").folder
    first, average = load_file(one / FILES[0]), load_file(one / FILES[1])
    assert first.keys() == average.keys()
    assert all(torch.equal(first[name], average[name]) for name in first)


def test_the_best_is_the_lowest_validation(run):
    rows = validations(run)
    lowest = min(rows, key=lambda row: row["nats_per_token"])
    assert 0 < lowest["step"] < 7, "or this shows nothing"
    best = Run.load(run, weights="best")
    assert best.step == lowest["step"]
    assert score(best) == lowest["nats_per_token"]


def test_a_run_that_is_killed_ends_with_the_same_of_each(tokens, run):
    killed = tokens.parent / "killed"
    train_until_killed(5, config=configure(*BOTH), data=tokens, out=killed)
    ltm.train(None, data=None, out=killed, resume=True)
    for name in FILES:
        assert (killed / name).read_bytes() == (run / name).read_bytes(), name
    assert validations(killed) == validations(run)


def test_files_that_are_older_than_their_checkpoint_are_written_again(run):
    copy = shutil.copytree(run, run.parent / "copy")
    for name in FILES:
        (copy / name).unlink()
    ltm.train(None, data=None, out=copy, resume=True)
    for name in FILES:
        assert (copy / name).read_bytes() == (run / name).read_bytes(), name


def test_a_branch_has_both(tokens, run):
    longer = ltm.train(None, data=None, out=tokens.parent / "longer", branch_from=run).folder
    for name in FILES:
        assert (longer / name).read_bytes() == (run / name).read_bytes(), name


def test_a_checkpoint_without_its_average_is_refused(run):
    copy = shutil.copytree(run, run.parent / "damaged")
    path = copy / "config.toml"
    path.write_text(path.read_text().replace("average = 0.8", "average = 0.7"))
    with pytest.raises(UserError, match=r"slow\.average was 0\.8; put it back"):
        ltm.train(None, data=None, out=copy, resume=True)


def test_weights_that_a_run_lacks(plain, tokens):
    with pytest.raises(UserError, match=r"has no average weights, as it was trained without slow\.average"):
        Run.load(plain, weights="average")
    with pytest.raises(UserError, match=r"has no best weights, as it was trained without slow\.keep_best"):
        Run.load(plain, weights="best")
    with pytest.raises(UserError, match=r"weights = 'lst' \(did you mean 'last'\?\): choose from last, average, best"):
        Run.load(plain, weights="lst")


def test_best_needs_a_validation_split(tmp_path):
    (tmp_path / "birds.txt").write_text(lines(99))
    config = configure("slow.keep_best=true", "data.validation_fraction=0.0")
    with pytest.raises(UserError, match="has no validation split by which one is best"):
        ltm.train(config, data=str(tmp_path / "birds.txt"), out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()
