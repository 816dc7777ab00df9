"""`pyro-ltm swap`: a text's thoughts with another's in some layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import Common, Text, common, examples, run_argument
from ..thought_options import (
    check_plot,
    draw,
    fitting_of,
    fitting_options,
    layers_option,
    plot_option,
    show_points,
    writing_options,
)

if TYPE_CHECKING:
    from pyro_ltm.thoughts.points import Writing


@click.command(
    short_help="A text with another's thoughts in some layers.",
    epilog=examples(
        "pyro-ltm swap runs/first 'A dog ran.' 'A cat slept.' --layers 0",
        "pyro-ltm swap runs/first @one.txt @other.txt --layers 0,1 --plot swap.svg",
    ),
)
@run_argument
@click.argument("first", metavar="A", type=Text())
@click.argument("second", metavar="B", type=Text())
@layers_option("Layers whose thoughts are exchanged, from 0.", required=True)
@writing_options
@plot_option
@fitting_options
@common(weights=True)
def command(
    *,
    run_folder: Path,
    first: str,
    second: str,
    layers: tuple[int, ...],
    writing: Writing,
    plot: Path | None,
    how: dict[str, Any],
    common: Common,
) -> None:
    """Exchanges the thoughts of A and B in some layers, and writes from each.

    A and B are texts, or @FILE. Beside each point stand the nats a token of A and of B under its thoughts: they show
    which layers carry what.
    """
    from pyro_ltm.thoughts.expression import text_of
    from pyro_ltm.thoughts.points import swap

    from ..output import emit
    from ..runs import open_run

    check_plot(plot)
    first, second, fitting = text_of(first), text_of(second), fitting_of(how, common.seed)
    run = open_run(run_folder, common)
    found = swap(run, first, second, layers, fitting=fitting, writing=writing)
    if common.as_json:
        emit({**found.to_dict(), "layers": list(layers), **run.about, **fitting.about(run)})
    else:
        show_points("Thoughts exchanged", found)

    def picture() -> Any:
        from pyro_ltm.reports.points_plots import plot_points

        return plot_points(found)

    draw(picture, plot, common.as_json)
