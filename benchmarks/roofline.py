"""The least that a fast step costs: the matrix products that it cannot do without, each at the machine's measured rate.

Counted are products of the decoder with its thoughts at hand (context computed once, no gradient of any weight): in the
layers, in attention within the window, in the head. Each is timed by itself, at its own shape, with operands of the
compute dtype; norms, softmaxes, exponentials and the optimizer count as nothing.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    """What a round of `every` fast steps on `size` sequences of `length` tokens needs, forward and back to thoughts.

    Each step of it scores one of `every` equal stretches.
    """
    counts: Counter[Product] = Counter()
    every = min(every, length)
    for part in range(every):
        for product in _step(model, size, part * length // every, (part + 1) * length // every):
            if product.flops:
                counts[replace(product, count=1)] += product.count
    return [replace(product, count=count) for product, count in counts.items()]


def _step(model: ModelConfig, size: int, first: int, last: int) -> Iterator[Product]:
    """The products of a step that scores the tokens from `first` to before `last`."""
    dim, hidden, layers, window = model.dim, model.hidden_width, model.layers, model.window
    each, width, heads = model.thoughts // layers, model.dim // model.heads, size * model.heads
    # A layer is needed at what the layers above it can see.
    begins = [max(0, first - above * (window - 1)) for above in reversed(range(layers))]
    yield Product("cross-attention: thoughts", 2 * 2 * layers, size * each, dim, dim)
    for layer, begin in enumerate(begins):
        # Layer 0 has its self-attention and the queries of its cross-attention before it, and no gradient goes there.
        later, positions = int(layer > 0), last - begin
        rows = size * positions
        # Keys that a query sees, on average: the first ones have fewer before them.
        seen = round(sum(min(place + 1, window) for place in range(begin, last)) / positions)
        read = size * (last - begins[max(layer - 1, 0)])
        yield Product("self-attention: keys and values", 2 * 2 * later, read, dim, dim)
        yield Product("self-attention: queries, output", 2 * 2 * later, rows, dim, dim)
        # Scores and mixtures forward; gradients of values, probabilities, queries and keys back.
        yield Product("self-attention: scores", 3 * later, positions, width, seen, heads)
        yield Product("self-attention: mixtures", 3 * later, positions, seen, width, heads)
        yield Product("cross-attention: queries", 2 * later, rows, dim, dim)
        yield Product("cross-attention: output", 2, rows, dim, dim)
        yield Product("cross-attention: scores", 2 + later, positions, width, each, heads)
        yield Product("cross-attention: mixtures", 3, positions, each, width, heads)
        yield Product("feed-forward: in", 2, rows, dim, hidden)
        yield Product("feed-forward: in, back", 2, rows, hidden, dim)
        yield Product("feed-forward: out", 1, rows, hidden, dim)
        yield Product("feed-forward: out, back", 1, rows, dim, hidden)
    yield Product("head", 1, size * (last - first), dim, model.vocab_size)
    yield Product("head, back", 1, size * (last - first), model.vocab_size, dim)


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
    parts: Counter[str] = Counter()
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
        parts[product.name] += product.count * statistics.median(times)
    return Roofline(sum(parts.values()), sum(product.flops for product in products), parts)
