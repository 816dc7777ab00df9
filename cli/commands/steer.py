"""`pyro-ltm steer`: thoughts moved towards a label."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import Common, Text, common, examples, reading_options, run_argument
from ..thought_options import (
    Numbers,
    check_plot,
    draw,
    fitting_of,
    fitting_options,
    layers_option,
    plot_option,
    rows_of,
    say_if_nothing,
    show_ends,
    writing_options,
    written_at,
)

if TYPE_CHECKING:
    from pyro_ltm.data import Reading
    from pyro_ltm.thoughts.points import Writing
    from pyro_ltm.thoughts.steering import Steered


@click.command(
    short_help="Write from thoughts moved towards a label.",
    epilog=examples(
        "pyro-ltm steer runs/first --labels reviews.jsonl --label-column stars --towards 5",
        "pyro-ltm steer runs/first --labels thoughts.parquet --label-column mood --towards sad --text 'A dog ran.'",
        "pyro-ltm steer runs/first --labels worlds --label-column mood --towards sad --strength 0,9 --plot mood.svg",
    ),
)
@run_argument
@click.option(
    "--labels",
    "source",
    required=True,
    metavar="SOURCE",
    help="Texts with labels (.jsonl, ...), or what `embed` wrote.",
)
@click.option("--label-column", required=True, metavar="NAME", help="The column of --labels to read off the thoughts.")
@click.option("--towards", required=True, metavar="LABEL", type=Text(), help="The label to move towards.")
@click.option(
    "--text", type=Text(), help="The text whose thoughts are moved, or @FILE; default: the mean of all thoughts."
)
@click.option(
    "--strength",
    "strengths",
    type=Numbers(float),
    metavar="X,...",
    default="0,1,2,4",
    help="How far, in standard deviations of the texts along the direction; below 0: away from the label.",
)
@reading_options
@layers_option("Layers whose thoughts are moved, from 0; default: all.")
@writing_options
@plot_option
@fitting_options
@common(seed_help="Seed of all that is random, the probe's folds too.", weights=True)
def command(
    *,
    run_folder: Path,
    source: str,
    label_column: str,
    towards: str,
    text: str | None,
    strengths: tuple[float, ...],
    reading: Reading,
    layers: tuple[int, ...] | None,
    writing: Writing,
    plot: Path | None,
    how: dict[str, Any],
    common: Common,
) -> None:
    """Finds the direction of a label with a linear probe of labelled texts, moves thoughts along it, and writes.

    The probe's accuracy on texts that it has not seen stands above the table: where it is no better than a guess, the
    direction means nothing.
    """
    from pyro_ltm.thoughts.expression import text_of
    from pyro_ltm.thoughts.steering import labels_of, steer

    from ..output import emit
    from ..runs import open_run

    check_plot(plot)
    text, fitting = None if text is None else text_of(text), fitting_of(how, common.seed)
    run = open_run(run_folder, common)
    reading = dataclasses.replace(reading, columns=(label_column,))
    rows = rows_of(run, source, fitting, reading, layers=layers).rows.pooled()
    labels = labels_of(rows, label_column)
    options: dict[str, Any] = {"text": text, "strengths": strengths, "name": label_column}
    found = steer(run, rows, labels, towards, **options, fitting=fitting, writing=writing)
    if common.as_json:
        emit({**found.to_dict(), **run.about, **fitting.about(run)})
    else:
        _show(found)

    def picture() -> Any:
        from pyro_ltm.reports.points_plots import plot_steering

        return plot_steering(found)

    draw(picture, plot, common.as_json)


def _show(found: Steered) -> None:
    from ..output import margin, nats, note, say, show_table

    probe, towards = found.direction.probe, found.direction.towards
    right = f"{probe.accuracy:.3f}{margin(probe.stderr, 3)}"
    say(
        f"A probe of {probe.label} is right about {right} of {probe.texts:,} texts; "
        f"a guess about {probe.majority:.3f}, shuffled labels {probe.control:.3f}."
    )
    if found.direction.is_a_guess:
        note(f"Warning: that is no better than a guess, so the direction towards '{towards}' may mean nothing.")
    show_ends(found.points)
    ends = [end.name for end in found.points.ends]
    rows = [
        [point.name, f"{chance:.3f}", *(nats(point.nats_per_token[end], 3) for end in ends), written_at(point)]
        for point, chance in zip(found.points.points, found.probabilities, strict=True)
    ]
    columns = ["strength", f"p({towards})", *(f"nats, {end}" for end in ends), "text"]
    show_table(f"Thoughts moved towards {towards}", columns, rows, texts=("text",))
    say_if_nothing(found.points.points)
