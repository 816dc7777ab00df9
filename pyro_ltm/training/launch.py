"""Text or prepared tokens in, a trained run out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_ltm.config import Config, without_code
from pyro_ltm.data import TokenDataset, Tokenizer
from pyro_ltm.data.folder import CHECKED
from pyro_ltm.data.presets import preset_for
from pyro_ltm.distributed import current, joined
from pyro_ltm.errors import UserError, warn
from pyro_ltm.files import clear_errors, made_folder
from pyro_ltm.inference.build import build, build_objective, check_config
from pyro_ltm.inference.parts import AXES, with_known, with_parts
from pyro_ltm.locks import locked
from pyro_ltm.model.precision import resolve_dtype
from pyro_ltm.presets import preset
from pyro_ltm.reading import check_name
from pyro_ltm.runs.base import load_config, save_config, share_base
from pyro_ltm.runs.batches import check_fits
from pyro_ltm.runs.data import open_data
from pyro_ltm.runs.folder import (
    CONFIG,
    EVALUATION,
    METRICS,
    MODEL,
    TOKENIZER,
    TRAINER,
    WEIGHTS,
    read_tensors,
)
from pyro_ltm.runs.notes import DATA, ORIGIN, data_note, note_data
from pyro_ltm.runs.provenance import WeightsMeta, known_origin
from pyro_ltm.runs.run import Run
from pyro_ltm.training.beginning import Beginning, follow
from pyro_ltm.training.branch import branch, check_branch
from pyro_ltm.training.kept import kept
from pyro_ltm.training.origin import Origin, note_origin
from pyro_ltm.training.parallel import check_shares
from pyro_ltm.training.schedule import check_same, going_on_as
from pyro_ltm.training.shortage import told_what_fits
from pyro_ltm.training.text import Text
from pyro_ltm.training.trainer import Progress, Trainer

WRITTEN = (TOKENIZER, *WEIGHTS.values(), TRAINER, METRICS, EVALUATION, "plots/training.png")
"""Files that a run has only after its configuration: in a folder without one, these are somebody else's."""


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Whom a training tells how far it is.

    Attributes:
        on_prepare: as `progress` in `prepare`.
        on_resume: called with the step from which a run goes on, and its steps.
        on_begin: called before the first step, with the configuration, the data, the step done and the device.
        on_progress, on_interrupt, on_note: as in `Trainer`.
    """

    on_prepare: Callable[[str, int, int], None] = lambda what, pieces, characters: None
    on_resume: Callable[[int, int], None] = lambda step, steps: None
    on_begin: Callable[[Config, TokenDataset, int, str], None] = lambda config, data, step, device: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_interrupt: Callable[[], None] = lambda: None
    on_note: Callable[[str], None] = warn


@dataclass(frozen=True, kw_only=True)
class Start:
    """With what a training begins: with nothing, a checkpoint of its own or of another run, or another run's weights.

    Args:
        resume: go on from the last checkpoint; a run that was killed before its first one starts again. A `config` with
            other `slow.steps` than the run's extends it (see `Trainer.extend`); else it may differ only in what changes
            no figure: how micro-batches split a slow step, what is computed again, when checkpoints are saved.
        rewarm: slow steps in which the learning rate rises again where the run is extended.
        decay: slow steps in which the rate of a run of `slow.schedule` wsd falls from where it is resumed, or branches;
            they are its last.
        branch_from: a run from whose last checkpoint, optimizer and all, the new one goes on as if it were resumed.
            That run stays as it is. See `branch`.
        at: slow step of an earlier checkpoint of that run; None: its last.
        init_from: a run whose weights the new one begins with, and whose tokenizer it keeps. See `Origin`.
    """

    resume: bool = False
    rewarm: int = 0
    decay: int = 0
    branch_from: str | Path | None = None
    at: int | None = None
    init_from: str | Path | None = None

    def check(self, data: object) -> None:
        """Raises UserError where two of them, or one and the `data`, do not go together."""
        if self.decay and (self.rewarm or not (self.resume or self.branch_from)):
            raise UserError("--decay goes with --resume or --branch-from, and without --rewarm: it begins at the peak")
        if self.at is not None and self.branch_from is None:
            raise UserError("--at goes with --branch-from: it says from which of that run's checkpoints")
        if self.branch_from is not None and (data or self.init_from or self.resume):
            raise UserError("--branch-from names what to go on with: leave --data, --init-from and --resume out")


def train(
    config: Config | None,
    *,
    out: str | Path,
    data: str | Path | Sequence[str] | None = None,
    resume: bool = False,
    init_from: str | Path | None = None,
    device: str = "cpu",
    allow_code: bool = False,
    **more: Any,
) -> Run:
    """Trains a model and leaves a run folder that `Run.load` reads.

    Of several processes (`torchrun`) each calls it with the same arguments; the first prepares, writes and reports. All
    must see the run folder and the data.

    Args:
        config: what to train; None takes the run's own when resuming, else that of `init_from` or of `preset_for`.
        out: the run folder.
        data: a folder that `prepare` wrote, or sources to prepare inside the run folder; None when resuming.
        resume, init_from: go on from the last checkpoint; or begin with another run's weights: see `Start`.
        allow_code: as in `Run.load`, of the configuration of a run that goes on, branches or is begun with. What
            `config` names was given leave by whoever made it.
        more: what else is in `Start` (`rewarm`, `decay`, `branch_from`, `at`) and in `Text` (`tokenizer`, `reading`,
            `stream`, `workers`); `guide`, `objective`, `optimizer`, `slow_optimizer`, `prior`: a name, a class, or an
            object, of which a copy is trained (the run notes how to make it again, or that it must be given again);
            and see `Callbacks`.

    Raises:
        UserError: bad input; `out` holds a run already and `resume` is False; another process writes it; resuming with
            another configuration; or the weights of `init_from` do not fit.
        Stopped: interrupted after saving.
    """

    def taken(names: Iterable[str]) -> dict[str, Any]:
        return {name: more.pop(name) for name in names if name in more}

    start = Start(resume=resume, init_from=init_from, **taken(("rewarm", "decay", "branch_from", "at")))
    text = Text(data=data, **taken(("tokenizer", "reading", "stream", "workers")))
    parts, out, watch = taken(AXES), Path(out), Callbacks(**more)
    known = with_parts(config or Config(), **parts)
    with joined() as world, locked(out) if world.leads else nullcontext():
        device = world.device(device)
        if not world.leads:
            return follow(out, known, device)
        launch = _Launch(out, device, parts, {"allow_code": allow_code, "known": known}, watch)
        return launch.trainer(known if config else None, start, text).fit()


@dataclass(frozen=True)
class _Launch:
    """A run as the first process begins it, or goes on with it.

    Attributes:
        parts: of the configuration, those that came from Python. trust: `allow_code` and `known`, as in `Run.load`.
    """

    out: Path
    device: str
    parts: Mapping[str, Any]
    trust: Mapping[str, Any]
    watch: Callbacks

    def trainer(self, config: Config | None, start: Start, text: Text) -> Trainer:
        """The run prepared, planned, built and written, and its trainer, about to take the first step."""
        start.check(text.data)
        if start.branch_from is not None:
            config, start = self._branched(config, Path(start.branch_from), start)
        out, watch = self.out, self.watch
        going_on = _check_folder(out, start.resume, text.data)
        trained = going_on and bool(kept(out))
        origin = Origin.find(out, start.init_from, going_on=going_on, trained=trained, **self.trust)
        known_from = out if going_on else None, origin.run.folder if origin else None
        config = config or self._own_config(text.data, *known_from)
        if config.graft.base and origin is None and not going_on:
            raise UserError("graft.base: a graft begins with 'pyro-ltm graft', and learns with --init-from that run")
        check_shares(config, current().size)
        check_config(config)
        with made_folder(out):
            tokens = text.tokens(config, out, origin, going_on=going_on, progress=watch.on_prepare)
            tokens.verify(above=CHECKED, report=lambda files, size: watch.on_prepare("check", files, size))
            training = TokenDataset(tokens)
            config, steps = _plan(config, out, training, origin, self.device, going_on=going_on)
            if start.rewarm and steps == config.slow.steps:
                raise UserError("--rewarm is of a run that is extended: give --resume and more --steps than it has")
            config = share_base(config, out)
            if going_on and config.slow != load_config(out).slow:
                save_config(out, config)
            run = Run(out, config, *build(config, device=self.device), training.tokenizer, 0)
            if origin is not None:
                origin.give(run.trainable, config)
        if not trained:
            note_data(out, training)
            note_origin(out, origin)
            run = Run.create(out, config, run.model, run.loop, run.tokenizer)
        changed = start.decay or steps != config.slow.steps
        beginning = Beginning(
            going_on=going_on,
            trained=trained,
            has_origin=origin is not None,
            distributed=config.distributed,
            extension={"steps": steps, "rewarm": start.rewarm, "decay": start.decay} if changed else {},
        )
        return self._begun(beginning, run, training)

    def _own_config(self, *where: Any) -> Config:
        """The configuration of a run for which none is given (`starting_config`), with the parts that are."""
        return with_parts(starting_config(*where, **self.trust), **self.parts)

    def _branched(self, config: Config | None, trunk: Path, start: Start) -> tuple[Config, Start]:
        """Makes the run a branch of `trunk`; its configuration, and how it is trained: resumed, by its own plan."""
        check_branch(trunk, self.out)
        config = config or self._own_config(None, trunk)
        steps = _plan(config, trunk, open_data(trunk, "train"), None, self.device, going_on=True)[1]
        branched = branch(trunk, self.out, steps=steps, rewarm=start.rewarm, decay=start.decay, at=start.at)
        return with_known(going_on_as(branched, config), config), Start(resume=True)

    def _begun(self, beginning: Beginning, run: Run, training: TokenDataset) -> Trainer:
        """Tells the other processes and whoever watches that it begins; the trainer."""
        watch = self.watch
        current().tell(beginning)
        trainer = beginning.trainer(run, training, watch.on_progress, watch.on_interrupt, watch.on_note)
        if beginning.trained:
            _put_back_tokenizer(run, watch.on_note)
        if beginning.going_on:
            watch.on_resume(trainer.counters.step, trainer.slow.steps)
        splits = not run.loop.objective.couples_batch
        with told_what_fits(self.out, trainer.slow, splits=splits):  # it may measure a step
            watch.on_begin(trainer.run.config, training, trainer.counters.step, self.device)
        return trainer


def starting_config(
    data: str | Path | Sequence[str] | None,
    out: Path | None = None,
    init_from: str | Path | None = None,
    *,
    allow_code: bool = False,
    known: Config | None = None,
) -> Config:
    """The configuration of a run for which none is given: that of the run `out`, of `init_from`, or the preset's.

    `allow_code` and `known` are as in `Run.load`.
    """
    if out is not None and (out / CONFIG).is_file():
        config = load_config(out)
        return config if allow_code else without_code(config, out / CONFIG, known)
    if init_from is not None:
        return Origin(Run.load(init_from, allow_code=allow_code, known=known)).config
    return preset(preset_for(data))


def _put_back_tokenizer(run: Run, say: Callable[[str], None]) -> None:
    """Writes the run's tokenizer, that of its data, once more where its file is gone or changed."""
    path = run.folder / TOKENIZER
    try:
        if Tokenizer.load(path).fingerprint == run.tokenizer.fingerprint:
            return
        reason = f"{path}: not the tokenizer of the run's data"
    except UserError as error:
        reason = str(error)
    run.tokenizer.save(path)
    say(f"{reason}; written again from the run's data")


