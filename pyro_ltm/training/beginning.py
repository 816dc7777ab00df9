"""How a training begins in each of several processes: the first sees to the run folder, the others open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyro_ltm.config import Config, DistributedConfig
from pyro_ltm.data import TokenDataset
from pyro_ltm.distributed import current
from pyro_ltm.inference.build import build
from pyro_ltm.inference.parts import with_known
from pyro_ltm.runs.base import load_config
from pyro_ltm.runs.data import open_data
from pyro_ltm.runs.folder import MODEL, load_weights, read_tensors
from pyro_ltm.runs.provenance import WeightsMeta
from pyro_ltm.runs.run import Run
from pyro_ltm.training.trainer import Progress, Trainer


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The first things to do, the same in all processes, as the leader has found them right.

    Attributes:
        going_on: the run was there, and goes on. trained: it has a checkpoint to go on from.
        has_origin: it begins with another run's weights, and saves them.
        distributed: how the processes share it.
        extension: arguments of `Trainer.extend`; empty: its plan stays.
    """

    going_on: bool
    trained: bool
    has_origin: bool
    distributed: DistributedConfig
    extension: dict[str, int] = field(default_factory=dict)

    def trainer(
        self,
        run: Run,
        data: TokenDataset,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_interrupt: Callable[[], None] = lambda: None,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> Trainer:
        """The trainer of `run`, about to take its first step."""
        validation = TokenDataset(data.folder, "validation") if "validation" in data.folder.splits else None
        trainer = Trainer(run, data, validation, on_progress, on_interrupt, on_note)
        if self.going_on:
            trainer.resume()
        if self.has_origin:
            trainer.save()
        if self.extension:
            trainer.extend(**self.extension)
        return trainer


def follow(out: Path, known: Config, device: str) -> Run:
    """Trains the run in `out` along with the first process, once that has begun it.

    Args:
        known: as in `Run.load`.
    """
    beginning: Any = current().tell(None)
    config = replace(with_known(load_config(out), known), distributed=beginning.distributed)
    model, loop = build(config, device=device)
    data = open_data(out, "train")
    data.folder.trust()
    run = Run(out, config, model, loop, data.tokenizer, 0)
    if not beginning.trained:
        load_weights(run.trainable, read_tensors(out / MODEL, WeightsMeta)[0], out / MODEL)
    return beginning.trainer(run, data).fit()
