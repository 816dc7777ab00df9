"""Options that several commands take, types of arguments, examples."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pyro_ltm.data import Reading, Tokenizer
    from pyro_ltm.inference.ais import Annealing
    from pyro_ltm.model import DecodingOptions

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path)
"""A path; the library says what is wrong with it, in its own words."""


@dataclass(frozen=True)
class Common:
    """Options of every command. None: the configuration's or the run's own.

    `weights` is an option of those that open a run, `allow_code` of those and of those that read a configuration.
    """

    as_json: bool
    seed: int | None
    device: str
    dtype: str | None
    weights: str = "last"
    allow_code: bool = False


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


class Numbers(click.ParamType):
    """Whole numbers, at least zero, with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """The numbers, each once."""
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"'{value}' is no list of whole numbers, such as 4,16", param, ctx)
        if min(numbers) < 0 or max(numbers) > 1 << 16:
            self.fail(f"'{value}': each from 0 to {1 << 16}", param, ctx)
        return list(dict.fromkeys(numbers))


def examples(*lines: str) -> str:
    """An epilog with one command a line, as it is."""
    return "\b\n" + ("Example:" if len(lines) == 1 else "Examples:") + "".join(f"\n  {line}" for line in lines)


def gathered(name: str, make: Callable[..., Any], *options: Callable[[F], F]) -> Callable[[F], F]:
    """A decorator that adds `options`, and hands over what `make` makes of them as one argument called `name`."""
    taken = tuple(inspect.signature(make).parameters)

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(**given: Any) -> Any:
            made = make(**{option: given.pop(option) for option in taken if option in given})
            return function(**{name: made}, **given)

        for option in reversed(options):
            wrapper = option(wrapper)
        return wrapper  # type: ignore[return-value]

    return decorate


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: for the others the library has its defaults."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def common(
    *,
    seed: int | None = 0,
    seed_help: str = "Seed of all that is random.",
    unused: tuple[str, ...] = (),
    weights: bool = False,
    code: bool = False,
) -> Callable[[F], F]:
    """Adds --seed, --device, --dtype and --json, and hands them over as one argument `common`.

    Args:
        seed: its default.
        unused: which of them change nothing in this command; they are taken all the same, so that a script can give
            the same options to every command, and the help says so.
        weights: the command opens runs; it takes --weights, and --allow-code.
        code: it reads a configuration, without --weights; it takes --allow-code.
    """
    precision = "Precision of the decoder's products; default: the run's own."
    help = {"seed": seed_help, "device": "cpu, cuda, cuda:1, mps.", "dtype": precision}
    help |= dict.fromkeys(unused, "Without effect here.")
    return gathered(
        "common",
        Common,
        *([weights_option] if weights else []),
        *([allow_code_option] if weights or code else []),
        number("--seed", help["seed"], least=0, default=seed),
        click.option("--device", metavar="NAME", default="cpu", help=help["device"]),
        click.option("--dtype", type=click.Choice(["float32", "bfloat16", "auto"]), help=help["dtype"]),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else."),
    )


