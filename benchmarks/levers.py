"""What each lever does to speed and to the honest bound: at equal slow steps, and at equal time.

    python -m benchmarks --only levers,race --data DIR --out FOLDER [--steps 300] [--seeds 0]

Every row trains the preset nano twice: for so many slow steps, and for as many as fit into the default's time. Each is
judged by the same long fit (64 steps of Adam at 0.1, fresh noise, whole KL, 4 draws) on the same validation sequences.
`race` sets the default (nano: 4 fast steps), with and without the lever `subsample 4`, against the plain
implementation, the paper's loop with fresh noise (16 fast steps): seconds of training until ours is at the bound at
which plain ends, judged the same way.
"""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import torch

from benchmarks.plain import FastLoop, Plain, plain_train_step
from benchmarks.speed import plain_shape
from pyro_ltm.config import Config, apply_settings, preset
from pyro_ltm.data import DataOrder, TokenDataset
from pyro_ltm.evaluation import Bound, difference, evaluate_bound
from pyro_ltm.inference import Adam, fit_posterior
from pyro_ltm.inference.parts import Parts
from pyro_ltm.noise import DrawFrom, fold
from pyro_ltm.training import Run, Trainer, train_step
from pyro_ltm.training.run import dataset_batches
from pyro_ltm.training.step import slow_loss, step_where
from pyro_ltm.training.trainer import learning_rate, slow_optimizer, stage
from pyro_ltm.types import Batch, State

SEQUENCES = 64
ROWS: dict[str, list[str]] = {
    "default": [],
    "2 fast steps": ["fast.steps=2"],
    "16 fast steps": ["fast.steps=16"],
    "subsample 2": ["fast.subsample=2"],
    "subsample 4": ["fast.subsample=4"],
    "16 fast steps, subsample 4": ["fast.steps=16", "fast.subsample=4"],
    "alone 0.5": ["slow.alone=0.5"],
    "alone 0.5, subsample 4": ["slow.alone=0.5", "fast.subsample=4"],
    "compile": ["compile=true"],
    "bfloat16": ["dtype=bfloat16"],
    "natural": ["optimizer.name=natural"],
    "natural, lr 0.7": ["optimizer.name=natural", "optimizer.lr=0.7"],
    "semi-amortized": ["guide.name=semi-amortized"],
    "16 fast steps, early stop": ["fast.steps=16", "fast.tolerance=0.5", "fast.patience=2"],
    "remembered starts": [],
}
REMEMBERED = "remembered starts"
EPOCHS = 3
"""Passes over the text in which starts are remembered, unless more slow steps are asked for."""
RACERS = ("default", "subsample 4")


def configure(data: TokenDataset, steps: int, seed: int, changes: list[str]) -> Config:
    fixed = [f"model.vocab_size={data.vocab_size}", f"slow.steps={steps}", "slow.eval_every=0", f"seed={seed}"]
    return apply_settings(preset("nano"), [*fixed, *changes])


def judge(parts: Parts, validation: TokenDataset) -> Bound:
    """The bound, the same for every row: a long mean-field fit under this row's decoder."""
    judge = Parts.build(configure(validation, 1, 0, []))
    judge.model.load_state_dict(parts.model.state_dict())
    return evaluate_bound(
        judge.model,
        dataset_batches(validation, 64, "cpu", limit=SEQUENCES),
        guide=judge.guide,
        objective=judge.objective.at(1.0),
        optimizer=Adam(lr=0.1),
        fast_steps=64,
        particles=4,
        seed=1,
    )


def level(found: Bound, default: Bound | None = None) -> dict[str, Any]:
    """Nats a token; and how far below the default's, paired by sequence."""
    figures: dict[str, Any] = {"nats_per_token": found.nats_per_token, "stderr": found.nats_per_token_stderr}
    if default is not None:
        gap = difference(default.sequence_nats, found.sequence_nats, found.sequence_tokens)
        figures["below_default"] = {"nats_per_token": gap.nats_per_token, "stderr": gap.stderr}
    return figures


