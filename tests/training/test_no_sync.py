"""Nothing in a training step waits for the device: with tensors that have shapes and no values, it runs to its end.

What needs a value on the host (a branch, `.item()`, `.tolist()`) stops a fake tensor, as it would stop a CUDA stream.
The fakes go both ways, a CPU's and a GPU's. On a machine with a GPU torch's own watch says the same.

`fast.tolerance` is the exception: who goes on is known on the host alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import contextmanager

import pyro
import pytest
import torch
from helpers.covering import covered
from helpers.devices import as_on_a_gpu, needs_a_gpu
from helpers.loops import fit_posterior
from helpers.tiny import tiny_batch, tiny_config
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from pyro_ltm.config import SlowConfig
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.cuda_graph import Recorder
from pyro_ltm.model import LatentThoughtModel, attention
from pyro_ltm.model.kernels import head
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.optimizers.slow import Muon
from pyro_ltm.training import train_step
from pyro_ltm.training.average import Average
from pyro_ltm.training.step import step_where


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)


def step(model, batch, decoder_only=False, optimizer=None, **loop):
    return train_step(
        model,
        [batch],
        FastLoop(MeanField(4, 16), AnalyticELBO(), steps=2, **loop),
        optimizer or adamw(model),
        clip=SlowConfig().clip,
        seed=0,
        decoder_only=decoder_only,
    )


@contextmanager
def shapes_alone(dtype=torch.float32):
    """A model and a batch without values."""
    batch = tiny_batch()
    # As in training: checks of distributions' arguments look at values.
    with FakeTensorMode(allow_non_fake_inputs=True), pyro.validation_enabled(False):
        shapes = {name: torch.zeros_like(getattr(batch, name)) for name in ("inputs", "targets", "mask")}
        yield LatentThoughtModel(tiny_config(layers=1), dtype), dataclasses.replace(batch, **shapes)


def noted(monkeypatch, *functions):
    """Which of the `functions` have been called, each with the precision of its first argument; a set that fills."""
    entered = set()

    def watch(module, name):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda x, *rest: (entered.add((name, x.dtype)), run(x, *rest))[1])

    for function in functions:
        watch(*function)
    return entered


# Not the CPU's way in half precision: its head looks at numbers that it need not wait for.
WAYS = [("cpu", torch.float32), ("gpu", torch.float32), ("gpu", torch.bfloat16)]
OPTIONS = {"all": {}, "sample": {"subsample": 3}, "antithetic": {"noise": "antithetic"}}


@pytest.mark.parametrize(("kind", "loop"), covered(itertools.product(WAYS, OPTIONS), times=1))
def test_a_step_needs_no_value_on_the_host(kind, loop, monkeypatch):
    (way, dtype), options = kind, OPTIONS[loop]
    if way == "gpu":
        as_on_a_gpu(monkeypatch)
    entered = noted(monkeypatch, (attention, "_in_bands"), (head, "_chunked"))
    with shapes_alone(dtype) as (model, batch):
        report = step(model, batch, **options)
        with pytest.raises(DataDependentOutputException):
            bool(report.finite)
    assert entered == ({("_in_bands", dtype), ("_chunked", dtype)} if way == "gpu" else set())


def test_a_step_of_muon_needs_none_either():
    with shapes_alone() as (model, batch):
        step(model, batch, optimizer=Muon().build(model, SlowConfig()))


def test_stopping_early_waits_for_who_goes_on():
    with shapes_alone() as (model, batch), pytest.raises(DynamicOutputShapeException):
        fit_posterior(model, batch, guide=MeanField(4, 16), objective=AnalyticELBO(), tolerance=0.1, patience=1)


@needs_a_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_on_a_gpu_makes_nobody_wait(dtype, recorded):
    model, batch = LatentThoughtModel(tiny_config(), dtype).cuda(), tiny_batch().to("cuda")
    recorder = Recorder() if recorded else None
    with pyro.validation_enabled(False):
        for _ in range(2):  # the second records, and waits
            step(model, batch, recorder=recorder)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(model, batch, recorder=recorder)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_ids_stay_on_the_host():
    batch = tiny_batch().to("meta")
    assert (batch.ids.device.type, batch.device.type, batch.device.type) == ("cpu", "meta", "meta")


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_is_not_taken(fused):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5, fused=fused)
    for finite in (True, False, True):
        before = weight.detach().clone()
        weight.grad = torch.full((3,), 1.0 if finite else float("nan"))
        step_where(torch.tensor(finite), optimizer)
        assert torch.equal(weight.detach(), before) == (not finite)
        assert weight.isfinite().all()
        assert not {"grad_scale", "found_inf"} & vars(optimizer).keys(), "a profiler would see them freed and warn"
    assert int(optimizer.state[weight]["step"]) == 2


def test_an_average_is_updated_without_a_wait():
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = {"a": torch.zeros(3, 4), "b": torch.zeros(5)}
        average = Average(weights, 0.9)
        average.update(0)
        average.update(1)
