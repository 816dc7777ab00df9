"""Guides and objectives compared by training a decoder under each pair."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyro_ltm.comparison.comparison_file import check_target
from pyro_ltm.comparison.loop import Plan, Report, attempt, failed, find_refusals, run_plan
from pyro_ltm.comparison.named import Parts, named_parts, pair_config, unfit_config
from pyro_ltm.comparison.pair_score import own_part, score_pair
from pyro_ltm.comparison.result import RIVALS, Comparison, DecoderTraining, Key, PairScore, Validation, arrival
from pyro_ltm.comparison.together import by_all, first_locks_out
from pyro_ltm.config import Component, Config
from pyro_ltm.config.settings import PLAN, flat
from pyro_ltm.data import Preparation, Reading, TokenDataset, prepare
from pyro_ltm.data.folder import TokenFolder, is_token_folder
from pyro_ltm.data.sources import sources_of
from pyro_ltm.distributed import current, sharing
from pyro_ltm.errors import RanAway, UserError
from pyro_ltm.files import made_folder
from pyro_ltm.noise import fold
from pyro_ltm.runs.batches import check_fits, dataset_batches
from pyro_ltm.runs.folder import METRICS
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.runs.run import Run
from pyro_ltm.training.launch import train
from pyro_ltm.training.parallel import check_shares
from pyro_ltm.types import Batch

VALIDATIONS = 8
"""Validations while a decoder is trained, at the least: the bound at equal seconds is one of them."""

SECTIONS = ("model.", "fast.", "slow.")
"""Of the configuration, settings that all pairs share; in dotted keys."""

MEAN_FIELD_INSTEAD = "its guide has no density: the decoder is scored by a mean-field fit with analytic-elbo"


@by_all
@first_locks_out
def compare_training(
    config: Config,
    *,
    data: str | Path | Sequence[str],
    out: Path | str,
    guides: Parts,
    objectives: Parts,
    sequences: int | None = 64,
    particles: int = 64,
    batch_size: int = 32,
    rivals: Sequence[str] = (),
    reading: Reading | None = None,
    device: str = "cpu",
    about: Mapping[str, Any] | None = None,
    **watching: Any,
) -> Comparison:
    """Trains a decoder under each pair, on the same tokens in the same order, and scores them all alike.

    Each run lies in `out/runs`, so that what was interrupted goes on where it stopped. A decoder is scored by the fast
    loop that it was trained with; where the guide has no density, by a mean-field fit. Several processes (`torchrun`)
    call it alike, and share each training and each score.

    Args:
        config: what all pairs share. data: a prepared folder, or text to prepare in `out/data`.
        guides, objectives: as in `compare_run`.
        sequences: validation sequences to score, from the first; None: all.
        rivals: train and score these as well: some of `RIVALS`.
        watching: `on_pair`, called with a label before each training; `report`, as in `compare_run`; and `on_progress`,
            `on_begin`, `on_prepare` and `on_interrupt`, as in `train`.

    Raises:
        UserError: bad input, no pair fits, or `out` holds something else.
        Stopped: interrupted; the same call goes on.
    """
    out, world = Path(out), current()
    if world.leads:
        check_target(out, "training")
    _check_asked(config, rivals)
    config = with_validations(config)
    guides, objectives = named_parts(guides), named_parts(objectives)
    configs = {
        (guide, objective): pair_config(config, guides[guide], objectives[objective])
        for guide, objective in itertools.product(guides, objectives)
    }
    refusals = find_refusals(guides, list(objectives), lambda *pair: unfit_config(configs[pair]))
    for pair, why in refusals.items():
        if not why:
            check_shares(configs[pair], world.size)
    on_prepare = watching.pop("on_prepare", None)
    folder = world.tell(open_tokens(config, sources_of(data), out, reading, on_prepare) if world.leads else None)
    assert folder is not None
    validation = open_validation(config, folder)
    batches = list(dataset_batches(validation, batch_size, "cpu", limit=sequences))
    report, on_pair = watching.pop("report", None), watching.pop("on_pair", lambda label: None)
    start = partial(train, data=folder, resume=True, device=device, **watching)
    trainings = _Trainings(config, configs, out / "runs", start, batches, particles, report, on_pair)
    settings = {"data": validation.folder.fingerprint, "batch_size": batch_size, "device": device.partition(":")[0]}
    plan, about = trainings.plan(refusals, settings), {"data": str(folder), **(about or {})}
    beside = {name: partial(trainings.score_rival, name) for name in RIVALS if name in rivals}
    return run_plan(plan, batches, trainings.score, out=out, about=about, rivals=beside)


def _check_asked(config: Config, rivals: Sequence[str]) -> None:
    """Raises UserError for a decoder without thoughts, or a rival that is none."""
    if not config.model.thoughts:
        raise UserError(
            "model.thoughts = 0: guides and objectives need thoughts; the rivals beside them are --twin and "
            "--masked-diffusion"
        )
    if unknown := [name for name in rivals if name not in RIVALS]:
        raise UserError(f"rivals: no '{unknown[0]}': choose from {', '.join(RIVALS)}")


@dataclass(frozen=True)
class _Trainings:
    """Trainings of all pairs, in folders of `runs`, and the scores of their decoders."""

    config: Config
    configs: Mapping[tuple[str, str], Config]
    runs: Path
    train: Callable[..., Run]
    batches: Sequence[Batch]
    particles: int
    report: Report | None
    on_pair: Callable[[str], None]

    def plan(self, refusals: Mapping[tuple[str, str], str], settings: Mapping[str, Any]) -> Plan:
        """The pairs, and all that their figures depend on: what pairs share, and `settings`."""
        sequences = sum(batch.size for batch in self.batches)
        return Plan(
            kind="training",
            settings={**_shared(self.config), "sequences": sequences, "particles": self.particles, **settings},
            definitions={
                "guides": {guide: _written(one.guide) for (guide, _), one in self.configs.items()},
                "objectives": {objective: _written(one.objective) for (_, objective), one in self.configs.items()},
            },
            refusals=refusals,
            fast_steps=[self.config.fast.steps],
            added=_added(),
        )

    def score(self, key: Key, place: str) -> PairScore:
        """Trains a pair's decoder and scores it; `place` is the pair's place among the others, such as `2/6`."""
        guide, objective, _ = key
        label = f"{guide} × {objective} ({place})"
        self.on_pair(label)
        try:
            run = self.train(self.configs[guide, objective], out=self.runs / _slug(guide, objective))
        except RanAway as error:
            return failed(key, error)
        return self._score(run, key, label)

    def score_rival(self, name: str) -> PairScore:
        """Trains the rival of this name, an attribute of `ModelConfig`, and scores it."""
        words, model = name.replace("_", " "), getattr(self.config.model, name)
        self.on_pair(words)
        run = self.train(dataclasses.replace(self.config, model=model), out=self.runs / words.replace(" ", "-"))
        return self._score(run, (words, "exact" if model.is_exact else "bound", 0), words)

    @sharing()
    def _score(self, run: Run, key: Key, label: str) -> PairScore:
        """A trained decoder's figures: by its own fast loop, where that has a bound."""
        loop = run.loop.with_density()
        total = sum(batch.size for batch in own_part(self.batches))
        progress = self.report(f"score {label}", total) if self.report else None
        draws: dict[str, Any] = {"particles": self.particles, "seed": run.config.seed}
        hiding = (fold(run.config.seed, "score"), self.particles)
        batches = [dataclasses.replace(batch.to(run.device), hiding=hiding) for batch in self.batches]
        found = attempt(partial(score_pair, run.model, batches, loop, progress=progress, **draws), key)
        found = found.with_note("" if loop is run.loop else MEAN_FIELD_INSTEAD)
        return dataclasses.replace(found, training=decoder_training(run.folder) if current().leads else None)


