"""Small trainings by the library, their cost counted, and how all of them are scored: for `claim` and `search`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_ltm.config import Component, Config, apply_settings, dump_toml
from pyro_ltm.data import TokenDataset
from pyro_ltm.inference import FastLoop, build
from pyro_ltm.inference.build import build_guide
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.optimizers import Natural
from pyro_ltm.presets import preset
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.runs import Run
from pyro_ltm.runs.batches import dataset_batches
from pyro_ltm.scores import Bound, evaluate_bound
from pyro_ltm.training import Trainer
from pyro_ltm.training.trainer import Progress

TWIN = ("model.thoughts=0",)
FIT_STEPS, FIT_RATE = 32, 0.3
"""Natural-gradient steps with which every posterior is fitted where it is scored, whatever fitted it in training."""


@dataclass(frozen=True)
class Trained:
    """A run, and what its training cost.

    Attributes:
        run: trained; its folder is gone.
        seconds: of the processor, one thread: all of training but validations.
        best_step: slow step of the weights, where the best at validation were taken; else the last.
        validations: nats a token at each validation, by slow step.
    """

    run: Run
    seconds: float
    best_step: int
    validations: dict[int, float]


def configure(name: str, data: TokenDataset, settings: Sequence[str]) -> Config:
    """The preset `name` for these data, with `settings` in turn."""
    fixed = [
        f"model.vocab_size={data.vocab_size}",
        f"model.max_length={data.sequence_length}",
        "slow.eval_every=0",
        "slow.save_every=1000000",
        "compile=false",
    ]
    return apply_settings(preset(name), [*fixed, *settings])


def train(
    config: Config,
    data: TokenDataset,
    validation: TokenDataset | None = None,
    *,
    weights: str = "last",
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    """A new model trained by `Trainer`, in a folder that vanishes.

    Args:
        validation: looked at as `slow.eval_every` says.
        weights: which are taken: last, best (of the validations) or average, as of `Run.load`.
        watch: called after each slow step and each validation; what it raises ends the training.
    """
    seen: dict[int, float] = {}

    def look(progress: Progress) -> None:
        if progress.validation is not None:
            seen[progress.step] = progress.validation.nats_per_token
        watch(progress)

    config = apply_settings(config, ["slow.keep_best=true"]) if weights == "best" else config
    with tempfile.TemporaryDirectory() as folder:
        model, loop = build(config)
        run = Run.create(Path(folder) / "run", config, model, loop, data.tokenizer)
        trainer = Trainer(run, data, validation, on_progress=look)
        began = time.process_time()
        run = trainer.fit()
        seconds = time.process_time() - began
        run = run if weights == "last" else Run.load(run.folder, weights=weights)
    return Trained(run, seconds, run.step, seen)


def operations(config: Config, data: TokenDataset) -> int:
    """Operations of a whole training, as `count_operations` counts them: all slow steps, their fast loops included.

    One slow step with thoughts and one without are counted on the first sequences; each costs the same all along.
    """
    alone, of_a_twin = config.decoder_warmup_steps, _of_a_step(apply_settings(config, TWIN), data)
    whole = _of_a_step(config, data) if config.model.thoughts else of_a_twin
    return alone * of_a_twin + (config.slow.steps - alone) * whole


_counted: dict[tuple[str, str], int] = {}


def _of_a_step(config: Config, data: TokenDataset) -> int:
    """Of one slow step: what a training of three costs more than one of two, for both do the rest once."""

    def of(steps: int) -> int:
        few = ["seed=0", f"slow.steps={steps}", "slow.decoder_warmup=0", "slow.warmup=0", "slow.eval_every=0"]
        return count_operations(lambda: train(apply_settings(config, few), data))

    key = str(data.folder.path), dump_toml(apply_settings(config, ["seed=0", "slow.steps=1", "slow.eval_every=0"]))
    if key not in _counted:
        _counted[key] = of(3) - of(2)
    return _counted[key]


def judge(run: Run, data: TokenDataset, sequences: int, *, particles: int, batch_size: int = 16) -> Bound:
    """The bound by a mean-field posterior and `FIT_STEPS` natural-gradient steps; of a twin the exact figure."""
    batches = dataset_batches(data, batch_size, run.device, limit=sequences)
    particles = particles if run.config.model.thoughts else 1
    return evaluate_bound(run.model, batches, scoring_loop(run), particles=particles, seed=1)


def scoring_loop(run: Run) -> FastLoop:
    """Fits every posterior that is scored: the same for all, so that a figure tells of the decoder."""
    guide = build_guide(Component(name="mean-field"), run.config.model)
    steps = FIT_STEPS if run.config.model.thoughts else 0
    return FastLoop(guide, AnalyticELBO(), Natural(lr=FIT_RATE), steps=steps)
