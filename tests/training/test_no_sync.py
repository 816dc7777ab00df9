"""Nothing in a training step waits for the device: with tensors that have shapes and no values, it runs to its end.

What needs a value on the host (a branch, `.item()`, `.tolist()`) stops a fake tensor, as it would stop a CUDA stream.
On a machine with a GPU torch's own watch says the same.
"""

from __future__ import annotations

import dataclasses

import pyro
import pytest
import torch
from helpers.tiny import tiny_batch, tiny_model
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from pyro_ltm.config import SlowConfig
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import Adam
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.training import train_step
from pyro_ltm.training.step import step_where


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)


def step(model, batch, **options):
    return train_step(
        model,
        [batch, batch],
        guide=MeanField(4, 16),
        objective=AnalyticELBO(),
        fast_optimizer=Adam(),
        fast_steps=2,
        slow_optimizer=adamw(model),
        clip=SlowConfig().clip,
        seed=0,
        **options,
    )


@pytest.mark.parametrize(
    "options", [{}, {"subsample": 3}, {"noise": "antithetic"}], ids=["all", "sample", "antithetic"]
)
def test_a_step_needs_no_value_on_the_host(options):
    batch = tiny_batch()
    # As in training: checks of distributions' arguments look at values.
    with FakeTensorMode(allow_non_fake_inputs=True), pyro.validation_enabled(False):
        model = tiny_fake_model()
        shapes = {name: torch.zeros_like(getattr(batch, name)) for name in ("inputs", "targets", "mask")}
        report = step(model, dataclasses.replace(batch, **shapes), **options)
        with pytest.raises(DataDependentOutputException):
            bool(report.finite)


def tiny_fake_model():
    from helpers.tiny import tiny_config

    from pyro_ltm.model import LatentThoughtModel

    return LatentThoughtModel(tiny_config())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_makes_nobody_wait():
    model, batch = tiny_model().cuda(), tiny_batch().to("cuda")
    with pyro.validation_enabled(False):
        step(model, batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(model, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_ids_stay_on_the_host():
    batch = tiny_batch().to("meta")
    assert (batch.ids.device.type, batch.inputs.device.type, batch.device.type) == ("cpu", "meta", "meta")


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
