"""Runs the benchmarks of speed and writes what they found.

    python -m benchmarks [--out runs/speed] [--only speed,float32,nano,pipeline,growth,race,levers,mistral] [--data DIR]
    python -m benchmarks --only before --before CHECKOUT
    python -m benchmarks --only gpu-small,gpu-medium,gpu-large --device cuda
    python -m benchmarks --table runs/speed/speed-DATE.json

The first measures (more than an hour on two cores of a machine that does nothing else) and leaves in OUT, anew after
each part, and each row of `levers` and `race`: speed-DATE.json, speed-DATE.md, a note with all tables, and growth.png.
Parts of an earlier day in OUT are taken over. The last publishes such a file: its parts take their places in the newest
benchmarks/speed-DATE.json, their tables in README, docs/ and benchmarks/notes/, and the plot is drawn anew. `--data`
is a prepared folder of text for `levers` and `race` (benchmarks/notes/speed.md says which); without it OUT/python-docs
is prepared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks import (
    before,
    growth,
    levers,
    levers_training,
    mistral,
    pages,
    pipeline,
    race,
    speed,
    speed_gpu,
    speed_short,
    table,
)
from benchmarks.interleave import machine
from pyro_ltm.config import suggest
from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.errors import UserError
from pyro_ltm.presets import preset
from pyro_ltm.runs.batches import check_fits

READING = ("race", "levers")
"""Parts that train on text."""
PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "speed": lambda asked: speed.run(asked.preset, asked.rounds, asked.device),
    "float32": lambda asked: speed.run(asked.preset, asked.rounds, asked.device, "float32"),
    "nano": lambda asked: speed.run("nano", asked.rounds, asked.device),
    "pipeline": lambda asked: pipeline.run(asked.rounds),
    "growth": lambda asked: growth.run(asked.rounds),
    "race": lambda asked: (race.run(asked.data, asked.steps, seed) for seed in asked.seeds),
    "levers": lambda asked: levers.run(asked.data, asked.steps, asked.seeds, asked.rows),
    "mistral": lambda asked: mistral.run(asked.rounds),
}
GPU: dict[str, Callable[[argparse.Namespace], Any]] = {
    f"gpu-{name}": lambda asked, name=name: speed_gpu.run(name, asked.rounds, asked.device)
    for name in speed_gpu.PRESETS
}
BEFORE = {"before": lambda asked: before.run(asked.before, asked.rounds)}
ANYWHERE = ("speed", "float32", "nano", *GPU)
"""Parts that run on a GPU, too."""


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def seeds(text: str) -> list[int]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"'{text}': name whole numbers with commas")
    return [int(part) for part in text.split(",")]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, all of them checked before anything is measured. Raises UserError."""
    parser = Parser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join((*PARTS, *BEFORE, *GPU))}")
    parser.add_argument("--preset", default="medium", help="of the parts `speed` and `float32`")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=positive, default=300, help="slow steps of a row of `levers` and of `race`")
    parser.add_argument("--seeds", type=seeds, default=[0], help="of `levers` and of `race`, with commas")
    parser.add_argument("--rows", help="which rows of `levers`, with semicolons; default: all")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=f"of {', '.join(ANYWHERE)}")
    parser.add_argument("--before", type=Path, help="another checkout of this repository, of the part `before`")
    parser.add_argument("--table", type=Path, help="publish this file, measure nothing")
    asked = parser.parse_args(arguments)
    asked.only = asked.only.split(",")
    asked.rows = asked.rows.split(";") if asked.rows else None
    for name in asked.only:
        if name not in PARTS | BEFORE | GPU:
            raise UserError(
                f"--only {name}{suggest(name, PARTS | BEFORE | GPU)}: choose from {', '.join(PARTS | BEFORE | GPU)}"
            )
    for name in asked.rows or []:
        if name not in levers.ROWS:
            raise UserError(f"--rows {name}{suggest(name, levers.ROWS)}: choose from {'; '.join(levers.ROWS)}")
    preset(asked.preset)
    if "before" in asked.only and not (asked.before and (asked.before / "benchmarks/speed.py").is_file()):
        raise UserError("--only before: needs another checkout of this repository: --before FOLDER")
    if asked.device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU here")
        if bound := [part for part in asked.only if part not in ANYWHERE]:
            raise UserError(f"--device cuda: {', '.join(bound)} measure on the processor; --only {','.join(ANYWHERE)}")
    elif slow := [part for part in asked.only if part in GPU]:
        raise UserError(f"--only {','.join(slow)}: needs --device cuda")
    if asked.table and not asked.table.is_file():
        raise UserError(f"--table {asked.table}: no such file")
    if asked.data and not asked.table:
        check_text(asked.data)
    return asked


def check_text(folder: Path) -> None:
    """Raises UserError for a folder on which `levers` and `race` could not train and judge."""
    for split in ("train", "validation"):
        data = TokenDataset(folder, split)
        check_fits(levers_training.configure(data, 1, 0, []), data)


def text(out: Path) -> Path:
    """The corpus that comes with Python, prepared as the preset nano wants it, once."""
    folder, data = out / "python-docs", preset("nano").data
    if not folder.exists():
        prepare(["python-docs"], folder, vocab_size=data.vocab_size, sequence_length=data.sequence_length)
    check_text(folder)
    return folder


def write(found: dict[str, Any], out: Path, date: str) -> Path:
    """The JSON, the note and the plot."""
    path = out / f"speed-{date}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table.note(found, date), encoding="utf-8")
    if "growth" in found:
        growth.plot(found["growth"]["found"], out / "growth.png")
    return path


def so_far(part: str, found: Any) -> Iterator[tuple[Any, str]]:
    """A part's figures and the name to save them under; of one that gives a row at a time, the rows up to each, too."""
    if isinstance(found, Iterator):
        rows: list[Any] = []
        for row in found:
            rows.append(row)
            yield rows, part + table.UNFINISHED
        found = rows
    yield found, part


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    asked = parsed(arguments)
    if asked.table:
        found = pages.publish("speed", asked.table, lambda found: table.tables(found) | speed_short.tables(found))
        growth.plot(found["growth"]["found"], pages.ROOT / "docs/pictures/growth.png")
        return
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.data is None and set(READING) & set(asked.only):
        asked.data = text(asked.out)
    began = datetime.datetime.now(datetime.timezone.utc)
    date = began.date().isoformat()
    earlier = sorted(asked.out.glob("speed-*.json"))
    found: dict[str, Any] = json.loads(earlier[-1].read_text(encoding="utf-8")) if earlier else {}
    for part in asked.only:
        began = datetime.datetime.now(datetime.timezone.utc)
        for result, name in so_far(part, (PARTS | BEFORE | GPU)[part](asked)):
            minutes = (datetime.datetime.now(datetime.timezone.utc) - began).total_seconds() / 60
            found[name] = {
                "date": began.date().isoformat(),
                "minutes": round(minutes, 1),
                "machine": machine(),
                **({"data": asked.data.name} if part in READING else {}),
                "found": result,
            }
            if name == part:
                found.pop(part + table.UNFINISHED, None)
            path = write(found, asked.out, date)
            print(f"{name}: {minutes:.1f} minutes, in {path}", flush=True)
    print(table.note(found, date))
    print(f"Next:\n  python -m benchmarks --table {path}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
