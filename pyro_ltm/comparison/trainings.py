"""Guides and objectives compared: under the decoder of a run, or by training a decoder under each pair."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro.infer import ELBO

from pyro_ltm.comparison.named import NamedGuides, guides_for, objectives_for, pair_config, unfit_config
from pyro_ltm.comparison.pair_score import Checkpoint, Judgement, arrival, judge
from pyro_ltm.comparison.posteriors import Report, attempt, begin, compare_posteriors
from pyro_ltm.comparison.result import Comparison, Pair, check_target, open_comparison, save
from pyro_ltm.comparison.train_guide import GuideTraining
from pyro_ltm.config import Config
from pyro_ltm.data import DataOrder, Preparation, Reading, TokenDataset, prepare
from pyro_ltm.data.folder import TokenFolder, is_token_folder
from pyro_ltm.errors import UserError
from pyro_ltm.files import clear_errors
from pyro_ltm.guides import Guide
from pyro_ltm.locks import locks_out
from pyro_ltm.optimizers import OPTIMIZERS
from pyro_ltm.runs.folder import METRICS, TOKENIZER
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.runs.run import Run, check_fits, dataset_batches
from pyro_ltm.training.launch import train
from pyro_ltm.training.schedule import PLAN
from pyro_ltm.types import Batch

VALIDATIONS = 8
"""Validations while a decoder is trained, at the least: between them lies the bound at equal seconds."""

JUDGED_OTHERWISE = "its guide has no density: the decoder is judged by a mean-field fit with analytic-elbo"


def compare_run(
    run: Run,
    data: TokenDataset | None = None,
    *,
    guides: Sequence[str] | Mapping[str, Guide],
    objectives: Sequence[str] | Mapping[str, ELBO],
    fast_steps: Sequence[int] | None = None,
    sequences: int | None = 64,
    particles: int = 64,
    batch_size: int = 32,
    guide_steps: int = 200,
    config: Config | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    about: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> Comparison:
    """Fits posteriors under a run's decoder by every pair, and judges them: see `compare_posteriors`.

    Args:
        data: what to score; None: the run's own validation split.
        guides, objectives: names, such as `low-rank:8`, or objects by the names to show.
        fast_steps: None: as many as the run was trained with.
        sequences: how many of the data's sequences, from the first; None: all.
        guide_steps: slow steps, on the run's training split, by which shared parameters of a guide learn before.
        config: whose fast loop to take instead of the run's own.

    Raises:
        UserError: the run has no thoughts, an unknown name, no pair fits, or the data do not fit the model.
    """
    if not run.config.model.thoughts:
        raise UserError(f"{run.folder}: this model has no thoughts (it is an autoregressive twin): nothing to fit")
    named = NamedGuides(dict(guides), {}, {}) if isinstance(guides, Mapping) else guides_for(run, guides)
    if not isinstance(objectives, Mapping):
        objectives = objectives_for(objectives, layers=run.config.model.layers)
    data = run.dataset() if data is None else data
    check_fits(run.config, data)
    if data.meta["tokenizer"] != run.tokenizer.fingerprint:
        raise UserError(
            f"{data.folder.path}: made by another tokenizer than the run's: prepare the data with "
            f"--tokenizer {run.folder / TOKENIZER}"
        )
    learns = any(parameter.requires_grad for guide in named.guides.values() for parameter in guide.parameters())
    fast, config = (config or run.config).fast, config or run.config
    place = f"{data.folder.path} ({data.split})"
    return compare_posteriors(
        run.parts.model,
        list(dataset_batches(data, batch_size, run.parts.device, limit=sequences)),
        guides=named.guides,
        objectives=objectives,
        optimizer=OPTIMIZERS.build(config.optimizer),
        fast_steps=list(dict.fromkeys(fast_steps or [fast.steps])),
        particles=particles,
        seed=seed,
        teaching=_teaching(run, guide_steps) if learns and guide_steps else None,
        notes=named.notes,
        missing=named.missing,
        out=out,
        about={"run": str(run.folder), "step": run.step, "scored": place, **(about or {})},
        report=report,
        noise=fast.noise,
        tolerance=fast.tolerance,
        patience=fast.patience,
    )


def _teaching(run: Run, steps: int) -> GuideTraining:
    """Batches of the run's training split in an order of their own, at the run's learning rate."""
    data, slow = run.dataset("train"), run.config.slow
    order = DataOrder(len(data), slow.batch_size, run.config.seed)

    def batch(step: int) -> Batch:
        return data.batch(order.indices(step * slow.batch_size)).to(run.parts.device)

    return GuideTraining(batch, steps, slow.lr, data.folder.fingerprint)


@locks_out
def compare_training(
    config: Config,
    *,
    data: str | Path | Sequence[str],
    out: Path | str,
    guides: Sequence[str],
    objectives: Sequence[str],
    sequences: int | None = 64,
    particles: int = 64,
    batch_size: int = 32,
    twin: bool = False,
    reading: Reading | None = None,
    device: str = "cpu",
    about: Mapping[str, Any] | None = None,
    report: Report | None = None,
    on_pair: Callable[[str], None] = lambda label: None,
    **watching: Any,
) -> Comparison:
    """Trains a decoder under each pair, on the same tokens in the same order, and judges them all alike.

    Each run lies in `out/runs`, so that what was interrupted goes on where it stopped. A decoder is judged by the fast
    loop that it was trained with; where the guide has no density, by a mean-field fit.

    Args:
        config: what all pairs share. data: a prepared folder, or text to prepare in `out/data`.
        guides, objectives: names.
        sequences: validation sequences to judge on, from the first; None: all.
        twin: train and judge the autoregressive twin as well.
        on_pair: called with a label before each training.
        watching: `on_progress`, `on_prepare` and `on_interrupt`, as in `train`.

    Raises:
        UserError: bad input, no pair fits, or `out` holds something else.
        Stopped: interrupted; the same call goes on.
    """
    out = Path(out)
    check_target(out, "training")
    if not config.model.thoughts:
        raise UserError("model.thoughts = 0: guides and objectives need thoughts; the twin beside them is --twin")
    config = dataclasses.replace(config, slow=_with_validations(config))
    configs = {
        (guide, objective): pair_config(config, guide, objective) for guide in guides for objective in objectives
    }
    reasons = {key: unfit_config(one) for key, one in configs.items()}
    if all(reasons.values()):
        raise UserError(f"no guide fits an objective: {next(iter(reasons.values()))}")
    folder, validation = _open_tokens(config, data, out, reading, watching.pop("on_prepare", None))
    settings = {
        **_flat(config),
        "data": validation.folder.fingerprint,
        "sequences": len(validation) if sequences is None else min(sequences, len(validation)),
        "particles": particles,
        "batch_size": batch_size,
        "device": device.partition(":")[0],
    }
    comparison = open_comparison(out, "training", settings)
    for axis, side in (("guides", 0), ("objectives", 1)):
        named = {key[side]: _written((one.guide, one.objective)[side]) for key, one in configs.items()}
        comparison.add_members(axis, named, out)
    begin(comparison, {"data": str(folder), **(about or {})})
    for key, reason in reasons.items():
        if reason:
            comparison.refuse(*key, reason)
    comparison.set_sequences(dataset_batches(validation, batch_size, "cpu", limit=sequences))
    save(comparison, out)
    scoring: dict[str, Any] = {
        "sequences": sequences,
        "particles": particles,
        "batch_size": batch_size,
        "report": report,
    }

    def launch(one: Config, name: str) -> Run:
        return train(one, data=folder, out=out / "runs" / name, resume=True, device=device, **watching)

    if twin and comparison.twin is None:
        on_pair("twin")
        run = launch(dataclasses.replace(config, model=config.model.twin), "twin")
        comparison.twin = _judge_run(run, "twin", "exact", validation, **scoring)
        save(comparison, out)
    wanted = [key for key, reason in reasons.items() if not reason]
    for index, key in enumerate(wanted, 1):
        if comparison.find((*key, config.fast.steps)):
            continue
        label = f"{key[0]} × {key[1]} ({index}/{len(wanted)})"
        on_pair(label)
        try:
            run = launch(configs[key], _slug(*key))
            pair = _judge_run(run, *key, validation, label=label, **scoring)
        except UserError as error:
            if "finite" not in str(error):
                raise
            note = f"failed: {' '.join(str(error).split())}"
            pair = Pair(guide=key[0], objective=key[1], figures=Judgement(fast_steps=config.fast.steps, note=note))
        comparison.pairs.append(pair)
        save(comparison, out)
    return comparison


def _judge_run(
    run: Run,
    guide: str,
    objective: str,
    data: TokenDataset,
    *,
    sequences: int | None,
    particles: int,
    batch_size: int,
    report: Report | None,
    label: str = "twin",
) -> Pair:
    """A trained decoder's figures: by its own fast loop where that can bound anything."""
    parts = run.parts.judge()
    batches = list(dataset_batches(data, batch_size, parts.device, limit=sequences))
    count = report(f"judge {label}", sum(batch.size for batch in batches)) if report else None

    def work() -> Judgement:
        return judge(
            parts.model,
            batches,
            guide=parts.guide,
            objective=parts.objective.at(1.0),
            optimizer=parts.optimizer,
            fast_steps=parts.fast.steps,
            particles=particles,
            seed=run.config.seed,
            count=count,
            noise=parts.fast.noise,
            tolerance=parts.fast.tolerance,
            patience=parts.fast.patience,
        )

    figures = attempt(work, fast_steps=parts.fast.steps)
    if parts is not run.parts:
        figures = dataclasses.replace(figures, note="; ".join(one for one in (JUDGED_OTHERWISE, figures.note) if one))
    return Pair(guide=guide, objective=objective, figures=figures, training=training_figures(run.folder))


