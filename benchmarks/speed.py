"""How much faster than the obvious way: fast step, training step, generation, memory; the Pyro layer; the roofline.

    python -m benchmarks --only speed,float32,nano --out FOLDER [--preset medium] [--rounds 5] [--device cuda]

All figures of a preset come from runs in turn in one process (`interleave`); ratios are medians over rounds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch

from benchmarks.interleave import interleaved, ratio, summary
from benchmarks.plain import Plain, Shape
from benchmarks.roofline import Roofline, fast_step_products, measure
from benchmarks.tensor import tensor_fit
from examples import algorithm_1
from examples.algorithm_1 import FastLoop
from pyro_ltm import inference
from pyro_ltm.config import ModelConfig, apply_settings
from pyro_ltm.inference import build
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.model.precision import DTYPES, resolve_dtype
from pyro_ltm.model.sampling import sample_tokens
from pyro_ltm.presets import preset
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.training import train_step
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch

QUARTER = 4
VOCABULARY, FAST_STEPS = 50257, 16
"""Of the paper's presets, up to medium. So many fast steps are timed at once: some of a fit's work is done once."""


def plain_shape(model: ModelConfig) -> Shape:
    """The same decoder."""
    names = ("vocab_size", "dim", "layers", "heads", "thoughts", "max_length", "window", "hidden")
    more = ("embedding_scale", "init_std")
    return Shape(**{name: getattr(model, name) for name in (*names, *more)}, theta=model.rope_theta, eps=model.norm_eps)


class Ours(NamedTuple):
    """A model of ours, and the loop that fits its posteriors."""

    model: LatentThoughtModel
    loop: inference.FastLoop


class Yard:
    """One preset's model (ours in each precision, and compiled; plain), and a batch of random tokens.

    `ours` is as a user has it: in the precision that the preset settles on, on this device, or in `dtype` and
    then in no other. Plain is in single precision, unless `half` asks for autocast.
    """

    def __init__(
        self,
        name: str,
        size: int,
        vocabulary: int = VOCABULARY,
        seed: int = 0,
        device: torch.device | str = "cpu",
        half: bool = False,
        settings: Sequence[str] = (),
        dtype: str | None = None,
    ):
        torch.manual_seed(seed)
        self.device = torch.device(device)
        asked = [f"dtype={dtype}"] if dtype else []
        chosen = apply_settings(preset(name), [f"model.vocab_size={vocabulary}", *asked, *settings])
        self.config = resolve_dtype(chosen, device)
        self.precisions = {one: self._built(f"dtype={one}") for one in ([dtype] if dtype else DTYPES)}
        self.ours = self.precisions[self.config.dtype]
        self.compiled = self._built("compile=true")
        self.plain = Plain(plain_shape(self.config.model), half).to(device)
        self.plain.turns = self.plain.turns.to(device)
        self.plain.load_state_dict(self.ours.model.decoder.state_dict())
        length = self.config.model.max_length
        self.batch = Batch.from_tokens(torch.randint(vocabulary, (size, length + 1))).to(device)
        self.optimizer = slow_optimizer(self.ours.model, self.ours.loop.guide, self.config.slow)
        self.plain_optimizer = torch.optim.AdamW(self.plain.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def _built(self, setting: str) -> Ours:
        model, loop = build(apply_settings(self.config, [setting]), device=self.device)
        return Ours(model, loop.for_scores())

    def fit(self, steps: int, *, ours: Ours | None = None, subsample: int = 1) -> None:
        model, loop = ours or self.ours
        dataclasses.replace(loop, steps=steps, subsample=subsample).fit(model, self.batch)

    def plain_fit(self, steps: int) -> None:
        FastLoop(steps=steps).fit(self.plain, self.batch.inputs, self.batch.targets)

    def step(self, steps: int, subsample: int = 1) -> None:
        self.learn(self.ours, self.optimizer, steps, subsample)

    def learn(self, ours: Ours, optimizer: torch.optim.Optimizer, steps: int, subsample: int = 1) -> None:
        loop = dataclasses.replace(ours.loop, steps=steps, subsample=subsample)
        train_step(ours.model, [self.batch], loop, optimizer, clip=1.0, seed=0)

    def plain_step(self, steps: int) -> None:
        fast = FastLoop(steps=steps)
        algorithm_1.train_step(self.plain, self.plain_optimizer, self.batch.inputs, self.batch.targets, fast)


def fast_steps(yard: Yard, rounds: int, steps: int) -> dict[str, Any]:
    """One fast step: plain, ours, on a quarter of the tokens, in the other precision, without Pyro; their rooflines."""
    decoder = yard.ours.model.decoder
    others = [dtype for dtype in yard.precisions if dtype != yard.config.dtype]
    works = {
        "plain": lambda: yard.plain_fit(steps),
        "ours": lambda: yard.fit(steps),
        "tensor": lambda: tensor_fit(decoder, yard.batch, steps),
        "quarter": lambda: yard.fit(steps, subsample=QUARTER),
        "compiled": lambda: yard.fit(steps, ours=yard.compiled),
    }
    for other in others:
        for name, every in ((other, 1), (f"{other}, quarter", QUARTER)):
            works[name] = functools.partial(yard.fit, steps, ours=yard.precisions[other], subsample=every)
    compared = list(works)
    model, (size, length) = yard.config.model, yard.batch.inputs.shape
    # Whose roofline: the precision, and of how many stretches a step scores one.
    limited = {
        "ours": (yard.config.dtype, 1),
        "quarter": (yard.config.dtype, QUARTER),
    }
    for other in others:
        limited |= {other: (other, 1), f"{other}, quarter": (other, QUARTER)}
    measured: dict[str, list[Roofline]] = {name: [] for name in limited}
    # Measured within the rounds, too: its seconds are its own, not those of the round.
    for name, (dtype, every) in limited.items():
        products = fast_step_products(model, size, length, every)
        works[f"roofline {name}"] = lambda kept=measured[name], products=products, dtype=dtype: kept.append(
            measure(products, DTYPES[dtype], device=yard.device)
        )
    seconds = interleaved(works, rounds)
    floors = {}
    for name, kept in measured.items():
        dtype, every = limited[name]
        floor = [one.seconds * steps / every for one in kept[-rounds:]]
        floors[name] = {
            "dtype": dtype,
            "seconds": summary(floor, steps),
            "gflops": kept[0].flops / every / 1e9,
            "share_of_it": ratio(floor, seconds[name]),
            "ceiling": ratio(seconds["plain"], floor),
        }
    return {
        "dtype": yard.config.dtype,
        "sequences": size,
        "tokens": size * length,
        "steps_in_a_round": steps,
        "seconds": {name: summary(seconds[name], steps) for name in compared},
        "faster_than_plain": {name: ratio(seconds["plain"], seconds[name]) for name in compared},
        "time_of_tensor": ratio(seconds["ours"], seconds["tensor"]),
        "roofline": floors,
    }


def training_steps(yard: Yard, rounds: int, steps: int) -> dict[str, Any]:
    """A whole training step with so many fast steps, and its peak memory."""
    works = {
        "plain": lambda: yard.plain_step(steps),
        "ours": lambda: yard.step(steps),
        "quarter": lambda: yard.step(steps, QUARTER),
    }
    seconds = interleaved(works, rounds, warm=0)
    peaks = {
        "plain": _peak(yard, yard.plain_optimizer, lambda: yard.plain_step(2)),
        "ours, 2 fast steps": _peak(yard, yard.optimizer, lambda: yard.step(2)),
        "ours, 8 fast steps": _peak(yard, yard.optimizer, lambda: yard.step(8)),
    }
    yard.ours.model.decoder.recompute = True
    peaks["recompute"] = _peak(yard, yard.optimizer, lambda: yard.step(2))
    yard.ours.model.decoder.recompute = False
    return {
        "fast_steps": steps,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "faster_than_plain": {name: ratio(seconds["plain"], values) for name, values in seconds.items()},
        "parameters": sum(weight.numel() for weight in yard.plain.parameters()),
        "peak_bytes": peaks,
        "peak_of_plain": {name: peaks[name] / peaks["plain"] for name in ("ours, 2 fast steps", "recompute")},
    }


def _peak(yard: Yard, optimizer: torch.optim.Optimizer, work: Callable[[], Any]) -> int | None:
    """Bytes at the peak of a step, gradients included, beyond the weights and what the optimizer keeps.

    It begins without gradients: what was made before, nobody sees freed.
    """
    optimizer.zero_grad(set_to_none=True)
    return peak_memory(work, yard.device)


def generation(yard: Yard, size: int = 8, new: int = 512, lengths: int = 8) -> dict[str, Any]:
    """`new` tokens for `size` sequences: ours as a user has it; plain read again at some lengths and summed up."""
    model = yard.config.model
    new = min(new, model.max_length - 1)
    thoughts = torch.randn(size, model.thoughts, model.thought_width, device=yard.device)
    prompt = torch.randint(model.vocab_size, (size, 1), device=yard.device)
    # The time of one plain token is smooth in the length read: midpoints of equal stretches, times their size.
    middles = [int(new * (index + 0.5) / lengths) + 1 for index in range(lengths)]
    text = torch.randint(model.vocab_size, (size, new + 1), device=yard.device)
    works: dict[str, Callable[[], Any]] = {
        "ours": lambda: sample_tokens(yard.ours.model.decoder, thoughts, prompt, new)
    }
    for length in middles:
        works[str(length)] = lambda length=length: _plain_token(yard.plain, thoughts, text[:, :length])
    seconds = interleaved(works, 3)
    ours = seconds.pop("ours")
    plain = [sum(taken) * new / lengths for taken in zip(*seconds.values(), strict=True)]
    return {
        "sequences": size,
        "new_tokens": new,
        "seconds": {"ours": summary(ours), "plain": summary(plain)},
        "plain_is_summed_from_lengths": middles,
        "faster_than_plain": ratio(plain, ours),
        "tokens_per_second": size * new / summary(ours)["median"],
    }


@torch.no_grad()
def _plain_token(plain: Plain, thoughts: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(plain(text, thoughts, last=True)[:, -1].softmax(-1), 1)


@pyro.validation_enabled(False)  # as in training
def run(name: str = "medium", rounds: int = 5, device: str = "cpu", dtype: str | None = None) -> dict[str, Any]:
    """All of the above for a preset, in the precision that it settles on and in others, or in `dtype` alone."""
    small = name == "nano"
    yard = Yard(name, size=16 if small else 1, vocabulary=1024 if small else VOCABULARY, device=device, dtype=dtype)
    return {
        "preset": name,
        "fast_step": fast_steps(yard, rounds, FAST_STEPS),
        "training_step": training_steps(yard, max(3, rounds // 2), FAST_STEPS),
        "generation": generation(yard),
    }