def train(config: Config, train: TokenDataset) -> tuple[Parts, float]:
    """The trained parts, and seconds of training by the trainer's own count."""
    parts = Parts.build(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Run.create(Path(folder), config, parts, train.tokenizer), train, None)
        trainer.fit()
    return parts, trainer.counters.seconds


def train_remembering(config: Config, train: TokenDataset) -> tuple[Parts, float]:
    """As `train`, but a sequence's fit starts where its last one ended; all states are kept in memory."""
    parts = Parts.build(config)
    slow, optimizer = config.slow, slow_optimizer(parts, config.slow)
    order = DataOrder(len(train), slow.batch_size, config.seed)
    kept: dict[int, State] = {}
    learn = _learner(parts, config, optimizer)
    began = time.perf_counter()
    for step in range(slow.steps):
        batch = train.batch(order.indices(step * slow.batch_size))
        alone, share = stage(step, config)
        if alone:
            learn(batch, step)
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, slow)
        objective = parts.objective.at(share)
        posterior = fit_posterior(
            parts.model,
            batch,
            guide=parts.guide,
            objective=objective,
            optimizer=parts.optimizer,
            steps=parts.fast.steps,
            seed=fold(config.seed, "train", step),
            start=_remembered(parts, batch, kept),
        )
        for row, number in enumerate(batch.ids.tolist()):
            kept[number] = {name: value[row] for name, value in posterior.state.items()}
        optimizer.zero_grad(set_to_none=True)
        with DrawFrom(posterior.noise):
            loss, _ = slow_loss(parts.model, batch, posterior, objective)
        (loss / batch.tokens()).backward()
        norm = torch.nn.utils.clip_grad_norm_(parts.model.parameters(), slow.clip)
        step_where(norm.isfinite(), optimizer)
    return parts, time.perf_counter() - began


def _remembered(parts: Parts, batch: Batch, kept: dict[int, State]) -> State:
    start = parts.guide.init(batch)
    rows = [kept.get(number, {}) for number in batch.ids.tolist()]
    return {
        name: torch.stack([old.get(name, new) for old, new in zip(rows, value, strict=True)])
        for name, value in start.items()
    }


def measure(
    row: str,
    data: TokenDataset,
    validation: TokenDataset,
    steps: int,
    seed: int,
    default: tuple[float, Bound] | None,
) -> tuple[dict[str, Any], Bound]:
    """One lever's row, and its bound; `default` is the default's seconds and bound, None for the default itself."""
    learn = train_remembering if row == REMEMBERED else train
    parts, took = learn(configure(data, steps, seed, ROWS[row]), data)
    bound = judge(parts, validation)
    found = {"row": row, "settings": ROWS[row], "seed": seed, "steps": steps, "seconds": took}
    if default is None:
        return found | level(bound), bound
    seconds, its = default
    # What is done once, such as compiling, counts: it is part of a user's time.
    again = max(1, round(steps * seconds / took))
    parts, taken = learn(configure(data, again, seed, ROWS[row]), data)
    equal = {"steps": again, "seconds": taken, **level(judge(parts, validation), its)}
    return found | level(bound, its) | {"equal_time": equal}, bound


