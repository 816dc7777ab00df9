"""Studies measured row by row, each kept as a file: whoever stops one loses the row under way alone.

    python -m benchmarks.STUDY --out runs/STUDY --shared ../shared [--only WORD] [--seeds 0,1,2] [--hours 2]
    python -m benchmarks.STUDY --table runs/STUDY

The first measures row after row, the most important first, and keeps each in OUT/rows; the same call goes on with the
next. The second puts all rows into benchmarks/STUDY-DATE.json, beside those measured before, and their tables into the
pages.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks import pages
from pyro_ltm.files import write_text

Rows = Mapping[str, Any]


class Row(Protocol):
    """One measurement."""

    @property
    def name(self) -> str:
        """Of its file."""


@dataclass(frozen=True)
class Study:
    """What is measured, and what becomes of it.

    Attributes:
        kind: its name. about: what it measures, and how, for --help.
        planned: of seeds the rows, in order. measure: a row, given the folder of real texts and one to work in.
        tables: of all rows, by the name that marks each in a page. line: what is printed of a row that is done.
    """

    kind: str
    about: str
    planned: Callable[[Sequence[int]], Iterable[Any]]
    measure: Callable[[Any, Path, Path], dict[str, Any]]
    tables: Callable[[Rows], dict[str, str]]
    line: Callable[[Any], str]


def known(out: Path) -> dict[str, Any]:
    """All rows that are done, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "rows").glob("*.json"))}


def earlier(kind: str) -> dict[str, Any]:
    """The rows of the newest benchmarks/KIND-DATE.json; none where there is no such file."""
    return pages.newest(kind) if list(pages.FIGURES.glob(f"{kind}-????-??-??.json")) else {}


def publish(kind: str, measured: Rows) -> dict[str, Any]:
    """Puts rows into benchmarks/KIND-DATE.json, a line each, and gives all; those measured before stay."""
    before = earlier(kind)
    found = {**before, **measured}
    if found != before:
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
        date = datetime.datetime.now(datetime.timezone.utc).date()
        write_text(pages.FIGURES / f"{kind}-{date}.json", f"{{\n{lines}\n}}\n")
    return found


def run(study: Study, arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    options = chosen(parser(study.about), arguments)
    if options.table:
        pages.write(study.tables(publish(study.kind, known(options.table))))
        return
    planned = study.planned([int(seed) for seed in options.seeds.split(",")])
    go_on(options, lambda _: (row for row in planned if options.only in row.name), study.measure, study.line)


def parser(about: str, seeds: str = "0,1,2") -> argparse.ArgumentParser:
    """The options that every study has; without a choice `--only` is a word of the names of rows."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--hours", type=float, default=1e9, help="begin no row after so many")
    parser.add_argument("--table", type=Path, help="publish the rows of such a folder, and measure nothing")
    return parser


def chosen(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, which name one folder."""
    options = parser.parse_args(arguments)
    if (options.out is None) == (options.table is None):
        parser.error("give either --out or --table")
    return options


def go_on(
    options: argparse.Namespace,
    planned: Callable[[Rows], Iterable[Any]],
    measure: Callable[[Any, Path, Path], dict[str, Any]],
    line: Callable[[Any], str],
) -> None:
    """Measures the rows that are not done; `planned` is given those that are, which grow while it is asked for more."""
    torch.set_num_threads(1)
    (options.out / "rows").mkdir(parents=True, exist_ok=True)
    done, began = known(options.out), time.monotonic()
    for row in planned(done):
        path = options.out / "rows" / f"{row.name}.json"
        if row.name not in done and path.exists():  # by another process that works on the same folder
            done[row.name] = json.loads(path.read_text(encoding="utf-8"))
        if row.name in done:
            continue
        if time.monotonic() - began >= 3600 * options.hours:
            break
        done[row.name] = measure(row, options.shared / "data", options.out)
        write_text(path, json.dumps(done[row.name]) + "\n")
        print(line(done[row.name]), flush=True)
