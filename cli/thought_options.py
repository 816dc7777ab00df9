"""Options that the commands that use thoughts have in common, and how these show points and neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import (
    FOLDER,
    Text,
    batch_size,
    fast_steps,
    fit_settings,
    gathered,
    number,
    reading_options,
    sampling,
)

if TYPE_CHECKING:
    from pyro_ltm.data import Reading
    from pyro_ltm.runs import Run
    from pyro_ltm.thoughts.neighbours import Neighbour
    from pyro_ltm.thoughts.points import Point, Points, Writing
    from pyro_ltm.thoughts.rows import Fitting, Rows

F = TypeVar("F", bound=Callable[..., Any])

SHOWN = 300
"""Characters of a text in a table; --json has all of it."""


class Numbers(click.ParamType):
    """Numbers with commas between them."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]):
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers, as a tuple."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            what = "whole numbers" if self._kind is int else "numbers"
            self.fail(f"'{value}': expected {what} with commas between them, such as 0,1", param, ctx)


class Words(click.ParamType):
    """Names with commas between them."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names, as a tuple."""
        return value if isinstance(value, tuple) else tuple(part.strip() for part in str(value).split(",") if part)


def _fitting(fast_steps: int | None, settings: tuple[str, ...], batch_size: int) -> dict[str, Any]:
    return {"fast_steps": fast_steps, "settings": settings, "batch_size": batch_size}


fitting_options = gathered("how", _fitting, fast_steps, fit_settings, batch_size)
"""Adds the options of how posteriors are fitted, and hands them over as one argument `how` (see `fitting_of`)."""


def fitting_of(how: dict[str, Any], seed: int | None) -> Fitting:
    """`Fitting` of the options and the seed."""
    from pyro_ltm.thoughts.rows import Fitting

    return Fitting(**how, seed=seed or 0)


def layers_option(help: str, **more: Any) -> Callable[[F], F]:
    """Adds --layers."""
    return click.option("--layers", "--layer", "layers", metavar="0,1,...", type=Numbers(int), help=help, **more)


id_column_option = click.option(
    "--id-column", metavar="NAME", help="Column or JSON field that names each document; default: id, if there is one."
)


def _documents(reading: Reading, columns: tuple[str, ...], id_column: str | None) -> Reading:
    return dataclasses.replace(reading, columns=columns, id_column=id_column)


documents_options = gathered(
    "reading",
    _documents,
    click.option(
        "--columns", metavar="NAME,...", type=Words(), default=(), help="Columns or JSON fields to carry along."
    ),
    id_column_option,
    reading_options,
)
"""Adds the options of how documents are read, and what goes along with them, as one argument `reading`."""

plot_option = click.option("--plot", type=FOLDER, metavar="FILE", help="A picture to draw, .png or .svg.")
metric_option = click.option(
    "--metric",
    type=click.Choice(["cosine", "euclid", "wasserstein", "kl"]),
    default="cosine",
    help="Of posterior means: cosine, euclid; of posteriors: wasserstein, kl.",
)


def among_options(required: bool = False) -> Callable[[F], F]:
    """Adds --among, how it is read (`documents_options`), and --count."""
    among = click.option(
        "--among",
        required=required,
        metavar="SOURCE",
        help="Documents: text as `prepare` takes it, or what `embed` wrote.",
    )
    options = (
        among,
        number("--count", "Neighbours to name; default: 10, or all if there are fewer."),
        documents_options,
    )

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _writing(prompt: str, num: int, max_new_tokens: int | None, sampler: Any) -> Writing:
    from pyro_ltm.thoughts.points import Writing

    return Writing(prompt=prompt, num=num, max_new_tokens=max_new_tokens, sampler=sampler)


writing_options = gathered(
    "writing",
    _writing,
    click.option("--prompt", type=Text(), default="", help="What each text begins with."),
    number("--num", "Texts to write from each point.", default=1),
    number("--max-new-tokens", "At most so many each; default: what the model can hold."),
    sampling(temperature=0.0),
)
"""Adds the options of what is written from thoughts, and hands them over as one argument `writing`, a `Writing`."""


