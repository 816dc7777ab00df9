"""Memory by part, bytes sent, tokens a second, time and cost of a training on devices that are not here."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from dataclasses import dataclass
from typing import Any

from pyro_ltm.config import Config, merge
from pyro_ltm.inference.build import check_config
from pyro_ltm.model.precision import resolve_dtype
from pyro_ltm.optimizers.slow import SLOW_OPTIMIZERS
from pyro_ltm.profiling.devices import Device
from pyro_ltm.profiling.simulation import (
    DATA,
    FAST,
    GRADIENTS,
    OPTIMIZER,
    SLOW,
    STEP,
    WEIGHTS,
    Simulation,
    simulate,
)
from pyro_ltm.training.parallel import check_shares

GATHERED, RECORDED = "weights, gathered", "recorded fast loop"
AVERAGE, BEST = "average of the weights", "weights of the best validation"
COPY = "copy that checkpoints are written from"

USABLE = 0.9
"""Share of a device's memory that a training may take: the rest is for the driver, for gaps that the allocator leaves,
and for what is being sent. An assumption."""

UTILISATION = 0.11
"""Share of the data sheet's operations that a training reaches, where nobody says better: on an H100 small, medium and
large reached 16%, 14% and 11% (benchmarks/notes/speed.md). An assumption for every other device."""

KINDS = ("ddp", "fsdp")


@dataclass(frozen=True)
class Sharing:
    """One process's part where several share a training.

    Attributes:
        kind: `ddp` or `fsdp`, as `distributed.kind`.
        phases: by phase, bytes of each part at the phase's peak; on CPUs of the first process, which keeps the copy.
        sent_bytes: that a device sends in a slow step; a fast step sends nothing.
        send_seconds: that takes, at the link's rate; None where that is not known.
        fits: whether the peak is within `USABLE` of the device's memory.
    """

    kind: str
    phases: dict[str, dict[str, int]]
    sent_bytes: int
    send_seconds: float | None
    fits: bool

    @property
    def peak(self) -> str:
        """The phase that holds most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak_bytes(self) -> int:
        """Most that a process holds."""
        return sum(self.phases[self.peak].values())


