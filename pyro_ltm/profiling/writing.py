"""Cost of a written token: seconds and operations, fits of its thoughts and texts that were not kept included."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pyro_ltm.inference import Generated
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.runs import Run


@dataclass(frozen=True)
class WritingCost:
    """The cost of the texts of one call.

    Attributes:
        tokens: in the texts that are left, the ends that the model wrote among them.
        seconds_per_token: of the wall clock, over all texts.
        operations_per_token: see `count_operations`; of the first texts, as many as go together, which were written
            once more to be counted. None: not asked for.
    """

    tokens: int
    seconds_per_token: float
    operations_per_token: float | None = None


def measured(run: Run, *, count: bool = False, **how: Any) -> tuple[list[Generated], WritingCost]:
    """The texts of `Run.generate`, and their cost; with `count` also in operations."""
    began = time.perf_counter()
    texts = run.generate(**how)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    tokens = max(_emitted(texts), 1)
    cost = WritingCost(_emitted(texts), (time.perf_counter() - began) / tokens)
    if count:
        cost = dataclasses.replace(cost, operations_per_token=_operations(run, **how))
    return texts, cost


def _operations(run: Run, *, prompts: Sequence[str] | None = None, **how: Any) -> float:
    """Operations a token of the first texts, which are written again: to count while time is taken would take some."""
    # A recorded fit would hide its operations.
    plain = dataclasses.replace(run, loop=dataclasses.replace(run.loop, recorder=None))
    if prompts is not None:
        prompts = prompts[: max(1, how.get("batch_size", 32) // how.get("num", 1))]
    how |= {"progress": None}
    again: list[Generated] = []
    operations = count_operations(lambda: again.extend(plain.generate(prompts=prompts, **how)))
    return operations / max(_emitted(again), 1)


def _emitted(texts: Sequence[Generated]) -> int:
    return sum(one.tokens + one.ended for one in texts)
