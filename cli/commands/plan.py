"""`pyro-ltm plan`: what a training would take on devices that need not be here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..options import (
    FOLDER,
    Common,
    FiniteRange,
    common,
    config_option,
    examples,
    gathered,
    preset_option,
    settings_option,
)

if TYPE_CHECKING:
    from pyro_ltm.config import Config
    from pyro_ltm.data import TokenDataset
    from pyro_ltm.profiling.devices import Device
    from pyro_ltm.profiling.plan import Pace, Plan

ABOVE_ZERO = FiniteRange(0, min_open=True)


def _devices(
    devices: str, device_memory: float | None, device_flops: float | None, link_rate: float | None
) -> tuple[int, Device]:
    import dataclasses

    from pyro_ltm.profiling.devices import parse_devices

    memory = None if device_memory is None else round(device_memory * 10**9)
    count, device = parse_devices(devices, memory_bytes=memory)
    if device_flops is not None:
        device = dataclasses.replace(device, half_flops=device_flops * 1e12, single_flops=device_flops * 1e12)
    return count, device if link_rate is None else dataclasses.replace(device, link_bytes=link_rate * 10**9)


devices_options = gathered(
    "on",
    _devices,
    click.option("--devices", metavar="NxNAME", required=True, help="How many of which, such as 8xH100 or 2xcpu."),
    click.option("--device-memory", metavar="GB", type=ABOVE_ZERO, help="Memory of each; default: of its data sheet."),
    click.option(
        "--device-flops",
        metavar="TFLOPS",
        type=ABOVE_ZERO,
        help="Operations a second in the training's precision; default: of its data sheet.",
    ),
    click.option(
        "--link-rate", metavar="GB/S", type=ABOVE_ZERO, help="What each sends in a second; default: of its data sheet."
    ),
)


@click.command(
    short_help="Memory, time and cost of a training on other devices.",
    epilog=examples(
        "pyro-ltm plan --preset medium --devices 8xH100",
        "pyro-ltm plan --preset large --devices 4x4090 --link-rate 12 --price 0.4",
        "pyro-ltm plan --config runs/mine/config.toml --data data/mine --devices 1xA100 --rate 30000",
        "pyro-ltm plan --preset nano --devices 1xcpu --measure",
    ),
)
@preset_option
@config_option
@settings_option
@devices_options
@click.option("--data", type=FOLDER, metavar="DIR", help="A folder that `prepare` wrote: its vocabulary and tokens.")
@click.option("--tokens", metavar="N", type=ABOVE_ZERO, help="Tokens to train on; default: those of slow.steps.")
@click.option("--rate", metavar="N", type=ABOVE_ZERO, help="Tokens a second of one device; default: as --utilisation.")
@click.option("--measure", is_flag=True, help="Measure that rate on this machine's --device, as bench does.")
@click.option(
    "--utilisation",
    metavar="SHARE",
    type=FiniteRange(0, 1, min_open=True),
    help="Share of the devices' operations a second that is reached; default: 0.11, the least that an H100 did.",
)
@click.option("--price", metavar="X", type=ABOVE_ZERO, help="Of a device for an hour.")
@common(seed=None, seed_help="Without effect here.", code=True)
def command(
    *,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    on: tuple[int, Device],
    data: Path | None,
    tokens: float | None,
    rate: float | None,
    measure: bool,
    utilisation: float | None,
    price: float | None,
    common: Common,
) -> None:
    """Says what a training would take on other devices: memory by part, what is sent, tokens a second, time and cost.

    Trains nothing. Memory is that of the step itself, which is run without numbers and tensor by tensor counted;
    on top come what kernels take for themselves and what the allocator leaves unused. --config may name a run folder.
    """
    if (rate is not None) + measure + (utilisation is not None) > 1:
        raise click.UsageError("--rate, --measure and --utilisation say the same thing: give one of them")
    from pyro_ltm.data import TokenDataset
    from pyro_ltm.data.folder import is_token_folder
    from pyro_ltm.profiling.plan import Pace, plan_training
    from pyro_ltm.profiling.speed import with_vocabulary
    from pyro_ltm.training.launch import as_the_data_are

    from ..options import given
    from .train import base_config, configure, default_preset

    if config_file is not None and config_file.is_dir():
        config_file = config_file / "config.toml"
    preset = preset or default_preset([str(data)] if data and is_token_folder(data) else [])
    config = configure(base_config(preset, []), config_file, settings, common)
    dataset = None if data is None else TokenDataset(data)
    config = with_vocabulary(config) if dataset is None else as_the_data_are(config, dataset)
    pace = Pace(**given(rate=rate, utilisation=utilisation, tokens=tokens, price=price))
    count, device = on
    if measure:
        pace = _measured(pace, config, dataset, device, common.device)
    plan = plan_training(config, count, device, pace)
    epochs = None if dataset is None else plan.tokens / dataset.tokens
    _report(plan, str(config_file) if config_file else preset, epochs, common.as_json)


def _measured(pace: Pace, config: Config, dataset: TokenDataset | None, device: Device, name: str) -> Pace:
    """`pace` with the rate of this machine's device, from one round of `bench`."""
    import dataclasses

    import torch

    from pyro_ltm.model.precision import resolve_dtype
    from pyro_ltm.profiling.speed import measure_speed

    from ..progress import reporter
    from ..runs import check_device

    here = check_device(name)
    kind = torch.device(here).type
    if kind != device.kind:
        raise click.UsageError(f"--measure times this machine's {kind}, and {device.name} is none: give --rate")
    with reporter() as report:
        counting = report.counting("bench", 1, "rounds")
        speed = measure_speed(
            resolve_dtype(config, here),
            dataset,
            device=here,
            rounds=1,
            on_round=lambda done: counting(done, float("nan")),
        )
    return dataclasses.replace(pace, rate=speed.tokens_per_second, rate_from=f"measured on this machine's {here}")


