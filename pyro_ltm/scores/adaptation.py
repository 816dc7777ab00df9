"""Test-time training of an autoregressive model, the rival of fitting thoughts; for comparison only.

Protocol: each sequence is read chunk by chunk. A chunk is scored first, then learned from: a few steps on low-rank
additions to some of the decoder's matrices, W + B A with A [r, inputs] and B [outputs, r], one such pair for each
sequence (LoRA, arXiv:2106.09685). B begins at zero, so the first chunk costs what it costs the model itself, and each
sequence begins anew. No token is learned from before it is scored, so this is a predictive figure, as `prefix` is, and
the same chunks can be scored by both. The decoder's own weights stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pyro_ltm.errors import UserError
from pyro_ltm.model import LatentThoughtModel, TokenSequence
from pyro_ltm.noise import Noise, fold
from pyro_ltm.optimizers import Adam, FastOptimizer
from pyro_ltm.scores.estimate import Count, Figure, Tally
from pyro_ltm.types import Batch, State, evaluating, frozen


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How a decoder learns from a chunk.

    Attributes:
        steps: on each chunk; 0: it learns nothing. rank: r of the additions.
        targets: names of the matrices that get one, in every layer.
        whole: learn from all tokens so far; False: from the last chunk alone, with those before it as its context.
        optimizer: moves the additions, each sequence by itself, with one memory from chunk to chunk.

    Raises:
        UserError: no rank, or a number of steps below 0.
    """

    steps: int = 1
    rank: int = 4
    targets: tuple[str, ...] = ("wq", "wv")
    whole: bool = False
    optimizer: FastOptimizer = field(default_factory=lambda: Adam(lr=0.01, beta1=0.9, eps=1e-8, schedule="constant"))

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rank < 1:
            raise UserError(f"adaptation: steps = {self.steps}, rank = {self.rank}: at least 0, and at least 1")


@dataclass(frozen=True, kw_only=True, repr=False)
class Adapted(Figure):
    """Nats a token of a decoder that learns from what it has read.

    Attributes:
        stride: tokens in a chunk. steps, rank, seed, sequences: how it was measured.
    """

    stride: int
    steps: int
    rank: int
    seed: int
    sequences: int