def _check_folder(out: Path, resume: bool, data: object) -> bool:
    """Whether `out` holds a run to go on with. Raises UserError when that is not what was asked for."""
    check_name(out)
    exists = (out / CONFIG).is_file()
    if exists and (out / MODEL).exists() and not kept(out):
        _, meta = read_tensors(out / MODEL, WeightsMeta)
        # Weights that were trained, or converted: starting again would throw them away.
        if meta.step or not (out / DATA).exists():
            raise UserError(f"{out}: has weights but no {TRAINER} to go on from; start a new run in another folder")
    if exists and not (out / MODEL).exists() and not kept(out) and _has_learned(out):
        raise UserError(f"{out}: {METRICS} has its steps, but its weights are gone; put {MODEL} and {TRAINER} back")
    if exists and not resume:
        raise UserError(f"{out}: already holds a run; go on with it with --resume, or choose another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; --out needs a folder")
    if not exists:
        _check_foreign_files(out)
    if not exists and not data:
        if resume and data_note(out):
            raise UserError(f"{out}: was stopped before its {CONFIG} was written; give the whole command once more")
        what = "no run to resume here" if resume else "nothing to train on"
        raise UserError(f"{out}: {what}; name the text with --data")
    return exists


def _has_learned(out: Path) -> bool:
    """Whether a slow step was taken: the weights are written before the first."""
    path = out / METRICS
    with clear_errors(path):
        return path.exists() and b'"kind": "train"' in path.read_bytes()


