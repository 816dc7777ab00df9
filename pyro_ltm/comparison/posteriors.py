"""Guides and objectives compared under one decoder, each pair by the same honest figures.

Takes objects, so that a guide or an objective of anyone's own is compared without a change in the library.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import nn

from pyro_ltm.comparison.loop import Plan, Report, attempt, find_refusals, run_plan
from pyro_ltm.comparison.named import NamedGuides, Parts, guides_for, objectives_for
from pyro_ltm.comparison.pair_score import PairScoring, own_part, score_pair
from pyro_ltm.comparison.result import Comparison, Key, PairScore
from pyro_ltm.comparison.together import by_all, first_locks_out
from pyro_ltm.comparison.train_guide import GuideTraining, is_trainable, train_guide
from pyro_ltm.data import DataOrder, TokenDataset
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference import FastLoop, Plateau
from pyro_ltm.inference.compatibility import check_prior
from pyro_ltm.noise import fold
from pyro_ltm.objectives import Objective, PyroObjective, as_objective
from pyro_ltm.optimizers import Adam, FastOptimizer
from pyro_ltm.runs.batches import dataset_batches
from pyro_ltm.runs.folder import fingerprint
from pyro_ltm.runs.run import Run
from pyro_ltm.scores.convergence import array_stats
from pyro_ltm.types import Batch


@by_all
@first_locks_out
def compare_posteriors(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    guides: Mapping[str, Guide] | NamedGuides,
    objectives: Mapping[str, ELBO],
    optimizer: FastOptimizer | None = None,
    fast_steps: Sequence[int] = (16,),
    guide_training: GuideTraining | None = None,
    out: Path | str | None = None,
    about: Mapping[str, Any] | None = None,
    report: Report | None = None,
    on_guide_training: Callable[[int, int, float], None] | None = None,
    **options: Any,
) -> Comparison:
    """Fits every guide by every objective under a trained decoder, and scores them all alike.

    Of several processes (`torchrun`) each calls it with the same arguments. They share the sequences of each pair and
    of each slow step of a guide, and all have the result; the first writes.

    Args:
        model: a Pyro program with the sites `thoughts` and `tokens`; it is not changed.
        batches: the sequences, on the model's device; each pair sees all of them.
        guides, objectives: by the names to show. Guides are not changed: those with shared parameters are copied.
        fast_steps: one or several numbers of fast steps, each scored by itself.
        guide_training: how the shared parameters of guides are trained first; None takes them as they are.
        out: a folder in which each pair is saved once it is scored; pairs found there are not scored again.
        on_guide_training: called as the first guide learns, with the pairs whose guides do, their steps, and about how
            many seconds all of them take.
        about: for people: what was run.
        options: what is in `PairScoring` (`particles`, `curve_particles`, `rhat`, `seed`); and `noise`, `tolerance` and
            `patience` of every fit.

    Raises:
        UserError: no pair fits, nothing to score, `rhat` of guides without chains, or `out` holds a comparison with
            other settings.
    """
    named = guides if isinstance(guides, NamedGuides) else NamedGuides(dict(guides))
    if not batches or not objectives or not fast_steps or not named.names:
        raise UserError("nothing to compare: give sequences, guides, objectives and fast steps")
    names = [entry.name for entry in dataclasses.fields(PairScoring) if entry.name in options]
    scoring = PairScoring(**{name: options.pop(name) for name in names})
    if scoring.rhat and not any(guide.has_chains for guide in named.guides.values()):
        raise UserError("rhat: none of these guides draws chains: name one that does, such as hmc or mala")
    if scoring.rhat:
        array_stats()  # or it is not installed
    fits = _Fits(
        model,
        batches,
        named,
        {name: as_objective(one).at(1.0) for name, one in objectives.items()},
        {"optimizer": optimizer or Adam(), **options},
        scoring,
        guide_training,
        report,
        on_guide_training,
    )
    return run_plan(fits.plan(fast_steps), batches, fits.score, out=Path(out) if out is not None else None, about=about)


@dataclass(frozen=True)
class _Fits:
    """Fits of all pairs under one decoder, and their scores."""

    model: nn.Module
    batches: Sequence[Batch]
    guides: NamedGuides
    objectives: Mapping[str, Objective]
    shared: Mapping[str, Any]
    scoring: PairScoring
    guide_training: GuideTraining | None
    report: Report | None
    on_guide_training: Callable[[int, int, float], None] | None = None

    def plan(self, fast_steps: Sequence[int]) -> Plan:
        """The pairs, and all that their figures depend on."""
        return Plan(
            kind="posteriors",
            settings=self._settings(),
            definitions={
                "guides": {name: describe(one) for name, one in self.guides.guides.items()},
                "objectives": {name: describe(one) for name, one in self.objectives.items()},
            },
            refusals=find_refusals(self.guides.names, list(self.objectives), self._refusal),
            fast_steps=fast_steps,
        )

    def _settings(self) -> dict[str, Any]:
        training, fitting = self.guide_training, dict(self.shared)
        return {
            "sequences": sum(batch.size for batch in self.batches),
            "batch_size": self.batches[0].size,
            "model": fingerprint(self.model),
            "data": data_fingerprint(self.batches),
            **{name: getattr(self.scoring, name) for name in ("particles", "curve_particles", "seed")},
            "optimizer": describe(fitting.pop("optimizer")),
            "fitting": fitting,
            "device": str(self.batches[0].inputs.device.type),
            "dtype": str(getattr(getattr(self.model, "decoder", None), "compute_dtype", None)),
            "guide_training": training and {key: getattr(training, key) for key in ("steps", "lr", "described")},
        }

    def _refusal(self, guide: str, objective: str) -> str:
        """Why a pair cannot be fitted; empty where it can."""
        if guide in self.guides.missing:
            return self.guides.missing[guide]
        family = self.guides.guides[guide]
        if reason := self.objectives[objective].refusal(family):
            return reason
        try:
            check_prior(getattr(self.model, "prior", None), family, self.objectives[objective])
            self._loop(family, objective)
        except UserError as error:
            return str(error)
        return ""

    def _loop(self, guide: Guide, objective: str, steps: int = 0) -> FastLoop:
        """The fast loop of a pair. Raises UserError where it cannot be fitted."""
        shared = dict(self.shared)
        stopping = Plateau.of(shared.pop("tolerance", 0.0), shared.pop("patience", 4))
        return FastLoop(guide, self.objectives[objective], steps=steps, stopping=stopping, **shared)

    def score(self, key: Key, place: str) -> PairScore:
        """The score of a pair; `place` is its place among the others, such as `2/6`."""
        label = f"{key[0]} × {key[1]}, {key[2]} steps ({place})"
        return attempt(partial(self._score, key, label), key).with_note(self.guides.notes.get(key[0], ""))

    def _score(self, key: Key, label: str) -> PairScore:
        """Trains a copy of the guide where it has something to learn, then fits and scores."""
        loop, seconds = self._loop(self.guides.guides[key[0]], *key[1:]), None
        if is_trainable(loop.guide):
            loop = dataclasses.replace(loop, guide=copy.deepcopy(loop.guide))
            if self.guide_training and self.guide_training.steps:
                progress = self.report(f"train the guide of {label}", None) if self.report else None
                seed = fold(self.scoring.seed, "teach")
                pace = self._on_pace(key, self.guide_training.steps)
                seconds = train_guide(self.model, loop, self.guide_training, seed=seed, progress=progress, on_pace=pace)
        progress = self.report(label, sum(batch.size for batch in own_part(self.batches))) if self.report else None
        found = score_pair(self.model, self.batches, loop, self.scoring, progress=progress)
        return dataclasses.replace(found, guide_training_seconds=seconds)

    def _on_pace(self, key: Key, steps: int) -> Callable[[float], None] | None:
        """Tells of the training of guides, as the first pair that has any begins it; None for the others."""
        learn = [
            (guide, objective)
            for guide, family in self.guides.guides.items()
            for objective in self.objectives
            if is_trainable(family) and not self._refusal(guide, objective)
        ]
        tell = self.on_guide_training
        if tell is None or key[:2] != learn[0]:
            return None
        return lambda seconds: tell(len(learn), steps, seconds * len(learn))


def compare_run(
    run: Run,
    data: TokenDataset | None = None,
    *,
    guides: Parts,
    objectives: Parts,
    fast_steps: Sequence[int] | None = None,
    sequences: int | None = 64,
    batch_size: int = 32,
    guide_steps: int = 200,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> Comparison:
    """Fits posteriors under a run's decoder by every pair, in the run's own fast loop, and scores them.

    Args:
        data: what to score; None: the run's own validation split.
        guides, objectives: names, such as `low-rank:8` or `mymodule:MyGuide`, classes, or objects, which are copied; or
            a mapping from the names to show to such.
        fast_steps: None: as many as the run was trained with.
        sequences: how many of the data's sequences, from the first; None: all.
        guide_steps: slow steps, on the run's training split, by which shared parameters of a guide learn before.
        options: `particles`, `seed`, `out` and more, as in `compare_posteriors`.

    Raises:
        UserError: the run has no thoughts, an unknown name, no pair fits, or the data do not fit the model.
    """
    if not run.config.model.thoughts:
        raise UserError(f"{run.folder}: this model has no thoughts ({run.config.model.no_thoughts}): nothing to fit")
    named = guides_for(run, guides)
    data, loop = run.scored(data), run.loop
    learns = guide_steps and any(map(is_trainable, named.guides.values()))
    place = f"{data.folder.path} ({data.split})"
    return compare_posteriors(
        run.model,
        list(dataset_batches(data, batch_size, run.device, limit=sequences)),
        guides=named,
        objectives=objectives_for(run, objectives),
        optimizer=loop.optimizer,
        fast_steps=list(dict.fromkeys(fast_steps or [loop.steps])),
        guide_training=_guide_training(run, guide_steps) if learns else None,
        about={**run.about, "scored": place, **(about or {})},
        noise=loop.noise,
        tolerance=run.config.fast.tolerance,
        patience=run.config.fast.patience,
        **options,
    )


def _guide_training(run: Run, steps: int) -> GuideTraining:
    """Batches of the run's training split in an order of their own, at the run's learning rate."""
    data, slow = run.dataset("train"), run.config.slow
    order = DataOrder(len(data), slow.batch_size, run.config.seed)

    def batch(step: int) -> Batch:
        return data.batch(order.indices(step * slow.batch_size)).to(run.device)

    return GuideTraining(batch, steps, slow.lr, data.folder.fingerprint)


def describe(thing: Any) -> str:
    """The class of a guide, an objective or an optimizer with its plain options, and the digest of its weights."""
    thing = thing.elbo if isinstance(thing, PyroObjective) else thing
    entries: dict[str, Any] = {"particles": thing.num_particles} if isinstance(thing, ELBO) else {}
    hidden = {"training", "num_particles", *vars(Trace_ELBO())}
    for name, value in vars(thing).items():
        if not name.startswith(("_", "has_")) and name not in hidden and isinstance(value, bool | int | float | str):
            entries[name] = value
    if isinstance(thing, nn.Module) and any(True for _ in thing.parameters()):
        entries["weights"] = fingerprint(thing)[:12]
    if (learned := getattr(thing, "learned", None)) is not None:
        entries["learned"] = fingerprint(learned)[:12]
    return f"{type(thing).__name__}({', '.join(f'{name}={value}' for name, value in entries.items())})"


def data_fingerprint(batches: Sequence[Batch]) -> str:
    """A digest of sequences, their masks and their ids."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for value in (batch.inputs, batch.targets, batch.mask, batch.ids):
            if value is not None:
                digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


__all__ = ["compare_posteriors", "compare_run"]
