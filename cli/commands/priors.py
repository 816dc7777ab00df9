"""`pyro-ltm priors`: the priors over thoughts."""

from __future__ import annotations

import click

from ..options import Common, common, examples


@click.command(
    short_help="List the priors.",
    epilog=examples("pyro-ltm priors", "pyro-ltm priors --json"),
)
@common(unused=("seed", "device", "dtype"))
def command(*, common: Common) -> None:
    """Lists the priors over thoughts: what each is, what it costs, when to use it, and the paper it comes from.

    A name takes its arguments after colons, as in mixture:16; as settings, options go under [prior]. With --json, an
    object whose `priors` have name, summary and reference.
    """
    from pyro_ltm.priors import PRIORS

    from ..registry import show

    show(
        "priors",
        PRIORS,
        common.as_json,
        "pyro-ltm train --set prior.name=mixture --set objective.name=stl --data python-docs --out runs/mine",
    )