def decoder_training(folder: Path) -> DecoderTraining:
    """How the decoder of a run folder was trained, by its metrics."""
    rows = read_metrics(folder / METRICS)
    seen: dict[int, dict[str, Any]] = {0: {"seconds": 0.0, "tokens": 0, "skipped": 0}}
    seen |= {row["step"]: row for row in rows if row["kind"] == "train"}
    validation = [
        Validation(
            row["step"],
            seen[row["step"]]["tokens"],
            seen[row["step"]]["seconds"],
            row["nats_per_token"],
            row.get("nats_per_token_stderr"),
        )
        for row in rows
        if row["kind"] == "validation" and row["step"] in seen
    ]
    best = arrival([row.nats_per_token for row in validation])
    last = seen[max(seen)]
    return DecoderTraining(
        steps=max(seen),
        **{key: last[key] for key in ("tokens", "seconds", "skipped")},
        arrival=None if best is None else validation[best],
        validation=validation,
    )


def with_validations(config: Config) -> Config:
    """`config` with as many validations as the bound at equal seconds needs."""
    often = max(1, config.slow.steps // VALIDATIONS)
    slow = dataclasses.replace(config.slow, eval_every=min(config.slow.eval_every or often, often))
    return dataclasses.replace(config, slow=slow)


def open_tokens(config: Config, sources: list[str], out: Path, reading: Reading | None, on_prepare: Any) -> Path:
    """The folder of tokens to train on: the one named, or `out/data`, prepared now if it is not there."""
    if (there := tokens_there(config, sources, out)) is not None:
        return there
    with made_folder(out):
        prepare(sources, out / "data", Preparation.of(config), reading=reading, progress=on_prepare)
    return out / "data"


def tokens_there(config: Config, sources: list[str], out: Path) -> Path | None:
    """The folder of tokens to train on, as `open_tokens`; None where they are yet to be prepared.

    Raises:
        UserError: there is no text, none held out, or `out/data` holds the tokens of other text.
    """
    if not sources:
        raise UserError("nothing to train on; name the text with --data")
    if len(sources) == 1 and is_token_folder(sources[0]):
        return Path(sources[0])
    if not config.data.validation_fraction:
        raise UserError("data.validation_fraction = 0: decoders are scored on text that is held out; hold some out")
    folder = out / "data"
    if not is_token_folder(folder):
        return None
    known = TokenFolder.open(folder).meta["sources"]
    if known != sources:
        raise UserError(
            f"{folder}: holds the tokens of {', '.join(known)}, and not of {', '.join(sources)}: name that "
            "folder with --data, or choose another --out"
        )
    return folder


def open_validation(config: Config, folder: Path) -> TokenDataset:
    """The validation split, on which decoders are scored. Raises UserError where it does not fit the model."""
    validation = TokenDataset(folder, "validation")
    vocab_size = config.model.vocab_size or validation.vocab_size
    check_fits(dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=vocab_size)), validation)
    return validation


