"""Windowed attention against a dense mask."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from helpers.devices import needs_a_gpu
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_ltm.model import attention
from pyro_ltm.model.attention import rotary_table, rotate, windowed_attention
from pyro_ltm.model.kernels.attention import has_window_kernel


def dense(q, k, v, window, causal=True):
    key = torch.arange(k.shape[-2], device=k.device)
    query = key[k.shape[-2] - q.shape[-2] :, None]
    sees = (key <= (query if causal else query + window - 1)) & (key > query - window)
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~sees, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.fixture
def bands(monkeypatch):
    """The way of every device but a CPU."""
    monkeypatch.setattr(attention, "_has_blocks", lambda q: False)


@given(
    length=st.integers(1, 40),
    window=st.integers(1, 45),
    block=st.none() | st.integers(1, 45),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    recompute=st.booleans(),
    blocks=st.booleans(),
    seen=st.integers(0, 39),
    causal=st.booleans(),
)
@settings(max_examples=100)
@example(length=17, window=16, block=16, batch=2, heads=2, recompute=True, blocks=False, seen=0, causal=True)
@example(length=40, window=1, block=1, batch=1, heads=1, recompute=False, blocks=True, seen=0, causal=True)
@example(length=2, window=1, block=45, batch=1, heads=1, recompute=True, blocks=True, seen=0, causal=True)
@example(length=40, window=5, block=8, batch=1, heads=1, recompute=True, blocks=False, seen=39, causal=True)
@example(length=40, window=5, block=16, batch=1, heads=1, recompute=True, blocks=False, seen=0, causal=False)
@example(length=40, window=5, block=8, batch=2, heads=1, recompute=False, blocks=True, seen=0, causal=False)
@example(length=9, window=9, block=4, batch=1, heads=2, recompute=False, blocks=True, seen=0, causal=False)
@example(length=40, window=5, block=8, batch=1, heads=1, recompute=False, blocks=True, seen=20, causal=True)
@example(length=9, window=9, block=4, batch=1, heads=2, recompute=False, blocks=True, seen=4, causal=True)
def test_agrees_with_a_dense_mask(length, window, block, batch, heads, recompute, blocks, seen, causal):
    generator = torch.Generator().manual_seed(length * 1000 + window)
    q, k, v, weight = torch.randn(4, batch, heads, length, 4, generator=generator, dtype=torch.float64)
    q, weight = q[:, :, min(seen, length - 1) :], weight[:, :, min(seen, length - 1) :]
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with patch.object(attention, "_has_blocks", lambda q: blocks):
        ours = windowed_attention(q, k, v, window, block, recompute, causal)
    plain = dense(q, k, v, window, causal)
    # Double precision and a few dozen terms of order one: 1e-12 leaves a thousand units in the last place.
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)
    for mine, theirs in zip(*(torch.autograd.grad((o * weight).sum(), leaves) for o in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)


def test_half_precision_is_computed_in_single():
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 2, 3, 50, 8, dtype=torch.bfloat16))
    ours, plain = windowed_attention(q, k, v, window=7), dense(*(x.double() for x in (q, k, v)), window=7)
    assert ours.dtype == torch.bfloat16
    # The result is rounded to bfloat16's 8 bits, and so is each gradient.
    torch.testing.assert_close(ours.double(), plain, atol=2**-8, rtol=2**-8)
    for mine, theirs in zip(*(torch.autograd.grad(o.double().sum(), (q, k, v)) for o in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2**-6, rtol=2**-7)


@pytest.mark.parametrize("way", ["blocks", "bands"])
def test_takes_memory_for_a_band_only(way, request):
    """Four times the length costs about four times the work's memory, and a full mask would cost sixteen times."""
    if way == "bands":
        request.getfixturevalue("bands")
    sizes = []
    for length in (256, 1024):
        saved = [0]

        def keep(tensor, saved=saved):
            saved[0] += tensor.numel()
            return tensor

        q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 1, length, 4))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            windowed_attention(q, k, v, window=32)
        sizes.append(saved[0])
    assert sizes[1] < 5 * sizes[0]


def test_blocks_keep_no_more_than_goes_in_and_out():
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, 64, 4))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        windowed_attention(q, k, v, window=16)
    assert sum(kept.values()) == 4 * q.numel() + 2 * 64  # the result, and a number for each head and query


def test_bands_computed_again_are_not_kept(bands):
    kept = []

    def keep(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, 64, 4))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        windowed_attention(q, k, v, window=16, recompute=True)
    assert set(kept) - {0} <= {x.data_ptr() for x in (q, k, v)}  # 0: nothing is kept there


