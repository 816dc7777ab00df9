"""Floating-point operations of what runs: those of its matrix products and attention, as torch executes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def count_operations(work: Callable[[], object]) -> int:
    """Multiplications and additions of all matrix products and attention while `work` runs, forward and back.

    Elementwise work (norms, softmaxes, exponentials, AdamW's update) counts as nothing; the orthogonalization of Muon
    is made of products, and counts. Compiled code hides its products: count code that is not compiled.

    The formulas are those of `torch.utils.flop_counter`, whose own counter hooks into modules in a way that
    `torch.autograd.grad` does not allow.
    """
    with _Counter() as counter:
        work()
    return counter.total


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.total += operations_of(func, args, kwargs or {}, result)
        return result


def operations_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Those of one call of a torch operator, as a dispatch mode sees it."""
    packet = func._overloadpacket
    if packet in _IN_WINDOW and kwargs.get("window_size_left") is not None:
        return _IN_WINDOW[packet](*args, **kwargs)
    if packet in _ON_CPU:
        return _ON_CPU[packet](*args)
    return int(flop_registry[packet](*args, **kwargs, out_val=result)) if packet in flop_registry else 0


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_back(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


def _product_in_place(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *_: Any) -> int:
    return 2 * left.numel() * right.shape[1]


def _packed_product(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> int:
    """Of a weight [outputs, inputs] in the processor's own order (`model.kernels.packed`)."""
    return 2 * x.numel() * weight.shape[0]


def _flash(query: torch.Tensor, key: torch.Tensor, *_: Any, window_size_left: int, products: int = 2, **__: Any) -> int:
    """`products` of each of the last queries [B, P, H, d] with the keys [B, T, H, d] in its window."""
    (size, last, heads, width), length = query.shape, key.shape[1]
    seen = sum(min(place + 1, window_size_left + 1) for place in range(length - last, length))
    return 2 * products * size * heads * width * seen


def _flash_back(gradient: torch.Tensor, *inputs: Any, **options: Any) -> int:
    """Scores again, and the gradients of values, probabilities, queries and keys."""
    return _flash(*inputs, **options, products=5)


_aten = torch.ops.aten
_ON_CPU: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
    _aten.addmm_: _product_in_place,
}
"""For which torch registers no formula: products added in place, and on a processor attention and packed weights."""
_IN_WINDOW: dict[Any, Callable[..., int]] = {
    _aten._flash_attention_forward: _flash,
    _aten._flash_attention_backward: _flash_back,
}
"""On a GPU: causal attention in a window, for which torch's formula counts all keys."""
if _packed := getattr(torch.ops.mkldnn, "_linear_pointwise", None):  # not in every build of torch
    _ON_CPU[_packed] = _packed_product
