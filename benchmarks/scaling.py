"""The design space around `nano`: size, thoughts, fast steps and window, with both rivals, as `pyro-ltm scale` does it.

    python -m benchmarks.scaling --out runs/scaling --shared ../shared [--only wikitext-2-w8] [--hours 2]
                                 [--parts 4,1] [--seeds 1,2] [--rivals twin]
    python -m benchmarks.scaling --table runs/scaling
    python -m benchmarks.scaling --laws
    python -m benchmarks.scaling --pictures

The first trains and scores cell after cell, the most important first; each is a run folder, so that whoever stops it
loses little: the same call goes on, and two calls at once share the work. The second puts all cells that are done into
benchmarks/scaling-DATE.json, their tables into the pages, and draws the page of each study, OUT/STUDY/scaling.html.
The third fits the laws anew to all published cells, and needs no folder; nor does the last, which draws the pictures
anew, as the others do at their end.

A study is of one text and one window. Every cell learns as in `benchmarks.claim`: the same slow optimizer at the same
rate for both sides and all sizes, chosen at 64 dimensions, so that sizes further away may be served less well. A rival
has a cell's shape; it reads the same tokens, or takes the same operations, at most a tenth more.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import claim, pages, scaling_pictures, scaling_tables
from benchmarks.rows import earlier, publish
from benchmarks.texts import TEXTS, prepared
from benchmarks.trained import configure
from pyro_ltm.comparison.scaling.analysis import gaps, laws
from pyro_ltm.comparison.scaling.grid import DIFFUSION, TWIN, Axis, Grid
from pyro_ltm.comparison.scaling.result import BY_SEQUENCE, Row, Study, check_target
from pyro_ltm.comparison.scaling.run import Callbacks, Scoring, run_study
from pyro_ltm.reading import fitted
from pyro_ltm.reports.scaling_page import write_study

TEXT_NAMES, WINDOWS = ("worlds-15", "wikitext-2"), (8, 128)
STEPS = 500
MIDDLE = ["model.thoughts=8", f"slow.steps={STEPS}", "slow.eval_sequences=16", "slow.save_every=100"]
"""Of a cell where no axis says otherwise, beside `nano` and the fast loop of `benchmarks.claim` (16 fast steps)."""
SCORING = Scoring(sequences=32, particles=16)

# The scale of what is embedded stays that of unit variance.
SIZE = "model.dim+model.embedding_scale="
SIZES = ("32+5.657", "128+11.314")
LARGEST = "192+13.856"
STEPS_AXIS, THOUGHTS_AXIS, SIZE_AXIS = "fast.steps=1,4,16,64", "model.thoughts=0,2,8,32", SIZE + ",".join(SIZES)
ENDS = [f"{SIZE}{SIZES[0]},{LARGEST}", "fast.steps=1,64", "model.thoughts=2,32"]

PARTS: list[tuple[list[str], tuple[int, ...], tuple[str, ...]]] = [
    (["fast.steps=1,4,16"], (0,), (TWIN, DIFFUSION)),
    (["model.thoughts=2,32"], (0,), (TWIN,)),
    ([SIZE_AXIS, "fast.steps=4,16"], (0,), (TWIN,)),
    ([], (1, 2), (TWIN,)),
    (["fast.steps=64"], (0,), (TWIN,)),
    (["model.layers=1,4"], (0,), (TWIN,)),
    ([SIZE_AXIS, STEPS_AXIS], (0,), (TWIN,)),
    ([STEPS_AXIS], (1, 2), (TWIN,)),
    ([THOUGHTS_AXIS, STEPS_AXIS], (0,), (TWIN,)),
    ([SIZE + LARGEST, STEPS_AXIS], (0,), (TWIN,)),
    (ENDS, (0, 1, 2), (TWIN, DIFFUSION)),
]
"""Axes, seeds and rivals, the most important first; cells that an earlier part has are done."""


@dataclass(frozen=True)
class Chosen:
    """Parts of the plan, counted from 1; seeds and rivals in place of theirs, where there are any."""

    numbers: Sequence[int]
    seeds: Sequence[int] = ()
    rivals: Sequence[str] = ()


def grids(text: str, window: int, data: Path, out: Path, chosen: Chosen) -> Iterator[tuple[Grid, Path]]:
    """The chosen parts of a study, and the folder of tokens that they learn from."""
    parts = prepared(text, data, out)
    batch = f"slow.batch_size={TEXTS[text].batch_size}"
    settings = [f"model.window={window}", batch, *claim.SCHEDULE, *claim.GRID[claim.SLOW["ltm"]], *claim.FAST, *MIDDLE]
    common = configure("nano", parts.train, settings)
    for axes, seeds, rivals in (PARTS[number - 1] for number in chosen.numbers):
        grid = Grid(common, tuple(map(Axis.parse, axes)), chosen.rivals or rivals, chosen.seeds or seeds)
        yield grid, Path(parts.train.folder.path)


def studies(only: str) -> list[tuple[str, int]]:
    """Texts and windows."""
    return [(text, window) for window in WINDOWS for text in TEXT_NAMES if only in folder_of(text, window)]


def measure(out: Path, data: Path, only: str, hours: float, chosen: Chosen) -> None:
    """Part after part of all studies, until so many hours are over."""
    began = time.monotonic()
    plans = {study: grids(*study, data, out, chosen) for study in studies(only)}
    for _ in chosen.numbers:
        for (text, window), parts in plans.items():
            if time.monotonic() - began >= 3600 * hours:
                return
            grid, tokens = next(parts)
            name = folder_of(text, window)
            watch = Callbacks(lambda line, name=name: print(f"{name}: {line}", flush=True))
            run_study(grid, data=tokens, out=out / name, scoring=SCORING, watch=watch)


def folder_of(text: str, window: int) -> str:
    """The name of a study."""
    return f"{text}-w{window}"


def published(study: Study) -> dict[str, Any]:
    """What is kept of a study: each cell's figures, and how far it lies below its rivals."""
    left_out = {*BY_SEQUENCE, "machine", "worker", "curve", "note"}
    rows = [{key: value for key, value in asdict(row).items() if key not in left_out} for row in study.rows]
    found = [
        {
            "cell": gap.row.name,
            "rival": gap.rival.name,
            "equal": gap.equal,
            "below": gap.nats_per_token,
            "stderr": gap.stderr,
        }
        for gap in gaps(study)
    ]
    machines = {str(row.machine.get("processor")) for row in study.rows}
    return {"machines": sorted(machines), "cells": rows, "gaps": found}