@pyro.validation_enabled(False)  # as in training
def run(folder: Path, steps: int, seeds: list[int], rows: list[str] | None = None) -> list[dict[str, Any]]:
    """All levers, the default first: its time is what the others are given, its bound what theirs are set against."""
    data, validation = TokenDataset(folder), TokenDataset(folder, "validation")
    found: list[dict[str, Any]] = []

    def default(steps: int, seed: int) -> tuple[float, Bound]:
        first, bound = measure("default", data, validation, steps, seed, None)
        found.append(first)
        return first["seconds"], bound

    for seed in seeds:
        its = default(steps, seed)
        for row in rows or list(ROWS)[1:]:
            own = steps
            if row == REMEMBERED:  # a start can only be remembered where a sequence comes again
                own = max(steps, EPOCHS * len(data) // configure(data, steps, seed, []).slow.batch_size)
            against = its if own == steps else default(own, seed)
            found.append(measure(row, data, validation, own, seed, against)[0])
            print(row, {key: found[-1][key] for key in ("seconds", "nats_per_token")}, flush=True)
    return found


@pyro.validation_enabled(False)  # as in training
def race(folder: Path, steps: int, seed: int) -> dict[str, Any]:
    """Seconds of training until ours are at the bound that plain ends at, all with the same slow optimizer."""
    data, validation = TokenDataset(folder), TokenDataset(folder, "validation")
    config = configure(data, steps, seed, [])
    theirs = Parts.build(config)
    plain = Plain(plain_shape(config.model))
    plain.load_state_dict(theirs.model.decoder.state_dict())
    curve = functools.partial(_curve, config, data, max(1, steps // 12))
    runners = {"plain": curve(lambda: _judged_plain(theirs, plain, validation), _plain_learner(plain, config))}
    for row in RACERS:
        own = configure(data, steps, seed, ROWS[row])
        parts = Parts.build(own)
        learn = _learner(parts, own, slow_optimizer(parts, own.slow))
        runners[row] = curve(functools.partial(judge, parts, validation), learn)
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


def _arrival(points: list[dict[str, float]], last: dict[str, float]) -> dict[str, float] | None:
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


def _reached(points: list[dict[str, float]], goal: float) -> tuple[float, float] | None:
    """Steps and seconds at which a curve comes down to `goal`, on the line between its points."""
    for before, after in itertools.pairwise(points):
        if after["nats_per_token"] <= goal < before["nats_per_token"]:
            share = (before["nats_per_token"] - goal) / (before["nats_per_token"] - after["nats_per_token"])
            return tuple(before[key] + share * (after[key] - before[key]) for key in ("step", "seconds"))  # type: ignore[return-value]
    return None


def _curve(
    config: Config,
    data: TokenDataset,
    every: int,
    score: Callable[[], Bound],
    learn: Callable[[Batch, int], None],
) -> Iterator[dict[str, float]]:
    """Points of a learner's curve, one for each `every` steps."""
    order, seconds = DataOrder(len(data), config.slow.batch_size, config.seed), 0.0
    for step in range(config.slow.steps):
        began = time.perf_counter()
        learn(data.batch(order.indices(step * config.slow.batch_size)), step)
        seconds += time.perf_counter() - began
        if (step + 1) % every == 0 or step + 1 == config.slow.steps:
            yield {"step": step + 1, "seconds": seconds, **level(score())}


def _plain_learner(plain: Plain, config: Config) -> Callable[[Batch, int], None]:
    slow, fast = config.slow, FastLoop(fresh=True)
    optimizer = torch.optim.AdamW(plain.parameters(), betas=(slow.beta1, slow.beta2), weight_decay=slow.weight_decay)
    torch.manual_seed(config.seed)

    def learn(batch: Batch, step: int) -> None:
        optimizer.param_groups[0]["lr"] = learning_rate(step, slow)
        plain_train_step(plain, optimizer, batch.inputs, batch.targets, fast, slow.clip)

    return learn


def _judged_plain(theirs: Parts, plain: Plain, validation: TokenDataset) -> Bound:
    theirs.model.decoder.load_state_dict(copy.deepcopy(plain.state_dict()))
    return judge(theirs, validation)


def _learner(parts: Parts, config: Config, optimizer: torch.optim.Optimizer) -> Callable[[Batch, int], None]:
    def learn(batch: Batch, step: int) -> None:
        alone, share = stage(step, config)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.slow)
        train_step(
            parts.model,
            [batch],
            guide=parts.guide,
            objective=parts.objective.at(share),
            fast_optimizer=parts.optimizer,
            fast_steps=parts.fast.steps,
            slow_optimizer=optimizer,
            clip=config.slow.clip,
            seed=fold(config.seed, "train", step),
            alone=alone,
            **parts.fitting,
        )

    return learn
