"""`pyro-ltm guides`: the posterior families."""

from __future__ import annotations

import click

from ..options import Common, common, examples


@click.command(
    short_help="List the posterior families.",
    epilog=examples("pyro-ltm guides", "pyro-ltm guides --json"),
)
@common(unused=("seed", "device", "dtype"))
def command(*, common: Common) -> None:
    """Lists the posterior families: what each is, what it costs, when to use it, and the paper it comes from.

    A name takes its arguments after colons, as in low-rank:8; as settings, options go under [guide]. With --json, an
    object whose `guides` have name, summary and reference.
    """
    from pyro_ltm.inference import FAMILIES

    from ..registry import show

    show(
        "guides",
        FAMILIES,
        common.as_json,
        "pyro-ltm train --set guide.name=low-rank --data python-docs --out runs/mine",
        "pyro-ltm compare RUN --guides all --objectives elbo,map --out compare",
    )
