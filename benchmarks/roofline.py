"""The least that a fast step costs: the matrix products that it cannot do without, each at the machine's measured rate.

Counted are products of the decoder with its thoughts at hand (context computed once, no gradient of any weight): in the
layers, in attention within the window, in the head. Each is timed by itself, at its own shape, with operands of the
compute dtype; norms, softmaxes, exponentials and the optimizer count as nothing.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from pyro_ltm.config import ModelConfig


@dataclass(frozen=True)
class Product:
    """`count` products [batch, rows, inner] x [batch, inner, columns]; a batch of 1 is a plain matrix product."""

    name: str
    count: int
    rows: int
    inner: int
    columns: int
    batch: int = 1

    @property
    def flops(self) -> int:
        """Floating point operations of all of them."""
        return 2 * self.count * self.batch * self.rows * self.inner * self.columns


def fast_step_products(model: ModelConfig, size: int, length: int, every: int = 1) -> list[Product]:
    """What one fast step on `size` sequences of `length` tokens needs, forward and back to the thoughts."""
    dim, hidden, layers = model.dim, model.hidden_width, model.layers
    each, width = model.thoughts // layers, model.dim // model.heads
    heads = size * model.heads
    # Keys that a query sees, on average: the first ones have fewer before them.
    window = round(sum(min(place + 1, model.window) for place in range(length)) / length)
    rows, asked = size * length, size * -(-length // every)
    products = [
        Product("cross-attention: thoughts", 2 * 2 * layers, size * each, dim, dim),
        # Layer 0 has its self-attention and the queries of its cross-attention before it.
        Product("self-attention: keys and values", 2 * 2 * (layers - 1), rows, dim, dim),
        Product("head", 1, asked, dim, model.vocab_size),
        Product("head, back", 1, asked, model.vocab_size, dim),
    ]
    # Of the last layer nothing but its keys and values is needed where no token is scored.
    for name, count, positions in (("", layers - 1, length), (", last layer", 1, asked // size)):
        later, rows = (count if layers > 1 and name else count - 1), size * positions
        products += [
            Product(f"self-attention: queries, output{name}", 2 * 2 * later, rows, dim, dim),
            Product(f"cross-attention: queries{name}", 2 * later, rows, dim, dim),
            Product(f"cross-attention: output{name}", 2 * count, rows, dim, dim),
            Product(f"feed-forward: in{name}", 2 * count, rows, dim, hidden),
            Product(f"feed-forward: in, back{name}", 2 * count, rows, hidden, dim),
            Product(f"feed-forward: out{name}", count, rows, hidden, dim),
            Product(f"feed-forward: out, back{name}", count, rows, dim, hidden),
            # Scores and mixtures forward; gradients of values, probabilities, queries and keys back. No gradient goes
            # to the queries of layer 0's cross-attention.
            Product(f"self-attention: scores{name}", 3 * later, positions, width, window, heads),
            Product(f"self-attention: mixtures{name}", 3 * later, positions, window, width, heads),
            Product(f"cross-attention: scores{name}", 3 * count - (count > later), positions, width, each, heads),
            Product(f"cross-attention: mixtures{name}", 3 * count, positions, each, width, heads),
        ]
    return [product for product in products if product.flops > 0]


@dataclass(frozen=True)
class Roofline:
    """Seconds and operations of the products; `rate` is over all of them, in GFLOP/s."""

    seconds: float
    flops: int
    parts: dict[str, float]

    @property
    def rate(self) -> float:
        """GFLOP/s."""
        return self.flops / self.seconds / 1e9


def measure(products: list[Product], dtype: torch.dtype = torch.float32, repeats: int = 5) -> Roofline:
    """Each product timed at its shape (the median of `repeats`), times how often it is needed."""
    parts = {}
    for product in products:
        left = torch.randn(product.batch, product.rows, product.inner).to(dtype)
        right = torch.randn(product.batch, product.inner, product.columns).to(dtype)
        pair = (left[0], right[0]) if product.batch == 1 else (left, right)
        out = torch.matmul(*pair)
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            torch.matmul(*pair, out=out)
            times.append(time.perf_counter() - began)
        parts[product.name] = product.count * statistics.median(times)
    return Roofline(sum(parts.values()), sum(product.flops for product in products), parts)
