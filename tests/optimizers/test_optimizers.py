"""The fast optimizer is torch's Adam, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.stand_ins import LinearGaussian
from helpers.tiny import telling_model, tiny_config

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import GUIDES, Delta, MeanField
from pyro_ltm.inference.build import build_guide
from pyro_ltm.objectives import MAP, AnalyticELBO
from pyro_ltm.optimizers import LBFGS, OPTIMIZERS, SGD, Adam, Natural, schedule

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
        state, memory = ours.step(state, gradient, memory, losses=torch.zeros(3), step=step, steps=STEPS)
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
    first = adam.step(start, {"a": torch.ones(2)}, memory, losses=torch.zeros(2), step=0, steps=2)
    again = adam.step(start, {"a": torch.ones(2)}, memory, losses=torch.zeros(2), step=0, steps=2)
    assert torch.equal(first[0]["a"], again[0]["a"])
    assert torch.equal(start["a"], torch.ones(2))
    assert all((value == 0).all() for value in memory.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_elementwise_in_the_batch(name):
    torch.set_default_dtype(torch.float64)
    optimizer = OPTIMIZERS[name]()
    state, gradients = {"a": torch.randn(4, 3)}, [{"a": torch.randn(4, 3)} for _ in range(5)]
    rows, losses = torch.tensor([2, 0]), torch.randn(5, 4).cumsum(0)
    part = {"a": state["a"][rows]}
    memory, part_memory = optimizer.init(state), optimizer.init(part)
    for step, gradient in enumerate(gradients):
        state, memory = optimizer.step(state, gradient, memory, losses=losses[step], step=step, steps=5)
        chosen, theirs = {"a": gradient["a"][rows]}, losses[step][rows]
        part, part_memory = optimizer.step(part, chosen, part_memory, losses=theirs, step=step, steps=5)
    torch.testing.assert_close(state["a"][rows], part["a"], atol=1e-15, rtol=0)  # vectorized roundoff at most


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name):
    optimizer = OPTIMIZERS[name]()
    state = {"a": torch.full((2, 3), 3.0)}
    memory = optimizer.init(state)
    for step in range(40):
        losses = state["a"].square().sum(1)
        state, memory = optimizer.step(state, {"a": 2 * state["a"]}, memory, losses=losses, step=step, steps=40)
    assert (state["a"].abs() < 1).all()


def test_cosine_goes_from_one_to_its_end():
    assert schedule("cosine", 0, 8, 0.1) == 1
    assert schedule("cosine", 8, 8, 0.1) == pytest.approx(0.1)
    assert schedule("cosine", 4, 8, 0.1) == pytest.approx(0.55)
    assert schedule("cosine", 3, 8, 1.0) == 1
    assert schedule("cosine", 0, 0, 0.1) == 1


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"lr": math.nan}, {"lr_final": 1.5}, {"lr_final": -0.1}, {"beta1": 1.0}, {"beta2": -0.1}],
    ids=str,
)
def test_refuses_bad_options(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Adam(**options)


def test_is_torchs_gradient_descent_with_momentum():
    torch.set_default_dtype(torch.float64)
    for nesterov in (False, True):
        start = {"a": torch.randn(3, 4)}
        gradients = [torch.randn(3, 4) for _ in range(STEPS)]
        ours = SGD(lr=0.2, lr_final=1.0, momentum=0.7, nesterov=nesterov)
        parameter = start["a"].clone().requires_grad_()
        torchs = torch.optim.SGD([parameter], lr=0.2, momentum=0.7, nesterov=nesterov)
        state, memory = start, ours.init(start)
        for step, gradient in enumerate(gradients):
            state, memory = ours.step(state, {"a": gradient}, memory, losses=torch.zeros(3), step=step, steps=STEPS)
            parameter.grad = gradient
            torchs.step()
        torch.testing.assert_close(state["a"], parameter.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "exponential", "constant"])
def test_schedules_by_hand(name):
    shares = [schedule(name, step, 4, 0.25) for step in range(5)]
    wanted = {
        "linear": [1.0, 0.8125, 0.625, 0.4375, 0.25],
        "exponential": [1.0, 0.25**0.25, 0.5, 0.25**0.75, 0.25],
        "constant": [1.0] * 5,
    }
    assert shares == pytest.approx(wanted[name])


def test_lbfgs_solves_a_badly_scaled_quadratic():
    """For each sequence a quadratic of its own, condition number 1,000, in 12 dimensions."""
    torch.set_default_dtype(torch.float64)
    basis = torch.linalg.qr(torch.randn(3, 12, 12)).Q
    matrix = basis * torch.logspace(0, 3, 12) @ basis.mT
    centre = torch.randn(3, 12)
    state = {"a": torch.zeros(3, 2, 4), "b": torch.zeros(3, 4)}
    optimizer = LBFGS(radius=5.0)
    memory, first = optimizer.init(state), None
    for step in range(60):
        point = torch.cat([state["a"].flatten(1), state["b"]], 1)
        slope = (matrix @ (point - centre)[..., None])[..., 0]
        losses = 0.5 * ((point - centre) * slope).sum(-1)
        first = losses if first is None else first
        grads = {"a": slope[:, :8].view(3, 2, 4), "b": slope[:, 8:]}
        state, memory = optimizer.step(state, grads, memory, losses=losses, step=step, steps=60)
    assert (memory["loss"] < 1e-5 * first).all()
    assert torch.equal(torch.cat([state["a"].flatten(1), state["b"]], 1), memory["point"]), "it ends at its best point"


def test_lbfgs_goes_back_from_a_step_that_did_not_help():
    torch.set_default_dtype(torch.float64)
    optimizer = LBFGS(radius=1.0)
    state = {"a": torch.zeros(2, 3)}
    memory = optimizer.init(state)
    grads = {"a": torch.ones(2, 3)}
    there, memory = optimizer.step(state, grads, memory, losses=torch.zeros(2), step=0, steps=9)
    torch.testing.assert_close(there["a"].norm(dim=1), torch.ones(2))
    losses = torch.tensor([1.0, math.nan])
    back, memory = optimizer.step(there, grads, memory, losses=losses, step=1, steps=9)
    assert torch.equal(memory["point"], torch.zeros(2, 3))
    assert torch.equal(memory["radius"], torch.full((2,), 0.5))
    torch.testing.assert_close(back["a"].norm(dim=1), torch.full((2,), 0.5))


def test_lbfgs_finds_the_mode_of_a_linear_gaussian_model():
    torch.set_default_dtype(torch.float64)
    model = LinearGaussian()
    batch = model.data(8)
    options = {"guide": Delta(model.thoughts, model.dim), "objective": MAP(), "steps": 25}
    fit = fit_posterior(model, batch, optimizer=LBFGS(), **options)
    torch.testing.assert_close(fit.state["loc"], model.posterior(batch).mean, atol=1e-8, rtol=0)


def test_a_natural_step_of_one_lands_on_the_posterior_mean():
    """With mirrored noise the gradient for the mean of a Gaussian posterior has no variance at all."""
    torch.set_default_dtype(torch.float64)
    model = LinearGaussian()
    batch = model.data(8)
    exact = model.posterior(batch)
    guide = MeanField(model.thoughts, model.dim)
    guide.init = lambda batch: {"loc": torch.zeros_like(exact.mean), "log_variance": exact.variance.log()}
    optimizer = Natural(lr=1.0, lr_final=1.0, radius=1e6)
    options = {"guide": guide, "objective": AnalyticELBO(particles=2), "optimizer": optimizer, "steps": 1}
    fit = fit_posterior(model, batch, noise="antithetic", **options)
    torch.testing.assert_close(fit.state["loc"], exact.mean, atol=1e-12, rtol=0)
    fresh = fit_posterior(model, batch, noise="fresh", **options)
    assert (fresh.state["loc"] - exact.mean).abs().max() > 1e-3


def test_a_misspelt_flag_is_refused():
    with pytest.raises(TypeError, match=r"Odd\.wants_natural: no such flag"):

        class Odd(SGD):
            wants_natural = True


@pytest.mark.parametrize(
    "name", [name for name, kind in GUIDES.items() if kind.has_natural_gradient and kind.learning != "amortized"]
)
def test_a_natural_step_moves_q_no_further_than_its_radius(name):
    """KL(q before || q after) is half the squared length of the step, to second order."""
    torch.set_default_dtype(torch.float64)
    model, batch = telling_model(3)
    guide = build_guide(Component(name=name), tiny_config()).double()
    optimizer = Natural(lr=0.01, lr_final=1.0, radius=2.0)
    options = {"guide": guide, "objective": AnalyticELBO(), "optimizer": optimizer}
    start, after = (fit_posterior(model, batch, steps=steps, **options).distribution for steps in (0, 1))
    z = start.sample((2000,))
    moved = start.log_prob(z) - after.log_prob(z)
    kl, error = moved.mean(0), moved.std(0) / 2000**0.5
    wanted = 0.5 * (0.01 * 2.0) ** 2
    # The gradients of this decoder are longer than the radius, so every step is cut to it.
    assert ((kl - wanted).abs() < 4.5 * error + 0.1 * wanted).all()
    whole = fit_posterior(model, batch, steps=16, **(options | {"optimizer": Natural()}))
    assert all(value.isfinite().all() for value in whole.state.values())
