"""The command group: loads a command when it is asked for, and turns whatever ends it into one line and an exit code.

Exit codes: 0 done; 2 bad input or bad usage; 130 interrupted by Ctrl-C. At another signal to end, such as SIGTERM, 0
where the same command goes on with what is saved (train, scale, compare), 128 + its number elsewhere. A traceback
means a fault of ours.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from pyro_ltm.errors import UserError, is_out_of_memory, visible
from pyro_ltm.interruption import stopped_by_signals

from .failure import BAD_INPUT, DONE, INTERRUPTED, Failure, code_of
from .several import COMMANDS as SHARED
from .several import are_several, loss, tell_end, together

COMMANDS = (
    "prepare",
    "train",
    "bench",
    "plan",
    "fit-prior",
    "evaluate",
    "calibrate",
    "report",
    "zero-shot",
    "lm-eval",
    "gsm8k",
    "few-shot",
    "score-samples",
    "priors",
    "guides",
    "objectives",
    "optimizers",
    "slow-optimizers",
    "compare",
    "scale",
    "infer",
    "embed",
    "generate",
    "reconstruct",
    "neighbours",
    "interpolate",
    "arithmetic",
    "swap",
    "steer",
    "info",
    "convert",
    "graft",
)
"""In the order of use; each is `command` in the module of its name, with `_` for `-`."""


class LazyGroup(click.Group):
    """A group that imports a command's module when that command is named, and no library before it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of use."""
        return list(COMMANDS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it; without a word the help is shown."""
        return super().parse_args(ctx, args or ["--help"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".commands.{cmd_name.replace('-', '_')}", __package__).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a suggestion for a name that is not known."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from pyro_ltm.config import suggest

            raise click.UsageError(
                f"no command '{args[0]}'{suggest(args[0], COMMANDS)}: choose from {', '.join(COMMANDS)}", ctx
            )
        if are_several() and args[0] in COMMANDS and args[0] not in SHARED:
            raise UserError(f"{args[0]} runs in one process: start it without torchrun, which {', '.join(SHARED)} take")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Raises Failure for every end that a user can do something about."""
        with stopped_by_signals():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise Failure(str(error)) from None
        except KeyboardInterrupt as stop:
            code = code_of(stop, goes_on=False)
            raise Failure("interrupted; nothing half-written was left behind", code) from None
        except MemoryError:
            raise Failure(OUT_OF_MEMORY) from None
        except RuntimeError as error:
            if not (known := OUT_OF_MEMORY if is_out_of_memory(error) else loss(error)):
                raise
            raise Failure(known) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            _forget_stdout(error)
            raise Failure(f"{error.filename or 'output'}: {error.strerror or error}") from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "pyro-ltm",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = False,
        **extra: Any,
    ) -> Any:
        """As click's, but an error is one line, usage errors included."""
        options: dict[str, Any] = {"windows_expand_args": windows_expand_args, **extra}
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **options)
        try:
            result = super().main(args, prog_name, complete_var, standalone_mode=False, **options)
        except click.UsageError as error:
            _end(error.format_message(), BAD_INPUT, error.ctx)
        except click.ClickException as error:
            _end(error.format_message(), getattr(error, "code", error.exit_code))
        except click.Abort:
            _end("interrupted", INTERRUPTED)
        sys.exit(result if isinstance(result, int) else 0)


OUT_OF_MEMORY = (
    "out of memory: use smaller batches (--batch-size, or --set slow.batch_size=... with a larger slow.accumulate), "
    "a smaller model, or --dtype bfloat16"
)


def _end(message: str, exit_code: int, ctx: click.Context | None = None) -> NoReturn:
    """Prints `message` on one line of stderr and exits."""
    line = visible(" ".join(message.split()))
    if ctx is not None:
        line = f"{line.rstrip('.')} (see {ctx.command_path} --help)"
    tell_end(f"{'Stopped' if exit_code == DONE or exit_code > 128 else 'Error'}: {line}")
    sys.exit(exit_code)


def _forget_stdout(error: OSError) -> None:
    """Where stdout itself failed (a full disk behind it), keeps Python from trying again when it exits."""
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from pyro_ltm import __version__

        click.echo(f"pyro-ltm {__version__}")
        ctx.exit()


@click.group(
    "pyro-ltm",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
    epilog="\b\nExample:\n  pyro-ltm train --data python-docs --out runs/first\n  pyro-ltm evaluate runs/first\n"
    "  pyro-ltm generate runs/first --prompt 'The statement'",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
def cli() -> None:
    """Latent-thought language models: text in, a trained model out, with honest figures.

    Every command takes --json (one object on stdout; messages always go to stderr), --seed, --device and --dtype.
    """


class Terminal(io.FileIO):
    """A terminal, which may be closed while a command runs: what is shown then is lost, and nothing else."""

    def write(self, content: Any, /) -> int:
        """As of any file, but an end that nobody holds any more takes everything."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(content).nbytes


def main() -> None:
    """The entry point `pyro-ltm`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if sys.platform != "win32" and stream is not None and stream.isatty():
            raw = io.BufferedWriter(Terminal(stream.fileno(), "w", closefd=False))
            stream = io.TextIOWrapper(raw, encoding=stream.encoding, line_buffering=True)
            setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):  # text that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        with together():
            cli.main()
    except UserError as error:  # the other processes cannot be reached
        _end(str(error), BAD_INPUT)


if __name__ == "__main__":
    main()
