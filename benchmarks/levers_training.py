"""How the rows of `levers` and of `race` are trained, each with its seconds counted, and how all are judged."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch

from pyro_ltm.config import Config, apply_settings
from pyro_ltm.data import DataOrder, TokenDataset
from pyro_ltm.inference import fit_posterior
from pyro_ltm.inference.parts import Parts
from pyro_ltm.noise import DrawFrom, fold
from pyro_ltm.optimizers import Adam
from pyro_ltm.presets import preset
from pyro_ltm.runs.run import dataset_batches
from pyro_ltm.scores import Bound, difference, evaluate_bound
from pyro_ltm.scores.estimate import plain
from pyro_ltm.training import train_step
from pyro_ltm.training.schedule import learning_rate, phase
from pyro_ltm.training.step import slow_loss, step_where
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch, State

SEQUENCES, FAST_STEPS = 64, 64
"""With which all are judged."""
Learn = Callable[[Batch, int], None]
"""One slow step on a batch, and the number of that step."""


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
        fast_steps=FAST_STEPS,
        particles=4,
        seed=1,
    )


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


def warmed(parts: Parts, config: Config, data: TokenDataset, learner: Callable[[Parts, Config], Learn]) -> float:
    """Seconds that go once into the first steps, such as compiling; the parts are afterwards as they were."""
    modules = (parts.model, parts.guide)
    kept = copy.deepcopy([module.state_dict() for module in modules])
    batch, learn = data.batch(range(config.slow.batch_size)), learner(parts, config)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        for step in (0, config.slow.steps - 1):  # alone and with thoughts, where a row has both
            learn(batch, step)
        seconds.append(time.perf_counter() - began)
    for module, state in zip(modules, kept, strict=True):
        module.load_state_dict(state)
    return max(0.0, seconds[0] - seconds[1])


def learning(parts: Parts, config: Config) -> Learn:
    """As `Trainer` does it."""
    optimizer = slow_optimizer(parts, config.slow)

    def learn(batch: Batch, step: int) -> None:
        decoder_only, share = phase(step, config)
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
            decoder_only=decoder_only,
            **parts.fitting,
        )

    return learn


def remembering(parts: Parts, config: Config) -> Learn:
    """As `learning`, but a sequence's fit starts where its last one ended; all states are kept in memory."""
    slow, optimizer = config.slow, slow_optimizer(parts, config.slow)
    kept: dict[int, State] = {}

    def learn(batch: Batch, step: int) -> None:
        _, share = phase(step, config)
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

    return learn


def _remembered(parts: Parts, batch: Batch, kept: dict[int, State]) -> State:
    start = parts.guide.init(batch)
    rows = [kept.get(number, {}) for number in batch.ids.tolist()]
    return {
        name: torch.stack([old.get(name, new) for old, new in zip(rows, value, strict=True)])
        for name, value in start.items()
    }
