"""Printing: results on stdout, messages on stderr, nothing taken for markup.

What people read, on a terminal or through a pipe, shows control characters written out (`visible`): texts, paths and
names come from anywhere. JSON has its own way to write them, and files that a command writes hold them as they are.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

from pyro_ltm.errors import visible


def emit(result: Mapping[str, Any]) -> None:
    """Prints one JSON object on stdout; figures that are not finite become null."""
    click.echo(json.dumps(_plain(result), indent=2, allow_nan=False))


def note(message: str, file: TextIO | None = None) -> None:
    """A line for people, on stderr, or in `file`."""
    click.echo(visible(message), err=True, file=file)


def say(line: str = "") -> None:
    """A line of the result, on stdout."""
    click.echo(visible(line))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Sequence[str] = ()) -> None:
    """A table on stdout: the first column names things, the others hold figures, or `texts`, by their names."""
    from rich import box
    from rich.table import Table

    # The title stands by itself, since rich would fold it to the width of its table.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(visible(column), justify="right" if index and column not in texts else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row))
    console = stdout_console()
    console.print(visible(title), style="bold", soft_wrap=True)
    console.print(table)
    console.print()


def stdout_console() -> Any:
    """A rich console on stdout that prints every character as it is."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def show_next(*commands: Sequence[str]) -> None:
    """Commands to try next."""
    say("Next:")
    for command in commands:
        say(f"  {shlex.join(command)}")


def show_files(folder: Path) -> None:
    """Where a run was written, file by file."""
    from pyro_ltm.runs.description import file_sizes

    say(f"Written to {folder}:")
    for name, size in file_sizes(folder).items():
        meaning = MEANINGS.get(re.sub(r"-\d+\.", "-STEP.", name.split("/")[0]), "")
        say(f"  {name:<26} {size_of(size):>9}  {meaning}".rstrip())


FIXED_NOISE = "Warning: fitted on the reference's fixed noise; the figures are on fresh noise all the same."

WIDE = 1e9
"""From here on numbers are written in powers of ten."""

MEANINGS = {
    "config.toml": "all settings, each with its meaning",
    "data": "the tokens that it was trained on",
    "data.json": "where its data lie",
    "evaluation.json": "figures of the last evaluation of its own data",
    "metrics.jsonl": "what was measured while training",
    "model.safetensors": "the weights",
    "nonfinite.json": "why training stopped",
    "plots": "curves of training",
    "report": "what its thoughts carry",
    "tokenizer.json": "the tokenizer",
    "trainer.safetensors": "all that --resume needs",
    "trainer-STEP.safetensors": "the same, of an earlier step",
    "trainer-damaged.safetensors": "the same, damaged: one of an earlier step was taken",
}


def size_of(count: float) -> str:
    """Bytes for people."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.1f} {'BkMGT'[power]}B"


def nats(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where it is not known."""
    return "-" if value is None or math.isnan(value) else figure(value, digits)


def figure(value: float, digits: int) -> str:
    """A number with so many digits after the point, in powers of ten where it would fill the line."""
    if math.isinf(value):
        return "over 1e308" if value > 0 else "under -1e308"
    return f"{value:.{digits}f}" if abs(value) < WIDE else f"{value:.{digits}e}"


def margin(stderr: float, digits: int = 4) -> str:
    """` ± ` and a standard error; nothing where it is not known (a single sequence has none)."""
    return f" ± {figure(stderr, digits)}" if math.isfinite(stderr) else ""


def _plain(value: Any) -> Any:
    """`value` as what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
