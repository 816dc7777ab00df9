"""`pyro-ltm bench`: what training costs on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..options import FOLDER, Common, common, config_option, examples, number, preset_option, settings_option

if TYPE_CHECKING:
    from pyro_ltm.config import Config
    from pyro_ltm.profiling.speed import Speed


@click.command(
    short_help="What training costs on this machine.",
    epilog=examples(
        "pyro-ltm bench --preset nano",
        "pyro-ltm bench --preset medium --set slow.batch_size=1 --set fast.subsample=4",
        "pyro-ltm bench --preset small --data data/mine --device cuda --dtype bfloat16",
    ),
)
@preset_option
@config_option
@settings_option
@click.option("--data", type=FOLDER, metavar="DIR", help="A folder that `prepare` wrote, to know what an epoch takes.")
@number("--rounds", "Each time is the median of so many.", default=3)
@common(seed=None, seed_help="Seed of weights and tokens; the same as --set seed=N.", code=True)
def command(
    *,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    data: Path | None,
    rounds: int,
    common: Common,
) -> None:
    """Times fast steps and the slow step of a training run, and says what a step, and an epoch of your data, will take.

    Trains nothing and writes nothing. Without --data the tokens are random, which cost as much as any. The run's time
    includes its validations, not the files that it saves.

    Memory in --json: weights_bytes, optimizer_bytes, peak_bytes (a step's, beyond those two), total_bytes (all three).
    """
    from pyro_ltm.data.folder import is_token_folder

    from .train import base_config, configure, default_preset

    preset = preset or default_preset([str(data)] if data and is_token_folder(data) else [])
    config = configure(base_config(preset, []), config_file, settings, common)

    from ..runs import check_device

    device = check_device(common.device)
    from pyro_ltm.data import TokenDataset
    from pyro_ltm.model.precision import resolve_dtype
    from pyro_ltm.profiling.speed import measure_speed, with_vocabulary
    from pyro_ltm.training.launch import as_the_data_are

    from ..output import note
    from ..progress import reporter

    if (busy := other_work()) is not None:
        note(f"Other work keeps {busy:.1f} of {os.cpu_count()} cores busy: the times will be too long.")
    dataset = None if data is None else TokenDataset(data)
    config = with_vocabulary(config) if dataset is None else as_the_data_are(config, dataset)
    config = resolve_dtype(config, device)
    with reporter() as report:
        count = report.counting("bench", rounds, "rounds")
        speed = measure_speed(
            config, dataset, device=device, rounds=rounds, on_round=lambda done: count(done, float("nan"))
        )
    _report(speed, config, preset, data, device, common.as_json)


def _report(speed: Speed, config: Config, preset: str, data: Path | None, device: str, as_json: bool) -> None:
    import torch

    from ..estimate import duration
    from ..output import emit, say, show_next, show_table

    threads = torch.get_num_threads()
    if as_json:
        emit({**speed.to_dict(), "preset": preset, "device": device, "threads": threads, "dtype": config.dtype})
        return
    where = f"{device}, {threads} threads" if device == "cpu" else device
    length = config.model.max_length
    rows = [
        ["a fast step", duration(speed.fast_seconds)],
        ["a slow step", duration(speed.slow_seconds)],
        ["a training step", duration(speed.step_seconds)],
        ["in fast steps", f"{speed.fast_share:.0%}"],
        ["waiting for data", f"{speed.accumulate * speed.data_seconds / speed.step_seconds:.1%}"],
        ["tokens a second", f"{speed.tokens_per_second:,.0f}"],
    ]
    memory = {
        "memory: weights": speed.weights_bytes,
        "memory: optimizer state": speed.optimizer_bytes,
        "memory: a step's peak, beyond those": speed.peak_bytes,
        "memory: total": speed.total_bytes,
    }
    rows += [[what, f"{size / 2**20:,.1f} MiB"] for what, size in memory.items() if size is not None]
    if speed.epoch_seconds is not None:
        rows.append([f"an epoch of {data} ({speed.corpus_tokens:,} tokens)", duration(speed.epoch_seconds)])
    if speed.decoder_warmup_steps:
        rows.append(["a training step without thoughts, at first", duration(speed.decoder_warmup_step_seconds)])
    if speed.validations:
        rows.append(["a validation", duration(speed.validation_seconds)])
    validations = f" and {speed.validations:,} validations" if speed.validations else ""
    rows.append([f"the run's {speed.steps:,} steps{validations}", duration(speed.run_seconds)])
    title = f"{preset} on {where}, {config.dtype}"
    show_table(title, ["", ""], rows)
    pieces = f"{speed.accumulate} micro-batches of " if speed.accumulate > 1 else ""
    if speed.decoder_warmup_steps:
        say(
            f"In the first {speed.decoder_warmup_steps:,} of the run's steps the decoder learns without thoughts; "
            "tokens a second and an epoch are those of the others."
        )
    say(
        f"A training step: {pieces}{speed.sequences} sequences of at most {length} tokens, {speed.fast_steps} fast "
        f"steps and a slow one. Medians of {speed.rounds}; each fast step costs the same and a few were timed. "
        "Only the run's time includes validations, and none includes saves."
    )
    source = str(data) if data else "SOURCE_OR_DIR"
    show_next(["pyro-ltm", "train", "--preset", preset, "--data", source, "--out", "runs/first"])


def other_work() -> float | None:
    """Cores that were busy over the last minute, where that is more than half a core; None where nobody counts them."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return busy if busy > 0.5 else None
