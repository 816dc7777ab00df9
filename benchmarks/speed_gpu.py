"""A preset of the paper on a GPU: tokens a second and share of peak, against plain under bfloat16 and torch.compile.

    python -m benchmarks --only gpu-small,gpu-medium,gpu-large --device cuda --out FOLDER [--rounds 5]

A micro-batch of the preset's own size and fast steps, all in bfloat16, in turn. The decoder takes a step with each
micro-batch, where training takes one with every 64: the same for all. No figure of this part is committed yet.
"""

from __future__ import annotations

import copy
from typing import Any

import pyro
import torch

from benchmarks.interleave import interleaved, ratio, summary
from benchmarks.plain import FastLoop, Plain, plain_train_step
from benchmarks.roofline import fast_step_products, measure, peak_rates, slow_step_flops
from benchmarks.speed import QUARTER, VOCABULARY, Yard
from benchmarks.tensor import tensor_fit
from pyro_ltm.config import preset
from pyro_ltm.evaluation.memory import peak_memory
from pyro_ltm.training.trainer import slow_optimizer

PRESETS = ("small", "medium", "large")


@pyro.validation_enabled(False)  # as in training
def run(
    name: str, rounds: int = 5, device: str = "cuda", vocabulary: int = VOCABULARY, square: int = 8192
) -> dict[str, Any]:
    """Fast steps and training steps of a preset; `square` is the side of the product that measures the peak."""
    size = preset(name).slow.batch_size
    yard = Yard(name, size, vocabulary, device=device, half=True, settings=["dtype=bfloat16"])
    ours, plain, compiled = yard.parts, yard.plain, copy.deepcopy(yard.plain)
    compiled.compile()
    steps, length = yard.config.fast.steps, yard.config.model.max_length
    fast, inputs, targets = FastLoop(steps=steps), yard.batch.inputs, yard.batch.targets

    def plainly(model: Plain) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1)
        return lambda: plain_train_step(model, optimizer, inputs, targets, fast)

    def learning(parts: Any, subsample: int = 1) -> Any:
        optimizer = slow_optimizer(parts, yard.config.slow)
        return lambda: yard.learn(parts, optimizer, steps, subsample)

    fits = {
        "plain": lambda: fast.fit(plain, inputs, targets),
        "plain, compiled": lambda: fast.fit(compiled, inputs, targets),
        "ours": lambda: yard.fit(steps, parts=ours),
        "ours, compiled": lambda: yard.fit(steps, parts=yard.compiled),
        "quarter": lambda: yard.fit(steps, parts=ours, subsample=QUARTER),
        "tensor": lambda: tensor_fit(ours.model.decoder, yard.batch, steps),
    }
    trainings = {
        "plain": plainly(plain),
        "plain, compiled": plainly(compiled),
        "ours": learning(ours),
        "ours, compiled": learning(yard.compiled),
        "quarter": learning(ours, QUARTER),
    }
    products = fast_step_products(yard.config.model, size, length)
    flops = {"fast": steps * sum(product.flops for product in products)}
    flops["training"] = flops["fast"] + slow_step_flops(yard.config.model, size, length)
    peak = peak_rates(torch.bfloat16, device, square)
    tokens = size * length
    found: dict[str, Any] = {"preset": name, "dtype": "bfloat16", "sequences": size, "tokens": tokens, "peak": peak}
    found |= {"fast_steps": steps, "roofline": measure(products, torch.bfloat16, device=device).seconds}
    for kind, works, per in (("fast", fits, steps), ("training", trainings, 1)):
        seconds = interleaved(works, rounds)
        rates = {work: flops[kind] / summary(taken)["median"] for work, taken in seconds.items()}
        found[kind] = {
            "seconds": {work: summary(taken, per) for work, taken in seconds.items()},
            "faster_than_plain": {work: ratio(seconds["plain"], taken) for work, taken in seconds.items()},
            "faster_than_compiled_plain": {
                work: ratio(seconds["plain, compiled"], taken) for work, taken in seconds.items()
            },
            "tokens_per_second": {work: tokens * per / summary(taken)["median"] for work, taken in seconds.items()},
            # Of what an exact step cannot do without; a step on a quarter of the tokens does less.
            "share_of_peak": {
                work: {of: rate / peak[of] if peak[of] else None for of in peak}
                for work, rate in rates.items()
                if work != "quarter"
            },
        }
    found["peak_bytes"] = {}
    for work, model in (("plain", plain), ("ours", ours.model)):
        model.zero_grad(set_to_none=True)  # so that they are made while we watch
        found["peak_bytes"][work] = peak_memory(trainings[work], device)
    return found