def training_figures(folder: Path) -> dict[str, Any]:
    """What the metrics of a run folder say of its training: see `Pair.training`."""
    rows = read_metrics(folder / METRICS)
    seen = {0: {"seconds": 0.0, "tokens": 0, "skipped": 0}}
    seen |= {row["step"]: row for row in rows if row["kind"] == "train"}
    validation = [
        {
            "step": row["step"],
            "tokens": seen[row["step"]]["tokens"],
            "seconds": seen[row["step"]]["seconds"],
            "nats_per_token": row["nats_per_token"],
            "stderr": row.get("nats_per_token_stderr"),
        }
        for row in rows
        if row["kind"] == "validation" and row["step"] in seen
    ]
    best = arrival([Checkpoint(index, 0.0, row["nats_per_token"]) for index, row in enumerate(validation)])
    last = seen[max(seen)]
    return {
        "steps": max(seen),
        **{key: last[key] for key in ("tokens", "seconds", "skipped")},
        "arrival": validation[best.steps] if best else None,
        "validation": validation,
    }


def _with_validations(config: Config) -> Any:
    """The slow loop with as many validations as the bound at equal seconds needs."""
    often = max(1, config.slow.steps // VALIDATIONS)
    return dataclasses.replace(config.slow, eval_every=min(config.slow.eval_every or often, often))


def _open_tokens(
    config: Config, data: str | Path | Sequence[str], out: Path, reading: Reading | None, on_prepare: Any
) -> tuple[Path, TokenDataset]:
    """The folder of tokens to train on, the one named or `out/data`, and its validation split, on which to judge."""
    sources = [str(data)] if isinstance(data, str | Path) else [str(source) for source in data]
    if not sources:
        raise UserError("nothing to train on; name the text with --data")
    folder = Path(sources[0])
    is_new = not out.exists()
    if len(sources) > 1 or not is_token_folder(folder):
        folder = out / "data"
        if not config.data.validation_fraction:
            raise UserError("data.validation_fraction = 0: decoders are judged on text that is held out; hold some out")
        if is_token_folder(folder):
            held = TokenFolder.open(folder).meta["sources"]
            if held != sources:
                raise UserError(
                    f"{folder}: holds the tokens of {', '.join(held)}, and not of {', '.join(sources)}: name that "
                    "folder with --data, or choose another --out"
                )
        else:
            with clear_errors(out):
                out.mkdir(parents=True, exist_ok=True)
            try:
                prepare(sources, folder, Preparation.of(config), reading=reading, progress=on_prepare)
            except BaseException:
                if is_new:
                    with contextlib.suppress(OSError):  # it holds something after all
                        out.rmdir()
                raise
    validation = TokenDataset(folder, "validation")
    vocab_size = config.model.vocab_size or validation.vocab_size
    check_fits(dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=vocab_size)), validation)
    return folder, validation


def _flat(config: Config) -> dict[str, Any]:
    """What all pairs share, by dotted keys."""
    flat: dict[str, Any] = {"seed": config.seed, "dtype": config.dtype, "optimizer": _written(config.optimizer)}
    for section in ("model", "fast", "slow"):
        flat |= {f"{section}.{key}": value for key, value in dataclasses.asdict(getattr(config, section)).items()}
    for key in (*PLAN[1:], "slow.save_minutes"):  # none of a comparison's
        flat.pop(key)
    return flat


def _written(component: Any) -> str:
    """A component as `name(option=value, ...)`."""
    options = ", ".join(f"{key}={value}" for key, value in component.options.items())
    return f"{component.name}({options})"


def _slug(guide: str, objective: str) -> str:
    """A folder's name for a pair."""
    return "".join(letter if letter.isalnum() or letter in "-.=" else "_" for letter in f"{guide}--{objective}")


__all__ = ["compare_run", "compare_training", "training_figures"]
