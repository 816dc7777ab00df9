"""How the rows of `levers` and of `race` are trained, each with its seconds counted, and how all are judged."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from pyro_ltm.config import Config, apply_settings
from pyro_ltm.data import DataOrder, TokenDataset
from pyro_ltm.inference import FastLoop, build
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import DrawFrom, fold
from pyro_ltm.optimizers import Adam
from pyro_ltm.presets import preset
from pyro_ltm.runs.batches import dataset_batches
from pyro_ltm.scores import Bound, difference, evaluate_bound
from pyro_ltm.scores.estimate import plain
from pyro_ltm.training import train_step
from pyro_ltm.training.schedule import learning_rate, phase
from pyro_ltm.training.step import slow_loss, step_where
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch, State

SEQUENCES, FAST_STEPS = 64, 64
"""With which all are judged."""
Ours = tuple[LatentThoughtModel, FastLoop]
"""A model of ours, and the loop that fits its posteriors."""

Learn = Callable[[Batch, int], None]
"""One slow step on a batch, and the number of that step."""


def configure(data: TokenDataset, steps: int, seed: int, changes: list[str]) -> Config:
    fixed = [f"model.vocab_size={data.vocab_size}", f"slow.steps={steps}", "slow.eval_every=0", f"seed={seed}"]
    return apply_settings(preset("nano"), [*fixed, *changes])


def judge(model: LatentThoughtModel, validation: TokenDataset) -> Bound:
    """The bound, the same for every row: a long mean-field fit under this row's decoder."""
    judge, loop = build(configure(validation, 1, 0, []))
    judge.load_state_dict(model.state_dict())
    loop = dataclasses.replace(loop, optimizer=Adam(lr=0.1), steps=FAST_STEPS, stopping=None)
    batches = dataset_batches(validation, 64, "cpu", limit=SEQUENCES)
    return evaluate_bound(judge, batches, loop, particles=4, seed=1)


def level(found: Bound, default: Bound | None = None) -> dict[str, Any]:
    """Nats a token; and how far below the default's, paired by sequence."""
    figures: dict[str, Any] = {
        "nats_per_token": found.nats_per_token,
        "stderr": found.nats_per_token_stderr,
        "blocks": plain(found.blocks),
    }
    if default is not None:
        gap = difference(default.sequence_nats, found.sequence_nats, found.sequence_tokens, found.places)
        figures["below_default"] = plain(gap)
    return figures


class Training:
    """Slow steps on `data`, one at a time, each with a batch of its own; `seconds` are those of all steps so far."""

    def __init__(self, config: Config, data: TokenDataset, learn: Learn):
        self.data, self.learn, self.steps = data, learn, config.slow.steps
        self.size = config.slow.batch_size
        self.order = DataOrder(len(data), self.size, config.seed)
        self.done, self.seconds = 0, 0.0

    @property
    def share(self) -> float:
        """Of the steps, those done."""
        return self.done / self.steps

    def step(self) -> None:
        began = time.perf_counter()
        self.learn(self.data.batch(self.order.indices(self.done * self.size)), self.done)
        self.seconds += time.perf_counter() - began
        self.done += 1


def together(*trainings: Training) -> None:
    """All to their ends, in turn, at paces with which they end together: each sees the same machine."""
    while (last := min(trainings, key=lambda one: one.share)).share < 1:
        last.step()


def warmed(ours: Ours, config: Config, data: TokenDataset, learner: Callable[[Ours, Config], Learn]) -> float:
    """Seconds that go once into the first steps, such as compiling; the weights are afterwards as they were."""
    modules = (ours[0], ours[1].guide)
    kept = copy.deepcopy([module.state_dict() for module in modules])
    batch, learn = data.batch(range(config.slow.batch_size)), learner(ours, config)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        for step in (0, config.slow.steps - 1):  # alone and with thoughts, where a row has both
            learn(batch, step)
        seconds.append(time.perf_counter() - began)
    for module, state in zip(modules, kept, strict=True):
        module.load_state_dict(state)
    return max(0.0, seconds[0] - seconds[1])


def learning(ours: Ours, config: Config) -> Learn:
    """As `Trainer` does it."""
    model, loop = ours
    optimizer = slow_optimizer(model, loop.guide, config.slow)

    def learn(batch: Batch, step: int) -> None:
        decoder_only, share = phase(step, config)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.slow)
        train_step(
            model,
            [batch],
            dataclasses.replace(loop, objective=loop.objective.at(share)),
            optimizer,
            clip=config.slow.clip,
            seed=fold(config.seed, "train", step),
            decoder_only=decoder_only,
        )

    return learn


def remembering(ours: Ours, config: Config) -> Learn:
    """As `learning`, but a sequence's fit starts where its last one ended; all states are kept in memory."""
    (model, loop), slow = ours, config.slow
    optimizer = slow_optimizer(model, loop.guide, slow)
    kept: dict[int, State] = {}

    def learn(batch: Batch, step: int) -> None:
        _, share = phase(step, config)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, slow)
        fast = dataclasses.replace(loop, objective=loop.objective.at(share))
        start = _remembered(fast.guide.init(batch), batch, kept)
        posterior = fast.fit(model, batch, seed=fold(config.seed, "train", step), start=start)
        for row, number in enumerate(batch.ids.tolist()):
            kept[number] = {name: value[row] for name, value in posterior.state.items()}
        optimizer.zero_grad(set_to_none=True)
        with DrawFrom(posterior.noise):
            loss, _ = slow_loss(model, batch, posterior, fast.objective)
        (loss / batch.tokens()).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), slow.clip)
        step_where(norm.isfinite(), optimizer)

    return learn


def _remembered(start: State, batch: Batch, kept: dict[int, State]) -> State:
    rows = [kept.get(number, {}) for number in batch.ids.tolist()]
    return {
        name: torch.stack([old.get(name, new) for old, new in zip(rows, value, strict=True)])
        for name, value in start.items()
    }