def test_a_second_derivative_may_be_taken_outside_of_the_choice_of_kernel():
    """An objective that differentiates through the fast loop chooses the kernel there, and goes back outside of it."""
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, 7, 2, dtype=torch.float64))

    def attend(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
            return windowed_attention(q, k, v, window=3, block=2, recompute=True)

    assert torch.autograd.gradgradcheck(attend, (q, k, v))


@pytest.mark.parametrize("turned", range(3))
def test_numbers_may_lie_in_any_order(turned):
    inputs = list(torch.randn(3, 1, 2, 30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    plain = dense(*inputs, window=7)
    inputs[turned] = inputs[turned].mT.contiguous().mT
    torch.testing.assert_close(windowed_attention(*inputs, window=7), plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [5, 30])
def test_autocast_does_not_round_single_precision(length):
    q, k, v = torch.randn(3, 1, 2, length, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        ours = windowed_attention(q, k, v, window=7)
    torch.testing.assert_close(ours, dense(q, k, v, window=7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("learns", ["all of one tensor", "keys alone"])
def test_a_first_derivative_that_keeps_its_graph_is_right(learns):
    x = torch.randn(1, 2, 30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    inputs = (x, x, x) if learns == "all of one tensor" else (x.detach(), x, x.detach())
    ours, plain = windowed_attention(*inputs, window=7), dense(*inputs, window=7)
    slopes = [torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)[0] for y in (ours, plain)]
    torch.testing.assert_close(*slopes, atol=1e-11, rtol=0)


def test_a_second_derivative_is_refused_not_wrong():
    x = torch.randn(1, 1, 30, 4, dtype=torch.float64, requires_grad=True)
    y = x + windowed_attention(x, x, x, window=7)
    (slope,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(slope.square().sum(), x)


def test_rotation_makes_scores_depend_on_distance_alone():
    q, k = torch.randn(2, 8, dtype=torch.float64)
    table = rotary_table(torch.arange(30), 8, 10000.0).double()
    q_all, k_all = rotate(q.expand(30, 8), table), rotate(k.expand(30, 8), table)
    scores = q_all @ k_all.T
    for distance in range(5):
        # The table is in single precision: an angle of at most 30 is off by 30 * 2^-24.
        assert float(scores.diagonal(-distance).std()) < 30 * 2**-24 * float(q.norm() * k.norm())
    torch.testing.assert_close(q_all.norm(dim=-1), q.norm().expand(30), atol=1e-6, rtol=0)


@needs_a_gpu
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore"))])
@pytest.mark.parametrize(("width", "window", "seen"), [(64, 16, 0), (32, 7, 0), (64, 16, 77), (128, 2, 0)])
@pytest.mark.parametrize("causal", [True, False])
def test_a_gpus_kernel_sees_the_same_window(width, window, seen, compiled, causal):
    """Half precision on a GPU: values and gradients against a dense mask in double precision."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = torch.randn(4, 2, 3, 100, width, generator=generator).bfloat16().to("cuda")
    q, weight = q[:, :, seen:], weight[:, :, seen:]
    leaves, exact = ([x.to(dtype).requires_grad_() for x in (q, k, v)] for dtype in (torch.bfloat16, torch.float64))
    assert has_window_kernel(leaves[0])
    ours = (torch.compile(windowed_attention) if compiled else windowed_attention)(*leaves, window, causal=causal)
    plain = dense(*exact, window, causal)
    torch.testing.assert_close(ours.double(), plain, atol=2**-7, rtol=2**-7)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weight).sum(), leaves),
        torch.autograd.grad((plain * weight).sum(), exact),
        strict=True,
    ):
        assert (mine.double() - theirs).norm() < 2**-6 * theirs.norm()


def crossed(layer, x, z, few):
    """`x` after it has read `z`, and gradients of all that it depends on; values projected before mixing or after."""
    table, places = (rotary_table(torch.arange(n), 8, 1e4) for n in (x.shape[1], z.shape[1]))
    leaves = [x.requires_grad_(), z.requires_grad_(), *layer.parameters()]
    with patch.object(attention, "_are_few", lambda keys: few):
        out = layer.cross(x, table, *layer.keys_outputs(z, places))
    return out, torch.autograd.grad(out.double().square().sum(), leaves)


@pytest.mark.parametrize(("heads", "thoughts"), [(1, 3), (2, 1), (4, 5), (4, 12)])
def test_few_values_may_be_projected_before_they_are_mixed(heads, thoughts):
    torch.set_default_dtype(torch.float64)
    layer = attention.Attention(8 * heads, heads)
    x, z = torch.randn(3, 6, 8 * heads), torch.randn(3, thoughts, 8 * heads)
    torch.testing.assert_close(*(crossed(layer, x, z, few) for few in (True, False)), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_in_bfloat16_few_values_keep_probabilities_precise(kernel):
    """Scores and softmax in single precision, whoever chooses the kernel: as near to exact as the other way."""
    layer, generator = attention.Attention(32, 4), torch.Generator().manual_seed(0)
    x, z = torch.randn(4, 50, 32, generator=generator) * 4, torch.randn(4, 3, 32, generator=generator) * 4
    exact, _ = crossed(layer, x, z, few=False)
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(kernel):
        ours, theirs = (crossed(layer, x, z, few)[0] for few in (True, False))
    ours_off, theirs_off = ((one - exact).norm() for one in (ours, theirs))
    assert 0 < ours_off < 1.5 * theirs_off