def _check_foreign_files(out: Path) -> None:
    """Raises UserError when the folder, which holds no run, has a file that a run would write over."""
    names = [name for name in WRITTEN if os.path.lexists(out / name)] + [path.name for path in kept(out)]
    if os.path.lexists(out / DATA) and data_note(out) is None:  # a run that was killed as it began leaves such a note
        names.append(DATA)
    if os.path.lexists(out / ORIGIN) and not known_origin(out):
        names.append(ORIGIN)
    if names:
        raise UserError(
            f"{out}: has a {names[0]} but no {CONFIG}, so that is no run's and left alone; choose another folder"
        )


def _plan(
    config: Config, out: Path, training: TokenDataset, origin: Origin | None, device: str, *, going_on: bool
) -> tuple[Config, int]:
    """The configuration to train by, as the data and the device are, and the steps asked for.

    Raises:
        UserError: data or origin do not fit it, or the run in `out` was configured otherwise (see `check_same`).
    """
    config = as_the_data_are(origin.fitting(config, training) if origin else config, training)
    saved = load_config(out) if going_on else None
    if saved is not None and config.dtype == "auto":
        config = dataclasses.replace(config, dtype=saved.dtype)
    config, steps = resolve_dtype(config, device), config.slow.steps
    if saved is not None:
        check_same(config, saved, out)
        _check_split(config, saved, out)
        config = with_known(going_on_as(saved, config), config)
    check_fits(config, training)
    if config.slow.keep_best and "validation" not in training.folder.splits:
        raise UserError(f"slow.keep_best = true: {training.folder.path} has no validation split by which one is best")
    return config, steps


def _check_split(config: Config, saved: Config, out: Path) -> None:
    """Raises UserError where the run in `out` would compare other sequences of a slow step than it did."""
    size = saved.slow.batch_size
    if config.slow.batch_size != size and build_objective(saved.objective, saved.model).couples_batch:
        raise UserError(
            f"{out}: objective {saved.objective.name} compares the sequences of a micro-batch: go on with "
            f"slow.batch_size = {size}"
        )


def as_the_data_are(config: Config, data: TokenDataset) -> Config:
    """`config` as the data are: their length and packing, and their vocabulary where it says none."""
    model = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or data.vocab_size)
    prepared = dataclasses.replace(config.data, sequence_length=data.sequence_length, packing=str(data.meta["packing"]))
    return dataclasses.replace(config, model=model, data=prepared)
