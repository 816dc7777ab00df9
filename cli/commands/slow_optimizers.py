"""`pyro-ltm slow-optimizers`: the slow optimizers."""

from __future__ import annotations

import click

from ..options import Common, common, examples


@click.command(
    short_help="List the slow optimizers.",
    epilog=examples("pyro-ltm slow-optimizers", "pyro-ltm slow-optimizers --json"),
)
@common(unused=("seed", "device", "dtype"))
def command(*, common: Common) -> None:
    """Lists the slow optimizers, which move the decoder.

    What each is, what it costs, when to use it, and the paper it comes from.

    A name takes its arguments after colons, as in muon:0.01; as settings, options go under [slow_optimizer]. With
    --json, an object whose `slow_optimizers` have name, summary and reference.
    """
    from pyro_ltm.optimizers.slow import SLOW_OPTIMIZERS

    from ..registry import show

    show(
        "slow_optimizers",
        SLOW_OPTIMIZERS,
        common.as_json,
        "pyro-ltm train --set slow_optimizer.name=muon --set slow.lr=0.06 --data python-docs --out runs/mine",
    )