def check_plot(plot: Path | None) -> None:
    """Raises UserError when the picture cannot be drawn, before any work is done."""
    if plot is not None:
        from pyro_ltm.reports.plots import check_picture

        from .runs import check_target

        check_picture(plot)
        check_target(plot)


def draw(figure: Callable[[], Any], plot: Path | None, as_json: bool) -> None:
    """Draws the picture, where one was asked for, and says so."""
    if plot is not None:
        from pyro_ltm.reports.plots import write_picture

        from .output import say

        write_picture(figure(), plot)
        if not as_json:
            say(f"Picture written to {plot}")


def rows_of(run: Run, source: str, fitting: Fitting, reading: Reading, **more: Any) -> Rows:
    """`read_rows` of the library, which shows how far it is, and says what may not be expected of the text."""
    import math

    from pyro_ltm.thoughts.rows import read_rows

    from .output import note
    from .progress import reporter
    from .sources import remarks

    with reporter() as report:
        count: Callable[[int, float], None] | None = None

        def progress(done: int, total: int) -> None:
            nonlocal count
            count = count or report.counting("fit", total)
            count(done, math.nan)

        found = read_rows(run, source, fitting, reading=reading, progress=progress, say=note, **more)
    for line in remarks(found.read):
        note(line)
    say_went_on(found.earlier)
    if found.without_text:
        note(f"Documents without text, left out: {found.without_text:,}.")
    return found


def say_went_on(earlier: int) -> None:
    """How many sequences need no fit, because a process that was killed had done them."""
    from .output import note

    if earlier:
        note(f"Went on from {earlier:,} sequences that an earlier process had fitted.")


def show_points(title: str, found: Points, *, first: str = "thoughts") -> None:
    """The texts that were given, with their bounds, and a table of points with what is written from each."""
    from .output import nats, say, show_table

    show_ends(found)
    ends = [end.name for end in found.ends]
    rows = [
        [point.name, *(nats(point.nats_per_token[end], 3) for end in ends), written_at(point)] for point in found.points
    ]
    show_table(title, [first, *(f"nats, {end}" for end in ends), "text"], rows, texts=("text",))
    say_if_nothing(found.points)
    if ends:
        say("nats: a token of that text under these very thoughts (distortion), without what thoughts cost.")


def show_ends(found: Points) -> None:
    """The texts that were given, each with its bound."""
    from pyro_ltm.errors import one_line

    from .output import nats, show_table

    rows = [
        [end.name, str(end.tokens), nats(-end.bound_nats / end.tokens, 3), one_line(end.text, SHOWN)]
        for end in found.ends
    ]
    if rows:
        show_table("Texts", ["", "tokens", "bound, nats a token", "text"], rows, texts=("text",))


def written_at(point: Point) -> str:
    """The text from a point, in a cell of a table."""
    from pyro_ltm.errors import one_line

    return "\n".join(one_line(one.text, SHOWN) if one.text.strip() else "(nothing)" for one in point.written)


def say_if_nothing(points: Sequence[Point]) -> None:
    """A line on what to do, where nothing was written from a point."""
    from .output import note

    if any(not one.text.strip() for point in points for one in point.written):
        note("(nothing): the likeliest text ends at once. Begin it with --prompt WORDS, or draw it: --temperature 1.")


def show_neighbours(title: str, found: Sequence[Neighbour], metric: str) -> None:
    """A table of neighbours, the nearest first."""
    from pyro_ltm.errors import one_line

    from .output import figure, show_table

    names = [name for name in (found[0].about if found else {}) if name not in ("document", "text")]
    rows = [
        [
            str(rank),
            figure(one.distance, 4),
            str(one.about["document"]),
            *(one_line(one.about[name], 40) for name in names),
            one_line(one.about["text"], SHOWN),
        ]
        for rank, one in enumerate(found, 1)
    ]
    show_table(title, ["", metric, "document", *names, "text"], rows, texts=(*names, "text"))


def neighbours_json(found: Sequence[Neighbour]) -> list[dict[str, Any]]:
    """For JSON."""
    return [{"distance": one.distance, **one.about} for one in found]


def labels_of(found: Sequence[Neighbour]) -> list[str]:
    """Names of neighbours in a picture, beside their rank: their ids, where they have some."""
    return [str(one.about.get("id") or "") for one in found]