class FiniteRange(click.FloatRange):
    """A number in a range: neither infinite nor nan, which no bound refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does it. Fails on what is no finite number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number", param, ctx)
        return found


def number(
    flag: str, help: str, *, least: int = 1, default: int | None = None, metavar: str = "N", **more: Any
) -> Callable[[F], F]:
    """Adds an option that takes a whole number, or with `multiple` several."""
    return click.option(flag, metavar=metavar, type=click.IntRange(least), default=default, help=help, **more)


@dataclass(frozen=True)
class TokenizerFile:
    """The tokenizer.json that was named, if any, and its token between documents."""

    tokenizer: Path | None
    end_of_text: str | None

    def load(self) -> Tokenizer | None:
        """The tokenizer in the file, with the token between documents that is named, or its own; None without one."""
        if self.tokenizer is None:
            if self.end_of_text is not None:
                raise click.UsageError("--end-of-text is of --tokenizer, which is not given")
            return None
        from pyro_ltm.data import Tokenizer
        from pyro_ltm.errors import UserError

        loaded = Tokenizer.load(self.tokenizer)
        try:
            loaded = loaded if self.end_of_text is None else loaded.ending(self.end_of_text)
            loaded.end_of_text  # noqa: B018 - raises UserError when there is none, before any text is read
        except UserError as error:
            raise UserError(f"--tokenizer {self.tokenizer}: {error}") from None
        return loaded


def tokenizer_options(help: str = "A tokenizer.json to use instead of training one.", **more: Any) -> Callable[[F], F]:
    """Adds --tokenizer and --end-of-text, and hands them over as one argument `tokenizer_file`."""
    between = "Its token between documents; default: found by the usual names."
    return gathered(
        "tokenizer_file",
        TokenizerFile,
        click.option("--tokenizer", type=FOLDER, help=help, **more),
        click.option("--end-of-text", metavar="NAME", type=Text(), help=between),
    )


TABS = {"\\t": "\t", "tab": "\t"}
"""Names of a delimiter that is hard to type."""


def _reading(text_column: str | None, delimiter: str | None, skip_empty: bool, record_limit: float) -> Reading:
    from pyro_ltm.data import Reading

    return Reading(
        text_column=text_column,
        delimiter=TABS.get(delimiter, delimiter) if delimiter else delimiter,
        skip_empty=skip_empty,
        record_limit=max(int(record_limit * (1 << 20)), 1),
    )


reading_options = gathered(
    "reading",
    _reading,
    click.option(
        "--text-column",
        metavar="NAME",
        help="Column or JSON field that holds the text, a.b for one inside another; default: text.",
    ),
    click.option("--delimiter", metavar="CHARACTER", help="Between the fields of a .csv or .tsv file; default: found."),
    click.option(
        "--skip-empty", is_flag=True, help="Leave out records without text (null, or no such field), and count them."
    ),
    click.option(
        "--record-limit",
        metavar="MIB",
        type=FiniteRange(0, 4096, min_open=True),
        default=16,
        help="Longest record, and longest line of text without a space.",
    ),
)
"""Adds the options of how text is read, and hands them over as one argument `reading`, a `Reading`."""


def _decoding(temperature: float, top_k: int, top_p: float, diffusion_steps: int) -> DecodingOptions:
    from pyro_ltm.model import DecodingOptions

    return DecodingOptions(temperature=temperature, top_k=top_k, top_p=top_p, diffusion_steps=diffusion_steps)


def sampling(temperature: float = 1.0) -> Callable[[F], F]:
    """Adds the options of how tokens are drawn, and hands them over as one argument `sampler`, a `DecodingOptions`.

    Args:
        temperature: its default.
    """
    return gathered(
        "sampler",
        _decoding,
        click.option(
            "--temperature",
            metavar="X",
            type=float,
            default=temperature,
            help="Divides the logits; 0: always the likeliest token.",
        ),
        click.option("--top-k", metavar="K", type=int, default=0, help="Keep the K likeliest tokens; 0: all."),
        click.option(
            "--top-p",
            metavar="P",
            type=float,
            default=1.0,
            help="Keep the fewest tokens that reach probability P; 1: all.",
        ),
        number(
            "--diffusion-steps",
            "Of a masked diffusion: passes in which it writes a text.",
            default=0,
            least=0,
            show_default="one a token",
        ),
    )


weights_option = click.option(
    "--weights",
    type=click.Choice(["last", "average", "best"]),
    default="last",
    help="Of the runs: the last weights, their moving average (slow.average), those of the best validation "
    "(slow.keep_best).",
)
allow_code_option = click.option(
    "--allow-code",
    is_flag=True,
    help="Run code from outside of the library that a run or --config names (module:Class). --set needs no leave.",
)
masked_diffusion_option = click.option(
    "--masked-diffusion",
    "diffusion_folder",
    metavar="RUN",
    type=FOLDER,
    help="A run of the same decoder with model.kind=masked-diffusion, to score by its bound beside it.",
)
run_argument = click.argument("run_folder", metavar="RUN", type=FOLDER)
preset_option = click.option(
    "--preset",
    metavar="NAME",
    show_default="nano-long for long texts, nano-worlds for worlds, else nano; of train --rate nano-thoughts for nano",
    help="For likelihood: nano, nano-long, nano-worlds, mini, small, medium or large. For what thoughts are worth as "
    "features: nano-thoughts.",
)
config_option = click.option(
    "--config", "config_file", type=FOLDER, metavar="FILE.toml", help="Settings that replace the preset's."
)
settings_option = click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="One setting, the last word. Repeatable."
)
batch_size = number("--batch-size", "Sequences at a time.", default=32)
fast_steps = number("--fast-steps", "Fast steps of each fit; default: as many as in training.", least=0)
fit_settings = click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Fit otherwise than in training: one setting of optimizer.* or fast.*. Repeatable.",
)
"""--set, for the fast loop alone."""


def annealing(temperatures: int | None, chains: int | None, leapfrogs: int | None) -> Annealing | None:
    """How chains are annealed over so many temperatures; None where there are to be none."""
    if not temperatures:
        return None
    from pyro_ltm.inference.ais import Annealing

    return Annealing(**given(temperatures=temperatures, chains=chains, leapfrogs=leapfrogs))


def typed(ctx: click.Context) -> list[str]:
    """The command as it was typed, but for the order of its options."""
    return ["pyro-ltm", str(ctx.info_name), *typed_options(ctx, *(str(param.name) for param in ctx.command.params))]


def typed_options(ctx: click.Context, *names: str) -> list[str]:
    """Those of the named arguments and options that were typed, as words: another command may need the same."""
    words: list[str] = []
    for param in filter(lambda param: param.name in names, ctx.command.params):
        name, value = str(param.name), ctx.params.get(str(param.name))
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(param, click.Argument):
            words.append(str(value))
        elif isinstance(param, click.Option) and param.is_flag:
            words.append(param.opts[0])
        else:
            values: Any = value if param.multiple else [value]
            each = (",".join(map(str, one)) if isinstance(one, list | tuple) else str(one) for one in values)
            words += [word for one in each for word in (param.opts[0], one)]
    return words