def _report(plan: Plan, name: str, epochs: float | None, as_json: bool) -> None:
    from ..output import emit, say, show_table, size_of

    if as_json:
        emit({**plan.to_dict(), "epochs": epochs, "of": name})
        return
    sharing, phases = plan.sharing, plan.sharing.phases
    on = f"{plan.count} x {plan.device.name}" + (f", {sharing.kind}" if plan.count > 1 else "")
    names = list(dict.fromkeys(part for parts in phases.values() for part in parts))
    rows = [[part, *(size_of(parts[part]) if part in parts else "" for parts in phases.values())] for part in names]
    rows.append(["all of it", *(size_of(sum(parts.values())) for parts in phases.values())])
    show_table(f"{name} on {on}, {plan.config.dtype}: memory of each device", ["", *phases], rows)
    _say_whether_it_fits(plan)
    say(f"Checkpoints are written from a copy of {size_of(plan.copy_bytes)} in the first process's main memory.")
    if plan.count > 1:
        show_table("Sharing", ["distributed.kind", "memory at the peak", "fits", "sent in a step", "for"], _kinds(plan))
        say("Sent by each device once in a slow step; fast steps send nothing.")
    show_table("Time", ["", ""], _times(plan, epochs))
    say(f"The rate: {plan.rate_from}. Validations and saves come on top; sending takes time of its own.")


def _say_whether_it_fits(plan: Plan) -> None:
    from pyro_ltm.profiling.plan import USABLE

    from ..output import say, size_of

    sharing, device = plan.sharing, plan.device
    peak = f"The peak is {size_of(sharing.peak_bytes)}, in the {sharing.peak}"
    room = f"{USABLE:.0%} of {device.name}'s {size_of(device.memory_bytes)} ({device.source}; the rest is the driver's)"
    if sharing.fits:
        say(f"{peak}: it fits into {room}.")
    elif plan.fitting is None:
        say(f"{peak}: that does not fit into {room}, and neither do smaller micro-batches, slow.recompute or fsdp.")
    else:
        settings = " ".join(f"--set {setting}" for setting in plan.fitting)
        say(f"{peak}: that does not fit into {room}. This would: {settings}")


def _kinds(plan: Plan) -> list[list[str]]:
    from ..estimate import duration
    from ..output import size_of

    return [
        [
            kind,
            size_of(each.peak_bytes),
            "yes" if each.fits else "no",
            size_of(each.sent_bytes),
            "-" if each.send_seconds is None else duration(each.send_seconds),
        ]
        for kind, each in plan.sharings.items()
    ]


def _operations(count: int) -> str:
    return f"{count / 1e12:,.4g} TFLOP" if count >= 1e12 else f"{count / 1e9:,.4g} GFLOP"


def _times(plan: Plan, epochs: float | None) -> list[list[str]]:
    from ..estimate import duration

    pieces = f"{plan.micro_batches} micro-batches of {plan.micro_batch} sequences"
    rows = [
        ["a slow step, on each device", f"{pieces if plan.micro_batches > 1 else pieces.replace('batches', 'batch')}"],
        ["operations of a fast step, of a micro-batch", _operations(plan.fast_operations)],
        ["operations of the slow step, of a micro-batch", _operations(plan.slow_operations)],
        ["tokens in a slow step", f"{plan.step_tokens:,}"],
    ]
    if plan.step_seconds is not None and plan.seconds is not None:
        rows += [
            ["seconds of a slow step with its fast steps", duration(plan.step_seconds)],
            ["tokens a second", f"{plan.tokens_per_second:,.0f}"],
            [f"the run's {plan.steps:,} steps, {plan.tokens:,} tokens", duration(plan.seconds)],
            ["hours of devices", f"{plan.device_hours:,.1f}"],
        ]
    if epochs is not None:
        rows.append(["times over the data", f"{epochs:,.1f}"])
    if plan.cost is not None:
        rows.append(["cost", f"{plan.cost:,.2f}"])
    return rows
