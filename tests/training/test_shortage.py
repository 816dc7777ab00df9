"""Out of memory in a real process: the line names settings, and with them the run ends as one that had enough."""

from __future__ import annotations

import re
import resource
import sys
from functools import partial

import pytest
import torch
from helpers.double import assert_same_rows, assert_same_weights, double
from helpers.processes import Forked
from helpers.ranks import on_ranks
from helpers.tiny_run import TINY
from safetensors.torch import load_file

import pyro_ltm as ltm
from pyro_ltm.config import SlowConfig
from pyro_ltm.errors import OutOfMemory, is_out_of_memory
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.training.shortage import takes_less, told_what_fits

MEBIBYTE = 1 << 20


def test_what_takes_less():
    assert takes_less(SlowConfig(batch_size=8, accumulate=3)) == {"slow.batch_size": "4", "slow.accumulate": "6"}
    assert takes_less(SlowConfig(batch_size=15)) == {"slow.batch_size": "5", "slow.accumulate": "3"}
    assert takes_less(SlowConfig(batch_size=7)) == {"slow.batch_size": "1", "slow.accumulate": "7"}
    assert takes_less(SlowConfig(batch_size=1)) == {"slow.recompute": "true"}
    assert takes_less(SlowConfig(batch_size=1, recompute=True)) == {}
    assert takes_less(SlowConfig(batch_size=8), splits=False) == {"slow.recompute": "true"}


def test_what_takes_less_in_several_processes():
    """A process's micro-batch is its share of the step's sequences at most: to split what it never has helps nobody."""
    assert takes_less(SlowConfig(batch_size=8), 2) == {"slow.batch_size": "2", "slow.accumulate": "4"}
    assert takes_less(SlowConfig(batch_size=8, accumulate=2), 2) == {"slow.batch_size": "4", "slow.accumulate": "4"}
    assert takes_less(SlowConfig(batch_size=15), 2) == {"slow.batch_size": "5", "slow.accumulate": "3"}
    assert takes_less(SlowConfig(batch_size=9), 4) == {"slow.batch_size": "1", "slow.accumulate": "9"}
    assert takes_less(SlowConfig(batch_size=4), 4) == {"slow.recompute": "true"}
    assert takes_less(SlowConfig(batch_size=4, recompute=True), 4) == {}


def advice(folder):
    with pytest.raises(OutOfMemory) as found, told_what_fits(folder, SlowConfig(batch_size=8)):
        raise MemoryError
    return str(found.value)


def test_each_of_two_processes_says_what_takes_less_of_them(tmp_path):
    for said in on_ranks(2, advice, tmp_path):
        assert "--resume --set slow.batch_size=2 --set slow.accumulate=4," in said


def test_what_is_out_of_memory():
    assert all(map(is_out_of_memory, [MemoryError(), RuntimeError("std::bad_alloc"), torch.OutOfMemoryError("CUDA")]))
    assert not any(map(is_out_of_memory, [RuntimeError("shapes"), ValueError("std::bad_alloc"), KeyError()]))


def cramp(mebibytes: int) -> None:
    """Lets this process take so much memory more than it has."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + mebibytes * MEBIBYTE,) * 2)


SETTINGS = [setting for setting in TINY if not setting.startswith(("slow.batch_size", "slow.steps"))]
SETTINGS += ["slow.batch_size=4096", "slow.steps=2", "slow.save_every=1"]


def cramp_double(mebibytes: int) -> None:
    torch.set_default_dtype(torch.float64)
    cramp(mebibytes)


def cramped(arguments):
    """Runs `train` with little memory. The settings that it names, or None where it had enough."""
    process = Forked("train", *arguments, first=partial(cramp_double, 150))
    _, err = process.communicate(280)
    if process.returncode == 0:
        return None
    assert process.returncode == 2, err
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    found = re.search(r"out of memory; the last checkpoint is kept: go on with (--resume (--set \S+ ?)+),", line)
    assert found, line
    return found[1].split()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel how much it has")
@pytest.mark.parametrize("to_the_end", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_process_without_memory_says_with_what_it_has_enough(to_the_end, tiny_run, tmp_path):
    """Step by step, as a user would, until it fits."""
    out = tmp_path / "run"
    chosen = [part for setting in SETTINGS for part in ("--set", setting)]
    named = cramped(["--data", tiny_run / "data", "--preset", "nano", "--out", out, *chosen])
    assert named == ["--resume", "--set", "slow.batch_size=2048", "--set", "slow.accumulate=2"]
    while to_the_end and (named := cramped(["--out", out, *named])):
        assert "slow.batch_size=64" not in named, "no end of it"
    if not to_the_end:
        return
    config = ltm.apply_settings(ltm.preset("nano"), SETTINGS)
    with double():
        ltm.train(config, data=tiny_run / "data", out=tmp_path / "whole")
    assert_same(out, tmp_path / "whole")


def assert_same(*folders):
    """Runs have the same figures of each step and the same weights, but for sums in another order."""
    assert_same_rows(*(read_metrics(folder / "metrics.jsonl") for folder in folders))
    assert_same_weights(*(load_file(folder / "model.safetensors") for folder in folders))


def test_a_run_goes_on_with_what_changes_no_figure(tiny_run, tmp_path):
    """As it is saved then: the next resume needs no more than --resume."""
    settings = [*TINY, "slow.batch_size=4", "slow.steps=4"]

    def config(*more):
        return ltm.apply_settings(ltm.preset("nano"), [*settings, *more])

    def die(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    other = ["slow.batch_size=2", "slow.accumulate=2", "slow.recompute=true", "slow.keep_checkpoints=3"]
    with double():
        with pytest.raises(KeyboardInterrupt):
            ltm.train(config(), data=tiny_run / "data", out=out, on_progress=die)
        with pytest.raises(KeyboardInterrupt):
            ltm.train(config(*other), data=None, out=out, resume=True, on_progress=die)
        run = ltm.train(None, data=None, out=out, resume=True)
        ltm.train(config(), data=tiny_run / "data", out=tmp_path / "whole")
    assert (run.config.slow.batch_size, run.config.slow.accumulate, run.config.slow.recompute) == (2, 2, True)
    assert_same(out, tmp_path / "whole")
    with pytest.raises(ltm.UserError, match=r"slow\.batch_size × slow\.accumulate = 4 became 8"):
        ltm.train(config("slow.accumulate=2"), data=None, out=out, resume=True)


def test_layers_are_computed_again_under_a_guide_that_learns_through_the_fast_steps(tiny_run, tmp_path):
    """Which chooses kernels for its fit alone: the backward pass comes later."""
    guide = ["guide.name=semi-amortized", "guide.unrolled=true", "model.layers=2"]
    kept, again = (
        ltm.train(
            ltm.apply_settings(ltm.preset("nano"), [*TINY, *guide, f"slow.recompute={each}"]),
            data=tiny_run / "data",
            out=tmp_path / each,
        ).trainable.state_dict()
        for each in ("false", "true")
    )
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-5)
