"""`pyro-ltm interpolate`: what is written on the way from one text's thoughts to another's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import Common, Text, common, examples, number, run_argument
from ..thought_options import check_plot, draw, fitting_of, fitting_options, plot_option, show_points, writing_options

if TYPE_CHECKING:
    from pyro_ltm.thoughts.points import Writing


@click.command(
    short_help="Texts on the way from one to another.",
    epilog=examples(
        "pyro-ltm interpolate runs/first 'A dog ran.' 'A cat slept.' --steps 7",
        "pyro-ltm interpolate runs/first @one.txt @other.txt --way spherical --plot way.png",
    ),
)
@run_argument
@click.argument("first", metavar="A", type=Text())
@click.argument("second", metavar="B", type=Text())
@number("--steps", "Points on the way, ends included.", default=7, least=2)
@click.option(
    "--way",
    type=click.Choice(["linear", "spherical"]),
    default="linear",
    help="A straight line; or the spherical way, which keeps the length of the ends.",
)
@writing_options
@plot_option
@fitting_options
@common(weights=True)
def command(
    *,
    run_folder: Path,
    first: str,
    second: str,
    steps: int,
    way: str,
    writing: Writing,
    plot: Path | None,
    how: dict[str, Any],
    common: Common,
) -> None:
    """Writes texts from points on the way from A's thoughts to B's, the likeliest token each time.

    A and B are texts, or @FILE. Beside each point stand the nats a token of A and of B under its thoughts, and above
    them the bounds of A and B, which charge the thoughts as well.
    """
    from pyro_ltm.thoughts.expression import text_of
    from pyro_ltm.thoughts.points import interpolate

    from ..output import emit
    from ..runs import open_run

    check_plot(plot)
    first, second, fitting = text_of(first), text_of(second), fitting_of(how, common.seed)
    run = open_run(run_folder, common)
    found = interpolate(run, first, second, steps=steps, way=way, fitting=fitting, writing=writing)
    if common.as_json:
        emit({**found.to_dict(), "way": way, **run.about, **fitting.about(run)})
    else:
        show_points(f"From A's thoughts to B's, the {way} way", found, first="share of B")

    def picture() -> Any:
        from pyro_ltm.reports.points_plots import plot_way

        return plot_way(found)

    draw(picture, plot, common.as_json)
