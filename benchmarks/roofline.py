"""The least that a fast step costs: the matrix products that it cannot do without, each at the machine's measured rate.

Counted are products of the decoder with its thoughts at hand (context computed once, no gradient of any weight): in the
layers, in attention within the window, in the head. Each is timed by itself, at its own shape, with operands of the
compute dtype; norms, softmaxes, exponentials and the optimizer count as nothing.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
    """The matrix products of `every` fast steps on `size` sequences of `length` tokens, forward and back to thoughts.

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
    inward = 2 if model.feed_forward == "swiglu" else 1  # matrices that read the feed-forward layer's input
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
        yield Product("cross-attention: scores", 2 + later, positions, width, each, heads)
        if few(model):  # thoughts are projected, and mixed then
            yield Product("cross-attention: output", 2, each, width, dim, heads)
            yield Product("cross-attention: mixtures", 1, positions, model.heads * each, dim, size)
            yield Product("cross-attention: mixtures, back", 1, positions, dim, model.heads * each, size)
            yield Product("cross-attention: mixtures, back", 1, model.heads * each, positions, dim, size)
        else:
            yield Product("cross-attention: output", 2, rows, dim, dim)
            yield Product("cross-attention: mixtures", 3, positions, each, width, heads)
        yield Product("feed-forward: in", inward, rows, dim, hidden)
        yield Product("feed-forward: in, back", inward, rows, hidden, dim)
        yield Product("feed-forward: out", 1, rows, hidden, dim)
        yield Product("feed-forward: out, back", 1, rows, dim, hidden)
    yield Product("head", 1, size * (last - first), dim, model.vocab_size)
    yield Product("head, back", 1, size * (last - first), model.vocab_size, dim)


def few(model: ModelConfig) -> bool:
    """Whether a fast step takes fewer operations where the thoughts, not their mixtures, are projected.

    A token's mixture then has a term for each head and thought, in three products; its projection had D, in two.
    """
    return 3 * model.heads * model.thoughts < 2 * model.layers * model.dim


def slow_step_flops(model: ModelConfig, size: int, length: int) -> int:
    """Of the products of a slow step: forward, and as many again back to what each layer read and to its weights."""
    dim, hidden, window = model.dim, model.hidden_width, model.window
    seen = sum(min(place + 1, window) for place in range(length)) / length
    each = model.thoughts // model.layers
    # A token and its layer's thoughts: queries, scores, mixtures, and their projection, which few thoughts have before.
    crossing = (dim + each + (model.heads * each if few(model) else each + dim)) * dim if each else 0
    weights = 4 * dim * dim + (3 if model.feed_forward == "swiglu" else 2) * dim * hidden
    token = model.layers * (weights + crossing + 2 * seen * dim) + dim * model.vocab_size
    thoughts = model.thoughts * (3 if few(model) else 2) * dim * dim
    return round(2 * 3 * size * (length * token + thoughts))


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


def measure(
    products: list[Product],
    dtype: torch.dtype = torch.float32,
    repeats: int = 5,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Roofline:
    """Each product timed at its shape (`repeats` times), times how often it is needed."""
    parts: Counter[str] = Counter()
    for product in products:
        left = torch.randn(product.batch, product.rows, product.inner, device=device).to(dtype)
        right = torch.randn(product.batch, product.inner, product.columns, device=device).to(dtype)
        pair = (left[0], right[0]) if product.batch == 1 else (left, right)
        out = torch.matmul(*pair)
        work = functools.partial(torch.matmul, *pair, out=out)
        parts[product.name] += product.count * _seconds(work, repeats, waits=out.is_cuda, clock=clock)
    return Roofline(sum(parts.values()), sum(product.flops for product in products), parts)


def _seconds(work: Callable[[], object], repeats: int, waits: bool, clock: Callable[[], float]) -> float:
    """Of one `work`: the median; where its end has to be waited for, on a GPU, the mean over a longer row of them."""
    if waits:
        torch.cuda.synchronize()
        repeats *= 4
        began = clock()
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
        return (clock() - began) / repeats
    times = []
    for _ in range(repeats):
        began = clock()
        work()
        times.append(clock() - began)
    return statistics.median(times)


NOMINAL = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second by the maker's data sheets, of the models with SXM sockets."""


def peak_rates(dtype: torch.dtype, device: torch.device | str, size: int = 8192) -> dict[str, float | None]:
    """Operations a second: of one large square product here, and those that the maker names (None: not known here)."""
    square = Product("square", 1, size, size, size)
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else ""
    named = next((rate for gpu, rate in NOMINAL.items() if gpu in name and dtype == torch.bfloat16), None)
    return {"measured": 1e9 * measure([square], dtype, device=device).rate, "nominal": named}