@torch.no_grad()
def evaluate_adapted(
    model: LatentThoughtModel,
    batches: Iterable[Batch],
    adaptation: Adaptation,
    *,
    stride: int = 0,
    seed: int = 0,
    progress: Count | None = None,
) -> Adapted:
    """Scores every chunk of every sequence, then learns from it.

    Args:
        model: without thoughts.
        stride: tokens in a chunk; 0: an eighth of the length, as of `evaluate_prefix`.
        seed: of the additions' first values, keyed by sequence.
        progress: called after each batch.

    Raises:
        UserError: a model with thoughts, a masked diffusion, no matrices of these names, or no sequences.
    """
    if model.config.thoughts or model.config.is_diffusion:
        why = "has thoughts, which are fitted" if model.config.thoughts else "is a masked diffusion"
        raise UserError(f"test-time training is of an autoregressive model without thoughts: this one {why}")
    if stride < 0:
        raise UserError(f"stride = {stride}: at least 1 token")
    targets, tally = _targets(model, adaptation.targets), Tally(progress)
    with evaluating(model):
        for read in batches:
            batch = dataclasses.replace(read, context=None, context_of=None)  # which would be of the decoder as it was
            stride = stride or max(1, batch.length // 8)
            chunk = stride if adaptation.steps else batch.length  # who learns nothing reads on
            tally.add(batch, _Reader(model, targets, adaptation, batch, seed).nats(chunk))
    return tally.figure(
        Adapted,
        "figure of test-time training",
        stride=stride,
        steps=adaptation.steps,
        rank=adaptation.rank,
        seed=seed,
        sequences=len(tally.whole()[0]),
    )


def _targets(model: LatentThoughtModel, names: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The matrices of these names, by where they stand. Raises UserError where a name has none."""
    parts = model.decoder.named_modules()
    # Those within layers: the head's weight is read without calling its module.
    linear = {name: part for name, part in parts if isinstance(part, nn.Linear) and "." in name}
    found = {name: part for name, part in linear.items() if name.rpartition(".")[2] in names}
    if missing := set(names) - {name.rpartition(".")[2] for name in found}:
        known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
        raise UserError(f"adaptation: the decoder has no matrix '{sorted(missing)[0]}': choose from {known}")
    if not found:
        raise UserError("adaptation: names no matrices")
    return found


class _Reader:
    """Reads one batch: its additions, and what the optimizer remembers."""

    def __init__(
        self,
        model: LatentThoughtModel,
        targets: dict[str, nn.Linear],
        adaptation: Adaptation,
        batch: Batch,
        seed: int,
    ):
        self.model, self.targets, self.how, self.batch = model, targets, adaptation, batch
        self.thoughts = model.prior().mean.expand(batch.size, -1, -1)  # none
        self.state: State = {}
        for name, part in targets.items():
            noise = Noise(batch.ids, device=batch.device, seed=fold(seed, "low-rank", name))
            shape = torch.Size([batch.size, adaptation.rank, part.in_features])
            drawn = noise.normal(shape, event_dims=2, dtype=part.weight.dtype)
            self.state[f"{name}.A"] = drawn / part.in_features**0.5
            self.state[f"{name}.B"] = drawn.new_zeros(batch.size, part.out_features, adaptation.rank)
        self.memory, self.taken = adaptation.optimizer.init(self.state), 0

    def nats(self, stride: int) -> Tensor:
        """[B] -log p(tokens) in nats, float64 on the CPU: chunk by chunk, each before it is learned from."""
        length, total = self.batch.length, torch.zeros(self.batch.size, dtype=torch.float64)
        steps = self.how.steps * (-(-length // stride) - 1)
        for start in range(0, length, stride):
            end = min(start + stride, length)
            with self._added(self.state):
                total -= self._log_likelihood(start, end).double().cpu()
            if end < length:
                for _ in range(self.how.steps):
                    self._learn(0 if self.how.whole else start, end, steps)
        return total

    def _learn(self, start: int, end: int, steps: int) -> None:
        """One step on the mean nats of the tokens from `start` to `end`, which have been scored."""
        state = {name: value.detach().requires_grad_() for name, value in self.state.items()}
        counted = self.batch.mask[:, start:end].sum(-1).clamp(min=1)
        with torch.enable_grad(), frozen(self.model), self._added(state):
            losses = -self._log_likelihood(start, end) / counted
            grads = torch.autograd.grad(losses.sum(), list(state.values()))
        self.state, self.memory = self.how.optimizer.step(
            self.state,
            dict(zip(state, grads, strict=True)),
            self.memory,
            losses=losses.detach(),
            step=self.taken,
            steps=steps,
        )
        self.taken += 1

    def _log_likelihood(self, start: int, end: int) -> Tensor:
        """[B] of the tokens from `start` to `end`, given those before them; nothing after them is read."""
        read = dataclasses.replace(self.batch.beginning(end), token_slice=slice(start, end) if start else None)
        assert read.targets is not None  # a batch without targets has nothing to score
        return TokenSequence(self.model.decoder, self.thoughts, read).log_prob(read.targets)

    @contextmanager
    def _added(self, state: State) -> Iterator[None]:
        """Within it each of the matrices gives x (W + B A)^T, with the additions of each sequence."""
        hooks = [
            part.register_forward_hook(_adding(state[f"{at}.A"], state[f"{at}.B"])) for at, part in self.targets.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _adding(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that adds x A^T B^T to the output of a matrix, of x [B, T, inputs]."""

    def add(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + inputs[0] @ a.mT @ b.mT

    return add
