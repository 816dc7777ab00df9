"""Text or prepared tokens in, a trained run out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pyro_ltm.config import Config, load_toml, preset
from pyro_ltm.data import Reading, TokenDataset, Tokenizer, prepare
from pyro_ltm.data.folder import is_token_folder
from pyro_ltm.data.presets import preset_for
from pyro_ltm.data.sources import sources_of
from pyro_ltm.errors import UserError
from pyro_ltm.files import clear_errors
from pyro_ltm.inference.parts import Parts, settled
from pyro_ltm.locks import locks_out
from pyro_ltm.training.kept import EVALUATION
from pyro_ltm.training.run import (
    CONFIG,
    DATA,
    METRICS,
    MODEL,
    TOKENIZER,
    TRAINER,
    Run,
    WeightsMeta,
    check_fits,
    noted_data,
    open_data,
    own_data,
    read_tensors,
    record_data,
)
from pyro_ltm.training.trainer import Progress, Trainer

WRITTEN = (TOKENIZER, MODEL, TRAINER, METRICS, EVALUATION, "plots/training.png")
"""What a run has only after its configuration: in a folder without one, these are somebody else's."""


@locks_out
def train(
    config: Config | None,
    *,
    data: str | Path | Sequence[str] | None,
    out: str | Path,
    resume: bool = False,
    tokenizer: str | Path | Tokenizer | None = None,
    reading: Reading | None = None,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
    on_prepare: Callable[[str, int, int], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> Run:
    """Trains a model and leaves a run folder that `Run.load` reads.

    Args:
        config: what to train; None takes the run's own when resuming, else that of `preset_for`.
        data: a folder that `prepare` wrote, or sources to prepare inside the run folder; None when resuming.
        out: the run folder.
        resume: go on from the last checkpoint; a run that was killed before its first one starts again.
        tokenizer, reading: as in `prepare`, where the run prepares its own data.
        on_progress, on_interrupt: as in `Trainer`. on_prepare: as `progress` in `prepare`.

    Raises:
        UserError: bad input; `out` holds a run already and `resume` is False; or resuming with another configuration.
        Stopped: interrupted after saving.
    """
    out = Path(out)
    going_on = _check_folder(out, resume, data)
    saved = load_toml(out / CONFIG, whole=True) if going_on else None
    config = config or saved or preset(preset_for(data))
    Parts.check(config)
    is_new = not out.exists()
    with clear_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        folder = _tokens(config, data, out, going_on, tokenizer, reading, on_prepare)
        training = TokenDataset(folder)
        config = as_the_data_are(config, training)
        if saved is not None and config.dtype == "auto":
            config = dataclasses.replace(config, dtype=saved.dtype)
        config = settled(config, device)
        if saved is not None:
            _check_same(config, saved, out)
        check_fits(config, training)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it holds something after all
                out.rmdir()
        raise
    parts = Parts.build(config, device=device)
    if going_on and (out / TRAINER).exists():
        run = Run(out, config, parts, training.tokenizer, 0)
    else:
        record_data(out, training)
        run = Run.create(out, config, parts, training.tokenizer)
    validation = TokenDataset(folder, "validation") if "validation" in training.folder.splits else None
    trainer = Trainer(run, training, validation, on_progress or (lambda progress: None), on_interrupt or (lambda: None))
    if going_on:
        trainer.resume()
    return trainer.fit()


def _check_folder(out: Path, resume: bool, data: object) -> bool:
    """Whether `out` holds a run to go on with. Raises UserError when that is not what was asked for."""
    exists = (out / CONFIG).is_file()
    if exists and (out / MODEL).exists() and not (out / TRAINER).exists():
        _, meta = read_tensors(out / MODEL, WeightsMeta)
        # Weights that were trained, or converted: starting again would throw them away.
        if meta.step or not (out / DATA).exists():
            raise UserError(f"{out}: has weights but no {TRAINER} to go on from; start a new run in another folder")
    if exists and not resume:
        raise UserError(f"{out}: already holds a run; go on with it with --resume, or choose another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; --out needs a folder")
    if not exists:
        _check_nobodys(out)
    if not exists and not data:
        what = "no run to resume here" if resume else "nothing to train on"
        raise UserError(f"{out}: {what}; name the text with --data")
    return exists


def _check_nobodys(out: Path) -> None:
    """Raises UserError when the folder, which holds no run, has a file that a run would write over."""
    names = [name for name in WRITTEN if os.path.lexists(out / name)]
    if os.path.lexists(out / DATA) and noted_data(out) is None:  # a run that was killed as it began leaves such a note
        names.append(DATA)
    if names:
        raise UserError(
            f"{out}: has a {names[0]} but no {CONFIG}, so that is no run's and left alone; choose another folder"
        )


def _tokens(
    config: Config,
    data: str | Path | Sequence[str] | None,
    out: Path,
    going_on: bool,
    tokenizer: str | Path | Tokenizer | None,
    reading: Reading | None,
    on_prepare: Callable[[str, int, int], None] | None,
) -> Path:
    """The folder of tokens to train on: the one named, the run's own, or one prepared now inside the run folder."""
    sources = sources_of(data)
    ready = len(sources) == 1 and is_token_folder(sources[0])
    recorded = going_on and (out / DATA).exists()
    if (ready or recorded) and (tokenizer or reading not in (None, Reading())):
        raise UserError(
            "a tokenizer or a way of reading is of use only for text that is prepared now: "
            f"{sources[0] if ready else out} has its tokens already; leave it out"
        )
    if ready:
        return Path(sources[0])
    if recorded:
        return open_data(out, "train").folder.path
    with own_data(out) as place:
        settings = config.data
        length = min(settings.sequence_length, config.model.max_length)
        prepared = prepare(
            sources,
            place,
            tokenizer=tokenizer,
            vocab_size=settings.vocab_size,
            sequence_length=length,
            packing=settings.packing,
            validation_fraction=settings.validation_fraction,
            reading=reading,
            overwrite=True,  # what a run that was killed while it began left behind
            progress=on_prepare,
        )
    return prepared.path


def as_the_data_are(config: Config, data: TokenDataset) -> Config:
    """`config` as the data are: their length and packing, and their vocabulary where it says none."""
    model = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or data.vocab_size)
    prepared = dataclasses.replace(config.data, sequence_length=data.sequence_length, packing=str(data.meta["packing"]))
    return dataclasses.replace(config, model=model, data=prepared)


def _check_same(config: Config, saved: Config, out: Path) -> None:
    """Raises UserError naming the lines in which the configuration to resume with differs from the run's."""
    if config == saved:
        return
    ours, theirs = (_flat(one) for one in (config, saved))
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    changes = ", ".join(f"{key} = {theirs.get(key)!r} became {ours.get(key)!r}" for key in keys)
    raise UserError(f"{out}: cannot resume with another configuration ({changes}); leave it out, or start a new run")


def _flat(config: Config) -> dict[str, object]:
    """Dotted keys to values."""
    flat: dict[str, object] = {}
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            options = value.pop("options", {})
            flat.update({f"{key}.{name}": entry for name, entry in {**value, **options}.items()})
        else:
            flat[key] = value
    return flat
