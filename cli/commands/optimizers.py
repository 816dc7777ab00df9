"""`pyro-ltm optimizers`: the fast optimizers."""

from __future__ import annotations

import click

from ..options import Common, common, examples


@click.command(
    short_help="List the fast optimizers.",
    epilog=examples("pyro-ltm optimizers", "pyro-ltm optimizers --json"),
)
@common(unused=("seed", "device", "dtype"))
def command(*, common: Common) -> None:
    """Lists the fast optimizers, which fit the posteriors.

    What each is, what it costs, when to use it, and the paper it comes from.

    A name takes its arguments after colons, as in lbfgs:8; as settings, options go under [optimizer]. With --json, an
    object whose `optimizers` have name, summary and reference.
    """
    from pyro_ltm.optimizers import OPTIMIZERS

    from ..registry import show

    show(
        "optimizers",
        OPTIMIZERS,
        common.as_json,
        "pyro-ltm train --set optimizer.name=natural --data python-docs --out runs/mine",
    )
