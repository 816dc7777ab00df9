"""Torch's fused attention kernels, and whether they are ours to choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_ltm.model.kernels.device import device_type

P = ParamSpec("P")
R = TypeVar("R")

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH = torch.ops.aten._flash_attention_forward
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def chooses_its_kernel() -> bool:
    """Whether the kernel, and what is kept for the backward pass, is ours to choose.

    The compiler chooses by itself. And without the fused kernels somebody differentiates twice, under a choice of
    kernel (`sdpa_kernel`) that is over by the time of the backward pass: computed again, it would keep other tensors.
    """
    return not torch.compiler.is_compiling() and torch.backends.cuda.flash_sdp_enabled()


def by_kernels_of_now(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which attends by the kernels that torch may choose from now, whenever it is called.

    For what is computed again in a backward pass, when a choice of kernels (`sdpa_kernel`) is over.
    """
    if torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled():
        return function
    allowed = {
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled(),
    }

    def calling(*arguments: P.args, **options: P.kwargs) -> R:
        with sdpa_kernel([kernel for kernel, is_allowed in allowed.items() if is_allowed]):
            return function(*arguments, **options)

    return calling


def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Attention in the precision of `q`, `k` and `v`; autocast would round them."""
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, k, v, **options)


def has_window_kernel(x: Tensor) -> bool:
    """Whether torch's flash attention for GPUs (Ampere or later) takes `x`.

    It has no second derivative: see `chooses_its_kernel`.
    """
    half = device_type(x) == "cuda" and x.dtype in (torch.bfloat16, torch.float16)
    fits = x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    return half and fits and (torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled())


def attend_in_window(q: Tensor, k: Tensor, v: Tensor, window: int, ahead: int = 0) -> Tensor:
    """Attention [B, H, P, d] of the last P of T tokens, each to the last `window` keys [B, H, T, d], its own included.

    And to the next `ahead` keys.

    By the kernel behind `scaled_dot_product_attention` and `varlen_attn`, which are no way to it here: the first has no
    window, and the second packs sequences that have one length already.
    """
    turned = [x.transpose(1, 2) for x in (q, k, v)]
    dropout, causal, debug = 0.0, not ahead, False
    options = {"window_size_left": window - 1, "window_size_right": ahead}
    lengths = (None, None, q.shape[2], k.shape[2])  # no table of lengths: all are as long
    with torch.autocast(q.device.type, enabled=False):
        out: Tensor = FLASH(*turned, *lengths, dropout, causal, debug, **options)[0]
    return out.transpose(1, 2)


def readable(x: Tensor) -> Tensor:
    """`x` as the fused kernel for CPUs reads it: it takes the numbers of a row to lie side by side, unasked."""
    return x if x.stride(-1) == 1 else x.contiguous()
