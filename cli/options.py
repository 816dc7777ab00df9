"""What the commands share in what they take: options that every command has, types of arguments, examples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pyro_ltm.data import Tokenizer

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path)
"""A path; the library says what is wrong with it, in its own words."""


@dataclass(frozen=True)
class Common:
    """What every command takes. None: the configuration's or the run's own."""

    as_json: bool
    seed: int | None
    device: str
    dtype: str | None


class Text(click.ParamType):
    """Text from the command line, which the system may hand over as bytes that are no UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`value`, if it is valid Unicode."""
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.fail("not valid UTF-8", param, ctx)
        return str(value)


def examples(*lines: str) -> str:
    """An epilog with one command a line, kept as it is."""
    return "\b\n" + ("Example:" if len(lines) == 1 else "Examples:") + "".join(f"\n  {line}" for line in lines)


def common(
    *, seed: int | None = 0, seed_help: str = "Seed of all that is random.", unused: tuple[str, ...] = ()
) -> Callable[[F], F]:
    """Adds --seed, --device, --dtype and --json, and hands them over as one argument `common`.

    Args:
        seed: its default.
        unused: which of them change nothing in this command; they are taken all the same, so that a script can give
            the same options to every command, and the help says so.
    """

    def helped(name: str, text: str) -> str:
        return "Without effect here." if name in unused else text

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*, as_json: bool, seed: int | None, device: str, dtype: str | None, **rest: Any) -> Any:
            return function(common=Common(as_json, seed, device, dtype), **rest)

        for decorator in reversed(
            [
                click.option(
                    "--seed", type=click.IntRange(0), metavar="N", default=seed, help=helped("seed", seed_help)
                ),
                click.option(
                    "--device", metavar="NAME", default="cpu", help=helped("device", "cpu, cuda, cuda:1, mps.")
                ),
                click.option(
                    "--dtype",
                    type=click.Choice(["float32", "bfloat16", "auto"]),
                    help=helped("dtype", "Precision of the decoder's products; default: the run's own."),
                ),
                click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else."),
            ]
        ):
            wrapper = decorator(wrapper)
        return wrapper  # type: ignore[return-value]

    return decorate


def tokenizer_options(function: F) -> F:
    """Adds --tokenizer and --end-of-text, for `load_tokenizer`."""
    named = click.option(
        "--end-of-text",
        metavar="NAME",
        type=Text(),
        help="Its token between documents; default: found by the usual names.",
    )
    given = click.option("--tokenizer", type=FOLDER, help="A tokenizer.json to use instead of training one.")
    return given(named(function))


def load_tokenizer(path: Path | None, end_of_text: str | None) -> Tokenizer | None:
    """The tokenizer in a file, with the token between documents that is named, or its own; None without a file."""
    if path is None:
        if end_of_text is not None:
            raise click.UsageError("--end-of-text is of --tokenizer, which is not given", click.get_current_context())
        return None
    from pyro_ltm.data import Tokenizer
    from pyro_ltm.errors import UserError

    tokenizer = Tokenizer.load(path)
    try:
        tokenizer = tokenizer if end_of_text is None else tokenizer.ending(end_of_text)
        tokenizer.end_of_text  # noqa: B018 - raises UserError when there is none, before any text is read
    except UserError as error:
        raise UserError(f"--tokenizer {path}: {error}") from None
    return tokenizer


def reading_options(function: F) -> F:
    """Adds the options of how text is read, and hands them over as one argument `reading`, a `Reading`."""

    @functools.wraps(function)
    def wrapper(
        *, text_column: str | None, delimiter: str | None, skip_empty: bool, record_limit: float, **rest: Any
    ) -> Any:
        from pyro_ltm.data import Reading

        reading = Reading(
            text_column=text_column,
            delimiter=TABS.get(delimiter, delimiter) if delimiter else delimiter,
            skip_empty=skip_empty,
            record_limit=max(int(record_limit * (1 << 20)), 1),
        )
        return function(reading=reading, **rest)

    for decorator in reversed(
        [
            click.option(
                "--text-column",
                metavar="NAME",
                help="Column or JSON field that holds the text, a.b for one inside another; default: text.",
            ),
            click.option(
                "--delimiter", metavar="CHARACTER", help="Between the fields of a .csv or .tsv file; default: found."
            ),
            click.option(
                "--skip-empty",
                is_flag=True,
                help="Leave out records without text (null, or no such field), and count them.",
            ),
            click.option(
                "--record-limit",
                metavar="MIB",
                type=click.FloatRange(0, 4096, min_open=True),
                default=16,
                help="Longest record, and longest line of text without a space.",
            ),
        ]
    ):
        wrapper = decorator(wrapper)
    return wrapper  # type: ignore[return-value]


TABS = {"\\t": "\t", "tab": "\t"}
"""Names of a delimiter that is hard to type."""


def run_argument(function: F) -> F:
    """Adds the argument RUN."""
    return click.argument("run_folder", metavar="RUN", type=FOLDER)(function)


def preset_option(function: F) -> F:
    """Adds --preset."""
    return click.option(
        "--preset",
        metavar="NAME",
        show_default="nano-long for long texts, nano-worlds for worlds, else nano",
        help="nano, nano-long, nano-worlds, small, medium or large.",
    )(function)


def fast_steps(function: F) -> F:
    """Adds --fast-steps."""
    return click.option(
        "--fast-steps",
        type=click.IntRange(0),
        metavar="N",
        help="Fast steps of each fit; default: as many as in training.",
    )(function)


def fit_settings(function: F) -> F:
    """Adds --set, for the fast loop alone."""
    return click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="Fit otherwise than in training: one setting of optimizer.* or fast.*. Repeatable.",
    )(function)