@dataclass(frozen=True)
class Plan:
    """Memory, traffic, time and cost of a training.

    Attributes:
        count, device: on what. config: of the training, with the precision that the device computes in.
        sharings: by kind; for one device the first alone counts.
        copy_bytes: of main memory, that the first process keeps to write checkpoints from.
        micro_batch, micro_batches: sequences in a micro-batch of a process, and how many it has in a slow step.
        fast_operations, slow_operations: of a fast step, and of the rest, of a micro-batch.
        step_tokens: targets that a slow step reads. steps: of the run.
        step_seconds: of a slow step with its fast steps; None where no rate is known. rate_from: how that is known.
        seconds: of all steps, without validations and saves.
        cost: of all devices for so long, in what the price was given in; None without one.
        fitting: settings with which it would fit; empty where it does, None where none was found.
    """

    count: int
    device: Device
    config: Config
    sharings: dict[str, Sharing]
    copy_bytes: int
    micro_batch: int
    micro_batches: int
    fast_operations: int
    slow_operations: int
    step_tokens: int
    steps: int
    step_seconds: float | None
    rate_from: str
    seconds: float | None
    cost: float | None
    fitting: tuple[str, ...] | None

    @property
    def sharing(self) -> Sharing:
        """That of the configuration's `distributed.kind`."""
        return self.sharings[self.config.distributed.kind]

    @property
    def tokens_per_second(self) -> float | None:
        """Targets learnt from in a second by all devices together."""
        return None if self.step_seconds is None else self.step_tokens / self.step_seconds

    @property
    def tokens(self) -> int:
        """Targets read in the run."""
        return self.steps * self.step_tokens

    @property
    def device_hours(self) -> float | None:
        """Of all devices together."""
        return None if self.seconds is None else self.count * self.seconds / 3600

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self) if entry.name != "config"}
        names = ("tokens_per_second", "tokens", "device_hours")
        sharings = {
            kind: {**vars(each), "peak": each.peak, "peak_bytes": each.peak_bytes}
            for kind, each in self.sharings.items()
        }
        more = {"device": vars(self.device), "sharings": sharings, "kind": self.config.distributed.kind}
        return {**values, **{name: getattr(self, name) for name in names}, **more, "dtype": self.config.dtype}


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast, how much and at what price.

    Args:
        rate: tokens a second of one device; None: from counted operations.
        rate_from: where the rate comes from.
        utilisation: share of the device's operations a second that counted operations reach.
        tokens: to be read in all; None: as many steps as the configuration has.
        price: of a device for an hour.
    """

    rate: float | None = None
    rate_from: str = "as given"
    utilisation: float = UTILISATION
    tokens: float | None = None
    price: float | None = None


def plan_training(config: Config, count: int, device: Device, pace: Pace | None = None) -> Plan:
    """The plan of a training of `config` on `count` devices, a process on each.

    Raises:
        UserError: whatever training would refuse.
    """
    pace = pace or Pace()
    config = _precise(config, device)
    check_config(config)
    check_shares(config, count)
    local = _local(config, count)
    found = simulate(local, device.kind)
    sharings = {kind: _sharing(found, config, count, device, kind) for kind in _kinds(config, count)}
    config = config if count > 1 else merge(config, {"distributed": {"kind": "ddp"}})
    sharing = sharings[config.distributed.kind]
    step_tokens = config.slow.sequences * config.model.max_length
    steps = config.slow.steps if pace.tokens is None else max(1, round(pace.tokens / step_tokens))
    step, alone, rate_from = _seconds(found, local, device, pace)
    sending = sharing.send_seconds or 0.0
    warmup = min(config.decoder_warmup_steps, steps)
    seconds = None if step is None else warmup * (alone + sending) + (steps - warmup) * (step + sending)
    return Plan(
        count=count,
        device=device,
        config=config,
        sharings=sharings,
        copy_bytes=_copied(found, config),
        micro_batch=local.slow.batch_size,
        micro_batches=local.slow.accumulate,
        fast_operations=found.fast_operations,
        slow_operations=found.slow_operations,
        step_tokens=step_tokens,
        steps=steps,
        step_seconds=None if step is None else step + sending,
        rate_from=rate_from,
        seconds=seconds,
        cost=None if seconds is None or pace.price is None else pace.price * count * seconds / 3600,
        fitting=() if sharing.fits else _fitting(config, count, device, found),
    )


def _kinds(config: Config, count: int) -> tuple[str, ...]:
    """Ways in which so many processes can share the training."""
    shares = count > 1 and SLOW_OPTIMIZERS.build(config.slow_optimizer).takes_shares
    return KINDS if shares else KINDS[:1]


def _precise(config: Config, device: Device) -> Config:
    """`config` with the precision that it takes on `device`: on a GPU `auto` is bfloat16."""
    if config.dtype == "auto" and device.kind == "cuda":
        return dataclasses.replace(config, dtype="bfloat16")
    return resolve_dtype(config, device.kind)


def _local(config: Config, count: int) -> Config:
    """The share of the busiest of so many processes, in micro-batches of the same size."""
    share = -(-config.slow.sequences // count)
    size = min(config.slow.batch_size, share)
    slow = dataclasses.replace(config.slow, batch_size=size, accumulate=-(-share // size))
    return dataclasses.replace(config, slow=slow)


def _sharing(found: Simulation, config: Config, count: int, device: Device, kind: str) -> Sharing:
    records = kind == "ddp" and _records(found, config, device)
    phases = {phase: _parts(found, config, phase, records) for phase in found.parts}
    weights = phases[SLOW][WEIGHTS]
    sent = 2 * found.learned_bytes
    if kind == "ddp" and count > 1:  # which keeps the memory that gradients are sent from
        phases = {phase: {**parts, GRADIENTS: found.learned_bytes} for phase, parts in phases.items()}
    if kind == "fsdp":
        phases = {phase: _sharded(parts, found, config, count, phase) for phase, parts in phases.items()}
        sent = weights + found.learned_bytes  # gathered once, and the gradients scattered
    if device.kind == "cpu":
        phases = {phase: {**parts, COPY: _copied(found, config)} for phase, parts in phases.items()}
    sent = round(sent * (count - 1) / count)  # of a ring, which each piece of them leaves out one device of
    peak = max(sum(parts.values()) for parts in phases.values())
    send = sent / device.link_bytes if device.link_bytes else None
    return Sharing(kind, phases, sent, send if sent else 0.0, peak <= USABLE * device.memory_bytes)


def _parts(found: Simulation, config: Config, phase: str, records: bool) -> dict[str, int]:
    """Bytes of one process that holds everything."""
    parts = dict(found.parts[phase])
    copies = {AVERAGE: bool(config.slow.average), BEST: config.slow.keep_best}
    parts |= {name: parts[WEIGHTS] for name, kept in copies.items() if kept}
    if records and phase != FAST:
        held = (WEIGHTS, GRADIENTS, DATA)
        fit = {name: size for name, size in found.parts[FAST].items() if name not in held}
        parts[RECORDED] = sum(size for name, size in fit.items() if not name.startswith(OPTIMIZER))
    return parts


def _is_saved(part: str) -> bool:
    """Whether a checkpoint has it, and FSDP shares it."""
    return part in (WEIGHTS, AVERAGE, BEST) or part.startswith(OPTIMIZER)


def _copied(found: Simulation, config: Config) -> int:
    """Bytes of a checkpoint."""
    return sum(size for part, size in _parts(found, config, SLOW, records=False).items() if _is_saved(part))


def _records(found: Simulation, config: Config, device: Device) -> bool:
    """Whether the fast loop is recorded, and its memory taken from then on."""
    fast = config.fast
    plain = fast.subsample == 1 and not fast.tolerance and not config.graft.base
    return device.kind == "cuda" and fast.record and plain and found.is_recorded and FAST in found.parts


def _sharded(parts: dict[str, int], found: Simulation, config: Config, count: int, phase: str) -> dict[str, int]:
    """The same where each of `count` processes keeps a share (FSDP); weights are whole from fast steps to slow step.

    Gradients are whole until those of the last micro-batch are there, and scattered then, layer by layer.
    """
    sharded = {
        name: -(-size // count) if name == GRADIENTS or _is_saved(name) else size for name, size in parts.items()
    }
    if phase != STEP:
        sharded[GATHERED] = parts[WEIGHTS]
    if phase != STEP and GRADIENTS in parts:
        whole = parts[GRADIENTS] if _local(config, count).slow.accumulate > 1 else max(found.groups)
        sharded[GRADIENTS] = min(whole + sharded[GRADIENTS], parts[GRADIENTS])
    return sharded


def _seconds(found: Simulation, local: Config, device: Device, pace: Pace) -> tuple[float | None, float, str]:
    """Seconds of a slow step, with its fast steps and without, and how they are known."""
    slow, micro_batches = local.slow, local.slow.accumulate
    alone = micro_batches * found.slow_operations
    whole = alone + micro_batches * found.fast_steps * found.fast_operations
    if pace.rate is not None:
        seconds = slow.sequences * local.model.max_length / pace.rate
        return seconds, seconds * alone / whole, f"{pace.rate:,.0f} tokens a second and device, {pace.rate_from}"
    flops = device.flops(local.dtype)
    if flops is None:
        return None, 0.0, f"operations a second of {device.name} are not known: give a rate"
    said = f"{pace.utilisation:.0%} of {flops / 1e12:,.0f} TFLOP/s in {local.dtype}"
    return whole / (pace.utilisation * flops), alone / (pace.utilisation * flops), said


def _fitting(config: Config, count: int, device: Device, found: Simulation) -> tuple[str, ...] | None:
    """Settings with which it would fit, those that cost least time first; None where none was found.

    Smaller micro-batches, as many sequences in all; then layers that are computed again; then weights that are shared.
    """
    slow = config.slow
    simulated = {(slow.batch_size, slow.recompute): found}
    sizes = [size for size in range(slow.batch_size, 0, -1) if slow.batch_size % size == 0]

    def settings(kind: str, recompute: bool, size: int) -> Config:
        changes = {"batch_size": size, "accumulate": slow.sequences // size, "recompute": recompute}
        return merge(config, {"slow": changes, "distributed": {"kind": kind}})

    def fits(kind: str, recompute: bool, size: int) -> bool:
        changed = settings(kind, recompute, size)
        if (size, recompute) not in simulated:
            simulated[size, recompute] = simulate(_local(changed, count), device.kind)
        return _sharing(simulated[size, recompute], changed, count, device, kind).fits

    for kind, recompute in itertools.product(_kinds(config, count), sorted({slow.recompute, True})):
        if fits(kind, recompute, sizes[-1]):
            size = next(size for size in sizes if fits(kind, recompute, size))
            return _differences(config, settings(kind, recompute, size))
    return None


def _differences(config: Config, changed: Config) -> tuple[str, ...]:
    """Settings that make the one of the other."""
    names = ("slow.batch_size", "slow.accumulate", "slow.recompute", "distributed.kind")
    values = {name: operator.attrgetter(name) for name in names}
    return tuple(f"{name}={str(get(changed)).lower()}" for name, get in values.items() if get(changed) != get(config))
