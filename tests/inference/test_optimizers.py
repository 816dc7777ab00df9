"""The fast optimizer is torch's Adam, step by step."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_ltm.errors import UserError
from pyro_ltm.inference import OPTIMIZERS, Adam
from pyro_ltm.inference.optimizers import cosine

STEPS = 12


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("final", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("eps", [1e-8, 1.0])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
def test_is_torchs_adam_with_a_cosine(decay, final, betas, eps):
    torch.set_default_dtype(torch.float64)
    start = {"a": torch.randn(3, 4), "b": torch.randn(3)}
    gradients = [{"a": torch.randn(3, 4), "b": torch.randn(3)} for _ in range(STEPS)]
    ours = Adam(lr=0.3, lr_final=final, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=decay)
    theirs = {name: value.clone().requires_grad_() for name, value in start.items()}
    kind = torch.optim.AdamW if decay else torch.optim.Adam
    torchs = kind(theirs.values(), lr=0.3, betas=betas, eps=eps, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(torchs, T_max=STEPS, eta_min=0.3 * final)
    state, memory = start, ours.init(start)
    for step, gradient in enumerate(gradients):
        state, memory = ours.step(state, gradient, memory, step=step, steps=STEPS)
        for name, parameter in theirs.items():
            parameter.grad = gradient[name]
        torchs.step()
        schedule.step()
        for name, parameter in theirs.items():
            # Double precision; torch orders the products differently, and has its cosine by recursion.
            torch.testing.assert_close(state[name], parameter.detach(), atol=1e-12, rtol=1e-12)


def test_keeps_no_state_and_changes_nothing_in_place():
    start = {"a": torch.ones(2)}
    adam = Adam()
    memory = adam.init(start)
    first = adam.step(start, {"a": torch.ones(2)}, memory, step=0, steps=2)
    again = adam.step(start, {"a": torch.ones(2)}, memory, step=0, steps=2)
    assert torch.equal(first[0]["a"], again[0]["a"])
    assert torch.equal(start["a"], torch.ones(2))
    assert all((value == 0).all() for value in memory.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_elementwise_in_the_batch(name):
    torch.set_default_dtype(torch.float64)
    optimizer = OPTIMIZERS[name]()
    state, gradients = {"a": torch.randn(4, 3)}, [{"a": torch.randn(4, 3)} for _ in range(5)]
    rows = torch.tensor([2, 0])
    part = {"a": state["a"][rows]}
    memory, part_memory = optimizer.init(state), optimizer.init(part)
    for step, gradient in enumerate(gradients):
        state, memory = optimizer.step(state, gradient, memory, step=step, steps=5)
        chosen = {"a": gradient["a"][rows]}
        part, part_memory = optimizer.step(part, chosen, part_memory, step=step, steps=5)
    torch.testing.assert_close(state["a"][rows], part["a"], atol=1e-15, rtol=0)  # vectorized roundoff at most


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name):
    optimizer = OPTIMIZERS[name]()
    state = {"a": torch.full((2, 3), 3.0)}
    memory = optimizer.init(state)
    for step in range(40):
        state, memory = optimizer.step(state, {"a": 2 * state["a"]}, memory, step=step, steps=40)
    assert (state["a"].abs() < 1).all()


def test_cosine_goes_from_one_to_its_end():
    assert cosine(0, 8, 0.1) == 1
    assert cosine(8, 8, 0.1) == pytest.approx(0.1)
    assert cosine(4, 8, 0.1) == pytest.approx(0.55)
    assert cosine(3, 8, 1.0) == 1
    assert cosine(0, 0, 0.1) == 1


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"lr": math.nan}, {"lr_final": 1.5}, {"lr_final": -0.1}, {"beta1": 1.0}, {"beta2": -0.1}],
    ids=str,
)
def test_refuses_bad_options(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Adam(**options)
