"""`pyro-ltm objectives`: the bounds."""

from __future__ import annotations

import click

from ..options import Common, common, examples


@click.command(
    short_help="List the objectives.",
    epilog=examples("pyro-ltm objectives", "pyro-ltm objectives --json"),
)
@common(unused=("seed", "device", "dtype"))
def command(*, common: Common) -> None:
    """Lists the objectives: what each is, what it costs, when to use it, and the paper it comes from.

    A name takes its arguments after colons, as in iwae:16; as settings, options go under [objective]. With --json, an
    object whose `objectives` have name, summary and reference.
    """
    from pyro_ltm.objectives import OBJECTIVES

    from ..registry import show

    show(
        "objectives",
        OBJECTIVES,
        common.as_json,
        "pyro-ltm train --set objective.name=elbo --data python-docs --out runs/mine",
        "pyro-ltm compare RUN --guides mean-field --objectives all --out compare",
    )
