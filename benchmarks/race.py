"""Time to the same honest bound: ours against the plain implementation.

    python -m benchmarks --only race --data DIR --out FOLDER [--steps 300] [--seeds 0,1,2]

Sets the default (nano: 4 fast steps), with and without the lever `subsample 4`, against the paper's loop with fresh
noise (16 fast steps): seconds of training until ours is at the bound at which plain ends, judged as in `levers`.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import torch

from benchmarks.levers import ROWS
from benchmarks.levers_training import Learn, Training, configure, judge, learning, level
from benchmarks.plain import Plain
from benchmarks.speed import plain_shape
from examples import algorithm_1
from examples.algorithm_1 import FastLoop
from pyro_ltm.config import Config
from pyro_ltm.data import TokenDataset
from pyro_ltm.inference import build
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.scores import Bound
from pyro_ltm.training.schedule import learning_rate
from pyro_ltm.types import Batch

RACERS = ("default", "subsample 4")
Point = dict[str, Any]


@pyro.validation_enabled(False)  # as in training
def run(folder: Path, steps: int, seed: int) -> dict[str, Any]:
    """Seconds of training until ours are at the bound that plain ends at, all with the same slow optimizer."""
    data, validation = TokenDataset(folder), TokenDataset(folder, "validation")
    config = configure(data, steps, seed, [])
    theirs, _ = build(config)
    plain = Plain(plain_shape(config.model))
    plain.load_state_dict(theirs.decoder.state_dict())
    every = max(1, steps // 12)
    training = Training(config, data, _plain_learning(plain, config))
    runners = {"plain": _curve(training, every, lambda: _judged_plain(theirs, plain, validation))}
    for row in RACERS:
        own = configure(data, steps, seed, ROWS[row])
        ours = build(own)
        training = Training(own, data, learning(ours, own))
        runners[row] = _curve(training, every, functools.partial(judge, ours[0], validation))
    # In turn, a stretch of steps each: the machine is the same for all.
    points = zip(*runners.values(), strict=True)
    curves = dict(zip(runners, map(list, zip(*points, strict=True)), strict=True))
    last = curves["plain"][-1]
    return {
        "steps": steps,
        "seed": seed,
        "goal": last["nats_per_token"],
        "racers": {row: _arrival(curves[row], last) for row in RACERS},
        "curves": curves,
    }


def _curve(training: Training, every: int, score: Callable[[], Bound]) -> Iterator[Point]:
    """Points of a learner's curve, one for each `every` steps."""
    while training.share < 1:
        training.step()
        if training.done % every == 0 or training.share == 1:
            yield {"step": training.done, "seconds": training.seconds, **level(score())}


def _arrival(points: list[Point], last: Point) -> dict[str, float] | None:
    """How much sooner than at plain's `last` point a curve comes to its bound; None: it never does."""
    reached = _reached(points, last["nats_per_token"])
    if reached is None:
        return None
    steps, seconds = reached
    return {
        "steps_to_the_goal": steps,
        "faster_than_plain": last["seconds"] / seconds,
        "faster_a_step": (last["seconds"] / last["step"]) / (seconds / steps),
        "fewer_steps": last["step"] / steps,
    }


def _reached(points: list[Point], goal: float) -> tuple[float, float] | None:
    """Steps and seconds at which a curve comes down to `goal`, on the line between its points."""
    for before, after in itertools.pairwise(points):
        if after["nats_per_token"] <= goal < before["nats_per_token"]:
            share = (before["nats_per_token"] - goal) / (before["nats_per_token"] - after["nats_per_token"])
            step, seconds = (before[key] + share * (after[key] - before[key]) for key in ("step", "seconds"))
            return step, seconds
    return None


def _plain_learning(plain: Plain, config: Config) -> Learn:
    slow, fast = config.slow, FastLoop(fresh=True)
    optimizer = torch.optim.AdamW(plain.parameters(), betas=(slow.beta1, slow.beta2), weight_decay=slow.weight_decay)
    torch.manual_seed(config.seed)

    def learn(batch: Batch, step: int) -> None:
        optimizer.param_groups[0]["lr"] = learning_rate(step, slow)
        algorithm_1.train_step(plain, optimizer, batch.inputs, batch.targets, fast, slow.clip)

    return learn


def _judged_plain(theirs: LatentThoughtModel, plain: Plain, validation: TokenDataset) -> Bound:
    theirs.decoder.load_state_dict(copy.deepcopy(plain.state_dict()))
    return judge(theirs, validation)