def _shared(config: Config) -> dict[str, Any]:
    """All settings that pairs share, by dotted keys."""
    shared = {"seed": config.seed, "dtype": config.dtype, "optimizer": _written(config.optimizer)}
    shared |= {"slow_optimizer": _written(config.slow_optimizer), "prior": _written(config.prior)}
    own = (*PLAN[1:], "slow.save_minutes")  # none of a comparison's
    return shared | {key: value for key, value in flat(config).items() if key.startswith(SECTIONS) and key not in own}


def _added() -> dict[str, Any]:
    """Shared settings that are not in the comparisons of some earlier release, as all of that release were made."""
    keys = {
        f"{section.name}.{entry.name}"
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(kind := type(getattr(Config(), section.name)))
        for entry in dataclasses.fields(kind)
        if entry.metadata.get("added")
    }
    return {key: value for key, value in _shared(Config()).items() if key in {*keys, "slow_optimizer", "prior"}}


def _written(component: Component) -> str:
    """A component as `name(option=value, ...)`."""
    options = ", ".join(f"{key}={value}" for key, value in component.options.items())
    return f"{component.name}({options})"


def _slug(guide: str, objective: str) -> str:
    """A folder's name for a pair."""
    return "".join(letter if letter.isalnum() or letter in "-.=" else "_" for letter in f"{guide}--{objective}")


__all__ = ["compare_training", "decoder_training", "open_tokens", "open_validation", "with_validations"]