def with_earlier(found: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What is published of a study, and of cells that were measured before and elsewhere."""
    machines = sorted({*before.get("machines", []), *found["machines"]})
    cells = {cell["name"]: cell for cell in (*before.get("cells", []), *found["cells"])}
    of = {(gap["cell"], gap["rival"], gap["equal"]): gap for gap in (*before.get("gaps", []), *found["gaps"])}
    return found | {"machines": machines, "cells": list(cells.values()), "gaps": list(of.values())}


def with_laws(found: dict[str, Any]) -> dict[str, Any]:
    """The same with a law of each family, fitted to all its published cells."""
    rows = sorted((fitted(cell, Row) for cell in found["cells"]), key=lambda row: row.name)
    return {**found, "laws": laws(Study({}, rows))}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="studies with this in their name, such as w8")
    parser.add_argument("--hours", type=float, default=1e9, help="begin no part after so many")
    parser.add_argument("--parts", type=_numbers, help="of the plan, counted from 1, in this order; by default all")
    parser.add_argument("--seeds", type=_numbers, default=[], help="in place of those that the plan has for a part")
    parser.add_argument("--rivals", type=lambda text: text.split(","), default=[], help="likewise")
    parser.add_argument("--table", type=Path, help="publish what is done in such a folder, and measure nothing")
    parser.add_argument("--laws", action="store_true", help="fit the laws anew to what is published")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures of what is published")
    options = parser.parse_args(arguments)
    if [bool(options.out), bool(options.table), options.laws, options.pictures].count(True) != 1:
        parser.error("give one of --out, --table, --laws and --pictures")
    numbers = options.parts or range(1, len(PARTS) + 1)
    if not set(numbers) <= set(range(1, len(PARTS) + 1)):
        parser.error(f"--parts: from 1 to {len(PARTS)}")
    torch.set_num_threads(1)
    if options.out:
        chosen = Chosen(numbers, options.seeds, options.rivals)
        measure(options.out, options.shared / "data", options.only, options.hours, chosen)
        return
    if options.laws:
        measured = {name: with_laws(found) for name, found in earlier("scaling").items()}
        _show(publish("scaling", measured))
        return
    if options.pictures:
        scaling_pictures.draw(earlier("scaling"))
        return
    measured = {}
    for text, window in studies(""):
        folder = options.table / folder_of(text, window)
        if begun := check_target(folder) if folder.is_dir() else None:
            study = Study(begun["settings"], about={"command": "python -m benchmarks.scaling"})
            study.read(folder)
            write_study(study, folder)
            found = with_earlier(published(study), earlier("scaling").get(folder.name, {}))
            measured[folder.name] = with_laws(found)
    _show(publish("scaling", measured))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _show(found: dict[str, Any]) -> None:
    """Puts what is published into the pages, and draws it."""
    pages.write(scaling_tables.tables(found))
    scaling_pictures.draw(found)


if __name__ == "__main__":
    main()
