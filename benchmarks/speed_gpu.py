"""A preset of the paper on a GPU: tokens a second and share of peak, against plain under bfloat16 and torch.compile.

    python -m benchmarks --only gpu-small,gpu-medium,gpu-large --device cuda --out FOLDER [--rounds 5]

A micro-batch of the preset's own size, all in bfloat16, in turn: up to 16 fast steps, and training steps with as many
as the preset has. The decoder takes a step with each micro-batch, where training takes one with every 64: the same for
all. Ours records the fast loop, unless its row says otherwise.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import torch

from benchmarks.interleave import interleaved, ratio, summary
from benchmarks.plain import Plain
from benchmarks.roofline import fast_step_products, measure, peak_rates, slow_step_flops
from benchmarks.speed import FAST_STEPS, QUARTER, VOCABULARY, Yard
from examples import algorithm_1
from examples.algorithm_1 import FastLoop
from pyro_ltm.model.kernels.head import STEP
from pyro_ltm.presets import preset
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.training.trainer import slow_optimizer

PRESETS = ("small", "medium", "large")


@pyro.validation_enabled(False)  # as in training
def run(
    name: str, rounds: int = 5, device: str = "cuda", vocabulary: int = VOCABULARY, square: int = 8192
) -> dict[str, Any]:
    """Fast steps and training steps of a preset; `square` is the side of the product that measures the peak."""
    size = preset(name).slow.batch_size
    yard = Yard(name, size, vocabulary, device=device, half=True, settings=["dtype=bfloat16"])
    ours, plain, compiled = yard.ours, yard.plain, copy.deepcopy(yard.plain)
    compiled.compile()
    for one in (ours, yard.compiled):
        one.model.train()
    bare = ours._replace(loop=dataclasses.replace(ours.loop, recorder=None))
    training_steps, length = yard.config.fast.steps, yard.config.model.max_length
    steps = min(training_steps, FAST_STEPS)
    fast, inputs, targets = FastLoop(steps=steps), yard.batch.inputs, yard.batch.targets

    def plainly(model: Plain) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1)
        loop = FastLoop(steps=training_steps)
        return lambda: algorithm_1.train_step(model, optimizer, inputs, targets, loop)

    def learning(one: Any) -> Any:
        optimizer = slow_optimizer(one.model, one.loop.guide, yard.config.slow)
        return lambda: yard.learn(one, optimizer, training_steps)

    fits = {
        "plain": lambda: fast.fit(plain, inputs, targets),
        "plain, compiled": lambda: fast.fit(compiled, inputs, targets),
        "ours": lambda: yard.fit(steps, ours=ours),
        "ours, compiled": lambda: yard.fit(steps, ours=yard.compiled),
        "ours, not recorded": lambda: yard.fit(steps, ours=bare),
        "quarter": lambda: yard.fit(steps, ours=ours, subsample=QUARTER),
    }
    trainings = {
        "plain": plainly(plain),
        "plain, compiled": plainly(compiled),
        "ours": learning(ours),
        "ours, compiled": learning(yard.compiled),
    }
    step = sum(product.flops for product in fast_step_products(yard.config.model, size, length))
    flops = {
        "fast": steps * step,
        "training": training_steps * step + slow_step_flops(yard.config.model, size, length),
    }
    # At the shapes that ours runs: an odd vocabulary would make a slow roofline.
    even = dataclasses.replace(yard.config.model, vocab_size=-(-vocabulary // STEP) * STEP)
    products = fast_step_products(even, size, length)
    peak = peak_rates(torch.bfloat16, device, square)
    tokens = size * length
    found: dict[str, Any] = {"preset": name, "dtype": "bfloat16", "sequences": size, "tokens": tokens, "peak": peak}
    found |= {"fast_steps": training_steps, "roofline": measure(products, torch.bfloat16, device=device).seconds}
    for kind, works, per in (("fast", fits, steps), ("training", trainings, 1)):
        seconds = interleaved(works, rounds, warm=2)  # the second time records
        found[kind] = _figures(seconds, per, tokens=tokens, flops=flops[kind], peak=peak)
    found["peak_bytes"] = {}
    models = {"plain": plain, "ours": ours.model, "ours, compiled": yard.compiled.model}
    for one in (ours, yard.compiled):
        if one.loop.recorder:
            one.loop.recorder.forget()
    for work, model in models.items():
        model.zero_grad(set_to_none=True)  # so that they are made while we watch, and recordings, too
        found["peak_bytes"][work] = peak_memory(partial(_twice, trainings[work]), device, reserved=True)
    return found


def _figures(
    seconds: Mapping[str, Any], per: int, *, tokens: int, flops: float, peak: Mapping[str, Any]
) -> dict[str, Any]:
    """Figures of the `seconds` of each work, `per` steps in each."""
    medians = {work: summary(taken)["median"] for work, taken in seconds.items()}
    return {
        "seconds": {work: summary(taken, per) for work, taken in seconds.items()},
        "faster_than_plain": {work: ratio(seconds["plain"], taken) for work, taken in seconds.items()},
        "faster_than_compiled_plain": {
            work: ratio(seconds["plain, compiled"], taken) for work, taken in seconds.items()
        },
        "tokens_per_second": {work: tokens * per / median for work, median in medians.items()},
        # Of what an exact step cannot do without; a step on a quarter of the tokens does less.
        "share_of_peak": {
            work: {of: flops / median / peak[of] if peak[of] else None for of in peak}
            for work, median in medians.items()
            if work != "quarter"
        },
    }


def _twice(work: Callable[[], Any]) -> None:
    for _ in range(2):
        work()
