"""At a signal, one process leaves a slow step or a validation between two fast steps, and the run is the same run."""

from __future__ import annotations

import functools
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.covering import covered
from helpers.tiny_run import configure
from safetensors.torch import load_file

import pyro_ltm as ltm
from pyro_ltm.inference import fast_loop
from pyro_ltm.interruption import first_signal, leave_if_asked, left_at, on_end_signal
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.training import Stopped

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

SETTINGS = ("slow.accumulate=2", "slow.eval_every=2", "slow.average=0.9", "slow.keep_best=true", "slow.save_every=100")
WAYS = {
    "paper": (),
    "early stopping": ("fast.tolerance=0.5", "fast.steps=5"),
    "subsampled": ("fast.subsample=2",),
    "encoder": ("guide.name=semi-amortized", "guide.unrolled=true"),
    "draws": ("guide.name=langevin", "objective.name=map"),
    "stein": ("guide.name=svgd", "objective.name=map"),
    "rate": ("objective.name=mean-rate", "objective.nats=5"),
    "dropout": ("model.dropout=0.2",),
}
MOMENTS = {
    "before the first step": 0.02,
    "in a first micro-batch": 0.3,
    "in the middle": 0.6,
    "in the last validation": 0.98,
}
"""Shares of all looks at whether the fast loop is to be left."""


def files(folder):
    return {name: load_file(folder / f"{name}.safetensors") for name in ("model", "average", "best", "trainer")}


def rows(folder):
    return [{**row, "seconds": 0} for row in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture
def looks(monkeypatch):
    """How often it was asked whether to leave; at look number `at`, the process sends itself a signal."""
    counted = SimpleNamespace(count=0, at=0)

    def count_and_leave():
        counted.count += 1
        if counted.count == counted.at:
            os.kill(os.getpid(), signal.SIGTERM)
        leave_if_asked()

    monkeypatch.setattr(fast_loop, "leave_if_asked", count_and_leave)
    return counted


CASES = [(way, moment) for way in WAYS for moment in MOMENTS]
ALIKE = [case for case in CASES if case[0] == "stein"]  # left as other draws are


@pytest.mark.parametrize(
    ("way", "moment"),
    [
        *covered([case for case in CASES if case not in ALIKE], times=1),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ALIKE),
    ],
)
def test_left_between_two_fast_steps_it_is_the_same_run(way, moment, tokens, looks, tmp_path):
    config = configure(*SETTINGS, *WAYS[way])
    whole = ltm.train(config, data=tokens, out=tmp_path / "whole")
    looks.at, looks.count = max(2, round(MOMENTS[moment] * looks.count)), 0
    with pytest.raises(Stopped, match="everything is saved") as stopped:
        ltm.train(config, data=tokens, out=tmp_path / "parts")
    assert stopped.value.number == signal.SIGTERM
    assert looks.count == looks.at, "it left at once"
    ltm.train(None, data=None, out=tmp_path / "parts", resume=True)
    assert rows(tmp_path / "parts") == rows(whole.folder)
    ours, theirs = files(tmp_path / "parts"), files(whole.folder)
    for name, tensors in theirs.items():
        assert ours[name].keys() == tensors.keys()
        assert all(torch.equal(ours[name][key], value) for key, value in tensors.items()), name


def test_a_last_validation_that_was_left_is_what_is_left_to_do(tokens, looks, tmp_path):
    config, shown = configure("slow.steps=2"), []
    ltm.train(config, data=tokens, out=tmp_path / "whole")
    looks.at, looks.count = looks.count, 0
    with pytest.raises(Stopped, match="at step 2 of 2; everything is saved"):
        ltm.train(config, data=tokens, out=tmp_path / "parts")
    ltm.train(None, data=None, out=tmp_path / "parts", resume=True, on_progress=shown.append)
    assert [(one.step, one.validation is not None) for one in shown] == [(2, True)]


@pytest.mark.parametrize("guide", ["mean-field", "full-rank", "langevin", "svgd", "hmc"])
def test_a_fit_that_is_left_leaves_all_as_it_was(guide, tiny_run):
    objective = "map" if guide in ("langevin", "svgd", "hmc") else "elbo"
    run = ltm.Run.load(tiny_run).with_parts(guide=guide, objective=objective)
    batch = run.dataset("train").batch([0, 1, 2])
    before = {name: value.clone() for name, value in run.trainable.state_dict().items()}
    asked = iter([0, 0, 0, signal.SIGHUP])
    run.model.train()
    with left_at(functools.partial(next, asked, 0)), pytest.raises(Stopped) as stopped:
        run.loop.fit(run.model, batch, seed=0)
    assert stopped.value.number == signal.SIGHUP
    assert run.model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in run.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in run.trainable.state_dict().items())
    run.loop.fit(run.model, batch, seed=0)  # which nobody asks to leave


def test_a_block_within_another_hears_of_what_came_before():
    """As a training does that begins in the middle of a comparison by several processes."""
    heard = []
    with on_end_signal(lambda number: True):
        os.kill(os.getpid(), signal.SIGUSR1)
        with on_end_signal(lambda number: not heard.append(number)):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGUSR1, signal.SIGTERM]
        assert first_signal() == signal.SIGUSR1
    assert first_signal() == 0
