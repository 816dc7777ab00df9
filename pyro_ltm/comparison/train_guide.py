"""Training of a guide's shared parameters (an encoder, a flow) under a decoder that does not move."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro
import torch
from torch import nn

from pyro_ltm.comparison.pair_score import Progress
from pyro_ltm.distributed import World, failing_together, team
from pyro_ltm.guides import Guide
from pyro_ltm.inference import FastLoop
from pyro_ltm.noise import DrawFrom, fold
from pyro_ltm.optimizers import schedule
from pyro_ltm.training.step import guide_loss
from pyro_ltm.types import Batch, evaluating, frozen

CLIP = 1.0
"""Largest norm of a gradient."""


@dataclass(frozen=True)
class GuideTraining:
    """How guides with shared parameters are trained before they are scored.

    Args:
        batch: the sequences of a slow step, by its number. steps: slow steps. lr: first learning rate of Adam.
        described: of which text, for the record; equal texts have equal ones.
    """

    batch: Callable[[int], Batch]
    steps: int = 200
    lr: float = 1e-3
    described: str = ""


def is_trainable(guide: Guide) -> bool:
    """Whether any of its shared parameters asks for a gradient."""
    return any(parameter.requires_grad for parameter in guide.parameters())


def train_guide(
    model: nn.Module,
    loop: FastLoop,
    training: GuideTraining,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    on_pace: Callable[[float], None] | None = None,
) -> float:
    """Moves the shared parameters of the loop's guide by slow steps on its objective; gives the seconds that it took.

    As `training.train_step` moves them, but the decoder is neither moved nor given a gradient. Where several processes
    share it (`distributed.sharing`), each takes its part of a step's sequences, and all move alike.

    Args:
        on_pace: called after the second step with the seconds that all take at its pace.
    """
    parameters = [parameter for parameter in loop.guide.parameters() if parameter.requires_grad]
    slow = torch.optim.Adam(parameters, lr=training.lr)
    began, seen = time.perf_counter(), 0
    last = began
    with evaluating(model), pyro.validation_enabled(False), frozen(model), torch.enable_grad():
        for step in range(training.steps):
            for group in slow.param_groups:
                group["lr"] = training.lr * schedule("cosine", step, training.steps, 0.1)
            batch = training.batch(step)
            slow.zero_grad(set_to_none=True)
            with failing_together():
                _backward(model, loop, batch, seed=fold(seed, "teach", step))
                team().gather(())
            _add_up(parameters, team())
            if any(parameter.grad is not None for parameter in parameters):
                norm = nn.utils.clip_grad_norm_(parameters, CLIP)
                if bool(torch.isfinite(norm)):
                    slow.step()
            if on_pace and step == 1:
                on_pace((time.perf_counter() - last) * training.steps)
            last = time.perf_counter()
            seen += batch.size
            if progress:
                progress(seen, math.nan)  # what the objective is worth is not for it to say
    slow.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def _backward(model: nn.Module, loop: FastLoop, batch: Batch, *, seed: int) -> None:
    """Gradient of the loss a token of the batch, over the sequences of it that are this process's.

    All are, where the objective compares them.
    """
    shared = team()
    whole = loop.objective.couples_batch
    mine = batch if whole else batch.select(torch.arange(batch.size)[shared.rank :: shared.size])
    if not mine.size:
        return
    posterior = loop.fit(model, mine, seed=seed, keep_graph=loop.guide.keeps_graph)
    with DrawFrom(posterior.noise):
        loss = guide_loss(model, mine, posterior, loop.objective)
    if loss.requires_grad:
        (loss / batch.tokens() / (shared.size if whole else 1)).backward()


def _add_up(parameters: Sequence[nn.Parameter], shared: World) -> None:
    """Makes each gradient the sum over processes: the same in all."""
    if shared.size == 1:
        return
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = shared.sum(gradient)
