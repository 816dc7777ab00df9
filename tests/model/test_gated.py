"""The gate of SwiGLU on one tensor: the same numbers as on two, and right gradients of the first and second order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyro_ltm.model.kernels.gated import gated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_plain_one_to_the_bit(dtype):
    x = torch.randn(3, 5, 14, dtype=dtype, requires_grad=True)
    grad = torch.randn(3, 5, 7, dtype=dtype)
    gate, up = x.chunk(2, dim=-1)
    plain = F.silu(gate) * up
    assert torch.equal(gated(x), plain)
    (ours,) = torch.autograd.grad(gated(x), x, grad)
    assert torch.equal(ours, torch.autograd.grad(plain, x, grad)[0])


def test_gradients_by_finite_differences():
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated, x)
    assert torch.autograd.gradgradcheck(gated, x)
