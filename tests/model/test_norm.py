"""The norm of a fast step against torch's: values, gradients, and whoever differentiates twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_ltm.model.norm import RMSNorm


def both(size=7, dtype=torch.float64):
    ours, torchs = RMSNorm(size, eps=1e-3), nn.RMSNorm(size, eps=1e-3)
    nn.init.normal_(ours.weight)
    torchs.load_state_dict(ours.state_dict())
    return ours.to(dtype), torchs.to(dtype)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_agrees_with_torch(learns, dtype, atol):
    generator = torch.Generator().manual_seed(0)
    x, outer = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64).to(dtype)
    x.requires_grad_()
    found = []
    for norm in both(dtype=dtype):
        norm.weight.requires_grad_(learns)
        y = norm(x)
        found.append((y, *torch.autograd.grad((y * outer).sum(), [x, *([norm.weight] if learns else [])])))
    torch.testing.assert_close(*found, atol=atol, rtol=0)


def test_held_still_it_is_another_computation():
    ours, _ = both()
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    learning = ours(x).grad_fn
    ours.weight.requires_grad_(False)
    assert type(ours(x).grad_fn) is not type(learning)


def test_takes_the_gradient_of_zeros():
    ours, torchs = both()
    x = torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    for norm in (ours, torchs):
        norm.weight.requires_grad_(False)
    slopes = [torch.autograd.grad(norm(x).sum(), x)[0] for norm in (ours, torchs)]
    torch.testing.assert_close(*slopes, atol=1e-12, rtol=0)


def test_a_second_derivative_is_to_be_had_where_it_is_asked_for():
    ours, _ = both()
    ours.weight.requires_grad_(False)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(ours, x)


def test_and_where_nobody_said_so():
    found = []
    for norm in both():
        norm.weight.requires_grad_(False)
        x = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (slope,) = torch.autograd.grad((x + norm(x)).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.sum(), x))
    torch.testing.assert_close(*found, atol=1e-10, rtol=0)
