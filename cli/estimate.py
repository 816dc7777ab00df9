"""The notice before work that takes more than `LONG` seconds: what was chosen, how long it takes, what to do else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_ltm.config import Config
    from pyro_ltm.data import TokenDataset

LONG = 120.0
"""Seconds; of what is done sooner nothing is said."""


def announce(config: Config, data: TokenDataset, step: int, device: str) -> None:
    """Says what is about to be trained, and how long that takes on this machine, where it takes long.

    Args:
        step: slow steps that are done already.
    """
    from pyro_ltm.errors import UserError
    from pyro_ltm.profiling.speed import estimate_seconds

    from .output import note

    slow = config.slow
    try:
        seconds = estimate_seconds(config, data, device=device) * (slow.steps - step) / slow.steps
    except UserError:  # such as a loss that is not finite: the training meets it itself, and leaves a report
        return
    if seconds < LONG:
        return
    if config.model.thoughts:
        what = f"guide {config.guide.name}, objective {config.objective.name}, {config.fast.steps} fast steps each"
    else:
        what = "without thoughts"
    note(
        f"Training takes about {duration(seconds)} here: {slow.steps - step:,} slow steps of {slow.sequences} "
        f"sequences, at most {data.sequence_length:,} tokens; {what}. "
        "Less: --steps N, another --preset, or --set fast.steps=N."
    )


def announce_guides(pairs: int, steps: int, seconds: float) -> None:
    """Says how long guides with parameters of their own learn before they are compared, where that takes long.

    Args:
        pairs: that such a guide is in. steps: slow steps of each. seconds: of all of them.
    """
    from .output import note

    if seconds >= LONG:
        note(
            f"Guides with parameters of their own (pairs: {pairs}) learn {steps} slow steps under this decoder before "
            f"they are scored: about {duration(seconds)} here, if all are as long as the first. Less: --guide-steps N, "
            "fewer --guides; --guide-steps 0 takes them as they are."
        )


def duration(seconds: float) -> str:
    """Seconds as people say them: `35 ms`, `4.2 s`, `12 min`, `3 h 20 min`, `5.1 days`."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"
